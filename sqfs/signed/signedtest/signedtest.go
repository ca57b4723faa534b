// Package signedtest signs images for tests, which have no ssh-keygen everywhere.
package signedtest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"os"
	"testing"

	"github.com/squirefs/squire/sqfs/signed"
)

// Key signs.
type Key struct {
	private ed25519.PrivateKey
	// Line is the public key, as in squire.toml.
	Line string
}

// New returns the key that a name stands for: the same each time.
func New(name string) *Key {
	seed := sha512.Sum512([]byte(name))
	private := ed25519.NewKeyFromSeed(seed[:ed25519.SeedSize])
	k := &Key{private: private}
	k.Line = "ssh-ed25519 " + base64.StdEncoding.EncodeToString(k.blob()) + " " + name
	return k
}

func (k *Key) blob() []byte {
	return texts(nil, "ssh-ed25519", string(k.private.Public().(ed25519.PublicKey)))
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
	sig := ed25519.Sign(k.private, texts([]byte("SSHSIG"), namespace, "", "sha512", string(sum[:])))
	blob := binary.BigEndian.AppendUint32([]byte("SSHSIG"), 1)
	blob = texts(blob, string(k.blob()), namespace, "", "sha512", string(texts(nil, "ssh-ed25519", string(sig))))
	return "-----BEGIN SSH SIGNATURE-----\n" + base64.StdEncoding.EncodeToString(blob) + "\n-----END SSH SIGNATURE-----\n"
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
