// Package signedtest signs images for tests, which have no ssh-keygen everywhere.
package signedtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"os"
	"testing"

	"github.com/squirefs/squire/sqfs/signed"
)

// Key signs.
type Key struct {
	kind, blob string
	sign       func(message []byte) []byte // what follows the type in a signature
	// Line is the public key, as in squire.toml.
	Line string
}

// seed is what the key of a name is made of: the same each time.
func seed(name string) []byte {
	sum := sha512.Sum512([]byte(name))
	return sum[:ed25519.SeedSize]
}

func newKey(name, kind string, sign func(message []byte) []byte, public ...string) *Key {
	k := &Key{kind: kind, sign: sign, blob: string(texts(nil, append([]string{kind}, public...)...))}
	k.Line = kind + " " + base64.StdEncoding.EncodeToString([]byte(k.blob)) + " " + name
	return k
}

// New returns the key that a name stands for.
func New(name string) *Key {
	private := ed25519.NewKeyFromSeed(seed(name))
	sign := func(message []byte) []byte { return texts(nil, string(ed25519.Sign(private, message))) }
	return newKey(name, "ssh-ed25519", sign, string(private.Public().(ed25519.PublicKey)))
}

// Token is a security key, as far as it matters for signatures.
type Token struct {
	Application string // what keys are made for
	Flags       byte   // 1: somebody touched it
	Counter     uint32
}

// signs is what the token signs of a message, and adds says what is told of it beside the signature.
func (t *Token) signs(message []byte) []byte {
	of, text := sha256.Sum256([]byte(t.Application)), sha256.Sum256(message)
	return append(append(of[:], t.adds()...), text[:]...)
}

func (t *Token) adds() []byte { return binary.BigEndian.AppendUint32([]byte{t.Flags}, t.Counter) }

// Ed25519 returns the token's key that a name stands for.
func (t *Token) Ed25519(name string) *Key {
	private := ed25519.NewKeyFromSeed(seed(name))
	sign := func(message []byte) []byte {
		return append(texts(nil, string(ed25519.Sign(private, t.signs(message)))), t.adds()...)
	}
	return newKey(name, "sk-ssh-ed25519@openssh.com", sign, string(private.Public().(ed25519.PublicKey)), t.Application)
}

// ECDSA returns the token's key that a name stands for.
func (t *Token) ECDSA(tb testing.TB, name string) *Key {
	tb.Helper()
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed(name))
	if err != nil {
		tb.Fatal(err)
	}
	point, err := private.PublicKey.Bytes()
	if err != nil {
		tb.Fatal(err)
	}
	sign := func(message []byte) []byte {
		sum := sha256.Sum256(t.signs(message))
		r, s, err := ecdsa.Sign(rand.Reader, private, sum[:])
		if err != nil {
			panic(err)
		}
		return append(texts(nil, string(texts(nil, mpint(r), mpint(s)))), t.adds()...)
	}
	return newKey(name, "sk-ecdsa-sha2-nistp256@openssh.com", sign, "nistp256", string(point), t.Application)
}

// mpint is a positive number of RFC 4251, section 5.
func mpint(n *big.Int) string {
	b := n.Bytes()
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return string(b)
}

// As returns a key that signs as k, and says that it is another.
func (k *Key) As(other *Key) *Key {
	return &Key{kind: k.kind, sign: k.sign, blob: other.blob, Line: other.Line}
}

// Public is the key for Verify.
func (k *Key) Public(t testing.TB) signed.Key {
	t.Helper()
	key, err := signed.ParseKey(k.Line)
	if err != nil {
		t.Fatal(err)
	}
	return *key
}

// Head is the head of the signature of a statement.
func (k *Key) Head(statement string) string { return statement + k.Armor(statement, signed.Namespace) }

// Armor is a signature of any text.
func (k *Key) Armor(message, namespace string) string {
	sum := sha512.Sum512([]byte(message))
	sig := append(texts(nil, k.kind), k.sign(texts([]byte("SSHSIG"), namespace, "", "sha512", string(sum[:])))...)
	blob := binary.BigEndian.AppendUint32([]byte("SSHSIG"), 1)
	blob = texts(blob, k.blob, namespace, "", "sha512", string(sig))
	return "-----BEGIN SSH SIGNATURE-----\n" + lines(base64.StdEncoding.EncodeToString(blob)) + "-----END SSH SIGNATURE-----\n"
}

// lines breaks a text as ssh-keygen does, which reads no other.
func lines(text string) (broken string) {
	for len(text) > 70 {
		broken, text = broken+text[:70]+"\n", text[70:]
	}
	return broken + text + "\n"
}

// Sign signs the image of a file, as "squire sign" does, and returns the head and the list of its signature.
func (k *Key) Sign(t testing.TB, image string) (head string, list []byte) {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	s, list, err := signed.Hash(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	head = k.Head(s.String())
	if err = os.WriteFile(image+signed.Suffix, append([]byte(head), list...), 0o644); err != nil {
		t.Fatal(err)
	}
	return head, list
}

func texts(b []byte, parts ...string) []byte {
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return b
}
