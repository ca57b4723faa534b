package signed

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Suffix is what the name of a signature has behind that of its image.
const Suffix = ".sig"

// MaxHead is how long what is in front of the list may be, in bytes.
const MaxHead = 4 << 10

// Statement is what is signed of an image.
type Statement struct {
	Size   int64 // of the file, bytes
	Block  int64 // bytes that a hash is of: a power of two from 4 KiB to 1 MiB
	Hashes [sha256.Size]byte
}

const (
	minBlock     = 4 << 10
	maxBlock     = 1 << 20
	defaultBlock = 128 << 10 // a read of less costs one of this: what images are made of are such blocks
	// maxList bounds the list, in bytes: it is kept in memory. Blocks of larger images are larger.
	maxList = 16 << 20
)

// MaxBytes is how long a signature may be.
const MaxBytes = MaxHead + maxList

// MaxSize is the size of the largest image that can be signed, in bytes.
const MaxSize = maxList / sha256.Size * maxBlock

// blockFor is how long the blocks of a file of size bytes are made.
func blockFor(size int64) int64 {
	block := int64(defaultBlock)
	for listSize(size, block) > maxList {
		block *= 2
	}
	return block
}

func listSize(size, block int64) int64 { return (size + block - 1) / block * sha256.Size }

// ListSize is how long the list is, in bytes.
func (s *Statement) ListSize() int64 { return listSize(s.Size, s.Block) }

// String is the statement as it is signed.
func (s *Statement) String() string {
	return fmt.Sprintf("squire image 1\nsize %d\nblock %d\nhashes %x\n", s.Size, s.Block, s.Hashes)
}

// ParseStatement reads what String writes, and nothing else.
func ParseStatement(text string) (*Statement, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 5 {
		return nil, errors.New("not a signature of an image")
	}
	s := new(Statement)
	var ok [3]bool
	s.Size, ok[0] = numberAfter(lines[1], "size ")
	s.Block, ok[1] = numberAfter(lines[2], "block ")
	hash, found := strings.CutPrefix(lines[3], "hashes ")
	if len(hash) == hex.EncodedLen(len(s.Hashes)) {
		_, err := hex.Decode(s.Hashes[:], []byte(hash))
		ok[2] = found && err == nil
	}
	switch {
	case ok != [3]bool{true, true, true}, s.String() != text:
		return nil, errors.New("not a signature of an image, or one of a later version")
	case s.Size < 0 || s.Size > MaxSize || s.Block < minBlock || s.Block > maxBlock || s.Block&(s.Block-1) != 0 || s.ListSize() > maxList:
		return nil, fmt.Errorf("signature of %d bytes in blocks of %d: out of range", s.Size, s.Block)
	}
	return s, nil
}

func numberAfter(line, prefix string) (int64, bool) {
	text, found := strings.CutPrefix(line, prefix)
	n, err := strconv.ParseInt(text, 10, 64)
	return n, found && err == nil
}

// Signature is a Statement and who signed it, as far as that is known: nothing is verified until Verify was asked.
type Signature struct {
	Statement
	// Head is the text in front of the list.
	Head string

	by sshSignature
}

// endArmor ends the head.
const endArmor = "-----END SSH SIGNATURE-----\n"

// Parse reads the head of a signature at the beginning of b, of which MaxHead bytes are enough.
func Parse(b []byte) (*Signature, error) {
	b = b[:min(len(b), MaxHead)]
	end := bytes.Index(b, []byte(endArmor))
	begin := bytes.Index(b, []byte(beginArmor))
	if begin < 0 || end < begin {
		return nil, errors.New("not a signature of an image")
	}
	sig := &Signature{Head: string(b[:end+len(endArmor)])}
	st, err := ParseStatement(sig.Head[:begin])
	if err != nil {
		return nil, err
	}
	sig.Statement = *st
	sig.by, err = parseArmor(sig.Head[begin:])
	return sig, err
}

// Verify returns the key of keys that has signed the statement; an error if none has.
func (s *Signature) Verify(keys []Key) (*Key, error) {
	for i := range keys {
		if keys[i].key.blob == s.by.key.blob {
			if !s.by.verify([]byte(s.Statement.String())) {
				return nil, errors.New("the signature is wrong")
			}
			return &keys[i], nil
		}
	}
	return nil, fmt.Errorf("signed with another key (%s)", s.by.key.fingerprint())
}
