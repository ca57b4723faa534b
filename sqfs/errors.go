package sqfs

import (
	"errors"
	"fmt"
)

// What callers branch on. Every error of this package matches at most one of these
// with [errors.Is]; an error that matches none comes from the source of the bytes
// and wraps what its ReadAt returned.
var (
	// ErrCorrupt matches every [FormatError]: the image breaks the format.
	ErrCorrupt = errors.New("corrupt squashfs image")
	// ErrNotSquashfs says that the bytes do not begin with a squashfs magic.
	ErrNotSquashfs = errors.New("not a squashfs image")
	// ErrVersion says that the image is squashfs, but not version 4.0 little-endian.
	ErrVersion = errors.New("unsupported squashfs version")
	// ErrUnsupported says that the image uses a compressor that cannot be read.
	ErrUnsupported = errors.New("unsupported compression")
)

// FormatError reports bytes that break the format. It matches [ErrCorrupt].
type FormatError struct {
	What string // the object and the rule it breaks
	Off  int64  // byte offset in the image, near the fault; -1 if it has no place
	Err  error  // what a decoder said, or nil
}

// Error says what is wrong and where.
func (e *FormatError) Error() string {
	s := "corrupt image: " + e.What
	if e.Off >= 0 {
		s = fmt.Sprintf("corrupt image at byte %#x: %s", e.Off, e.What)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is reports whether target is [ErrCorrupt].
func (e *FormatError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns the error of the decoder, if one found the fault.
func (e *FormatError) Unwrap() error { return e.Err }

// corrupt makes a FormatError for the bytes at off.
func corrupt(off int64, format string, args ...any) error {
	return &FormatError{What: fmt.Sprintf(format, args...), Off: off}
}
