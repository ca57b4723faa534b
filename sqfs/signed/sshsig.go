package signed

import (
	"bytes"
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

// sshSignature is one of OpenSSH (PROTOCOL.sshsig).
type sshSignature struct {
	key       publicKey
	hash      string // of the message: sha256 or sha512
	signature string // with its type
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
	s.signature = d.text()
	switch {
	case !ok || !d.end() || version != 1:
		return s, errors.New("not a signature of OpenSSH, version 1")
	case namespace != Namespace:
		return s, fmt.Errorf("a signature for %.40q, not for %s", namespace, Namespace)
	case s.hash != "sha256" && s.hash != "sha512":
		return s, fmt.Errorf("a signature with hash %.40q: want sha256 or sha512", s.hash)
	}
	by, err := parseKey(key)
	if err != nil {
		return s, fmt.Errorf("a signature with a key of another type: %w", err)
	}
	s.key = *by
	return s, nil
}

// verify reports whether the key has signed message.
func (s *sshSignature) verify(message []byte) bool {
	return s.key.verify(toSign(message, s.hash), s.signature)
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

func (d *decoder) octet() byte {
	if len(d.rest) < 1 {
		d.bad = true
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
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
