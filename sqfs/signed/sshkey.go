package signed

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// The types of keys. Those that begin with sk- are of security keys (FIDO), which sign when somebody touches them.
const (
	typeEd25519   = "ssh-ed25519"
	typeSKEd25519 = "sk-ssh-ed25519@openssh.com"
	typeSKECDSA   = "sk-ecdsa-sha2-nistp256@openssh.com"
)

// KeyTypes are the types of keys that are known, as OpenSSH names them.
var KeyTypes = []string{typeEd25519, typeSKEd25519, typeSKECDSA}

// Key is a public key of one of KeyTypes.
type Key struct {
	Comment string // behind it, who it is of
	key     publicKey
}

// String is the key's fingerprint, as OpenSSH shows it, and its comment.
func (k *Key) String() string { return strings.TrimSpace(k.key.fingerprint() + " " + k.Comment) }

// ParseKey reads a line of the form of OpenSSH's public keys: "ssh-ed25519 AAAA… comment".
func ParseKey(line string) (*Key, error) {
	fields := strings.Fields(line)
	if strings.HasPrefix(line, "-----BEGIN") {
		return nil, errors.New("a private key, or none of OpenSSH's: want the public one, which ssh-keygen writes into FILE.pub")
	}
	if len(fields) < 2 {
		return nil, errors.New(`not a public key of the form "ssh-ed25519 AAAA… comment"`)
	}
	if !slices.Contains(KeyTypes, fields[0]) {
		return nil, fmt.Errorf("a key of type %.40q: only %s are known", fields[0], strings.Join(KeyTypes, ", "))
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return nil, errors.New("not a public key: it is not base64")
	}
	key, err := parseKey(string(blob))
	if err == nil && key.kind != fields[0] {
		err = fmt.Errorf("not a public key of type %s", fields[0])
	}
	if err != nil {
		return nil, err
	}
	return &Key{Comment: strings.Join(fields[2:], " "), key: *key}, nil
}

// publicKey is one of OpenSSH's.
type publicKey struct {
	kind        string // one of KeyTypes
	blob        string // all of it, as it is in files and signatures
	edwards     ed25519.PublicKey
	nistp256    *ecdsa.PublicKey // of typeSKECDSA
	application string           // of a security key: what it was made for, "ssh:" as a rule
}

// parseKey reads the form of RFC 8709, section 4, and of PROTOCOL.u2f, "SSH U2F Key formats".
func parseKey(blob string) (*publicKey, error) {
	d := decoder{rest: []byte(blob)}
	k := &publicKey{kind: d.text(), blob: blob}
	var good bool
	switch k.kind {
	case typeEd25519, typeSKEd25519:
		k.edwards = ed25519.PublicKey(d.text())
		good = len(k.edwards) == ed25519.PublicKeySize
	case typeSKECDSA:
		curve, point := d.text(), d.text()
		var err error
		k.nistp256, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), []byte(point))
		good = curve == "nistp256" && err == nil
	}
	if k.kind != typeEd25519 {
		k.application = d.text()
	}
	if !good || !d.end() {
		return nil, fmt.Errorf("not a public key of type %s", strings.Join(KeyTypes, ", "))
	}
	return k, nil
}

func (k *publicKey) fingerprint() string {
	sum := sha256.Sum256([]byte(k.blob))
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// userPresent is the flag of a security key that says that somebody touched it for this signature.
const userPresent = 1

// verify reports whether signature, which begins with its type, is the key's of message. One of a security key counts if
// somebody was there: a program that has the use of it could otherwise sign by itself.
func (k *publicKey) verify(message []byte, signature string) bool {
	d := decoder{rest: []byte(signature)}
	kind, raw := d.text(), d.text()
	if kind != k.kind {
		return false
	}
	if kind != typeEd25519 {
		flags, counter := d.octet(), d.number()
		if flags&userPresent == 0 {
			return false
		}
		message = securityKeySigns(k.application, flags, counter, message)
	}
	if !d.end() {
		return false
	}
	if k.nistp256 != nil {
		return verifyECDSA(k.nistp256, message, raw)
	}
	return len(raw) == ed25519.SignatureSize && ed25519.Verify(k.edwards, message, []byte(raw))
}

// securityKeySigns is what a security key signs of a message (PROTOCOL.u2f, "SSH U2F signatures").
func securityKeySigns(application string, flags byte, counter uint32, message []byte) []byte {
	of, text := sha256.Sum256([]byte(application)), sha256.Sum256(message)
	b := append(of[:], flags)
	return append(binary.BigEndian.AppendUint32(b, counter), text[:]...)
}

func verifyECDSA(key *ecdsa.PublicKey, message []byte, raw string) bool {
	d := decoder{rest: []byte(raw)}
	r, s := d.positive(), d.positive()
	sum := sha256.Sum256(message)
	return d.end() && ecdsa.Verify(key, sum[:], r, s)
}

// positive reads an mpint of RFC 4251, section 5, of 256 bits at most. One that is negative is bad.
func (d *decoder) positive() *big.Int {
	b := []byte(d.text())
	if len(b) > 256/8+1 || len(b) > 0 && b[0]&0x80 != 0 {
		d.bad = true
		return new(big.Int)
	}
	return new(big.Int).SetBytes(b)
}
