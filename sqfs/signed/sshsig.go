package signed

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Namespace is that of the signatures: one that was made for something else is none of an image.
const Namespace = "squire-image"

// Key is a public key: ssh-ed25519.
type Key struct {
	Comment string // behind it, who it is of
	key     ed25519.PublicKey
}

// String is the key's fingerprint, as OpenSSH shows it, and its comment.
func (k *Key) String() string { return strings.TrimSpace(fingerprint(k.key) + " " + k.Comment) }

const keyType = "ssh-ed25519"

// ParseKey reads a line of the form of OpenSSH's public keys: "ssh-ed25519 AAAA… comment".
func ParseKey(line string) (*Key, error) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return nil, errors.New(`not a public key of the form "ssh-ed25519 AAAA… comment"`)
	}
	if fields[0] != keyType {
		return nil, fmt.Errorf("a key of type %.40q: only %s is known", fields[0], keyType)
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return nil, errors.New("not a public key: it is not base64")
	}
	key, err := parseKey(blob)
	if err != nil {
		return nil, err
	}
	return &Key{Comment: strings.Join(fields[2:], " "), key: key}, nil
}

// parseKey reads the form of RFC 8709, section 4.
func parseKey(blob []byte) (ed25519.PublicKey, error) {
	d := decoder{rest: blob}
	kind, key := d.text(), d.text()
	if kind == keyType && d.end() && len(key) == ed25519.PublicKeySize {
		return ed25519.PublicKey(key), nil
	}
	return nil, fmt.Errorf("not a public key of type %s", keyType)
}

func keyBlob(key ed25519.PublicKey) []byte { return appendText(appendText(nil, keyType), string(key)) }

func fingerprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256(keyBlob(key))
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// sshSignature is one of OpenSSH (PROTOCOL.sshsig).
type sshSignature struct {
	key       ed25519.PublicKey
	hash      string // of the message: sha256 or sha512
	signature []byte
}

const (
	beginArmor = "-----BEGIN SSH SIGNATURE-----\n"
	sshMagic   = "SSHSIG"
)

// parseArmor reads a signature from its first line to its last.
func parseArmor(text string) (s sshSignature, err error) {
	text = strings.TrimSuffix(strings.TrimPrefix(text, beginArmor), endArmor)
	blob, err := base64.StdEncoding.Strict().DecodeString(strings.ReplaceAll(text, "\n", ""))
	if err != nil {
		return s, errors.New("not a signature: it is not base64")
	}
	rest, ok := bytes.CutPrefix(blob, []byte(sshMagic))
	d := decoder{rest: rest}
	version := d.number()
	key, namespace := d.text(), d.text()
	d.text() // reserved: to be ignored
	s.hash = d.text()
	sig := decoder{rest: []byte(d.text())}
	kind, raw := sig.text(), sig.text()
	switch {
	case !ok || !d.end() || version != 1:
		return s, errors.New("not a signature of OpenSSH, version 1")
	case namespace != Namespace:
		return s, fmt.Errorf("a signature for %.40q, not for %s", namespace, Namespace)
	case kind != keyType || !sig.end() || len(raw) != ed25519.SignatureSize:
		return s, fmt.Errorf("a signature of type %.40q: only %s is known", kind, keyType)
	case s.hash != "sha256" && s.hash != "sha512":
		return s, fmt.Errorf("a signature with hash %.40q: want sha256 or sha512", s.hash)
	}
	s.signature = []byte(raw)
	s.key, err = parseKey([]byte(key))
	return s, err
}

func (s *sshSignature) fingerprint() string { return fingerprint(s.key) }

// verify reports whether the key has signed message.
func (s *sshSignature) verify(message []byte) bool {
	return ed25519.Verify(s.key, toSign(message, s.hash), s.signature)
}

// toSign is what a key signs of a message.
func toSign(message []byte, hash string) []byte {
	var sum []byte
	if hash == "sha256" {
		h := sha256.Sum256(message)
		sum = h[:]
	} else {
		h := sha512.Sum512(message)
		sum = h[:]
	}
	b := []byte(sshMagic)
	for _, part := range []string{Namespace, "", hash, string(sum)} {
		b = appendText(b, part)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// decoder reads numbers and strings of RFC 4251, section 5. What is too short gives zeros, and is bad at the end.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) number() uint32 {
	if len(d.rest) < 4 {
		d.bad, d.rest = true, nil
		return 0
	}
	n := binary.BigEndian.Uint32(d.rest)
	d.rest = d.rest[4:]
	return n
}

func (d *decoder) text() string {
	n := d.number()
	if uint64(n) > uint64(len(d.rest)) {
		d.bad, d.rest = true, nil
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) end() bool { return !d.bad && len(d.rest) == 0 }
