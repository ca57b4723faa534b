// Package wire is the form of the messages between the processes of one program: numbers and strings of any bytes,
// one after the other. A type says once, in Fields, what it consists of, which both writes and reads it.
//
// This is instead of encoding/gob and encoding/json because these processes live for milliseconds: the packages
// prepare tables at every start and look into each type by reflection before its first message. Nor does JSON keep
// strings that are not UTF-8.
package wire

import (
	"encoding/binary"
	"errors"
)

// A Message visits its fields in an order that never changes.
type Message interface {
	Fields(*Coder)
}

// Coder writes or reads fields.
type Coder struct {
	buf     []byte // written so far, or still to be read
	reading bool
	short   bool // something was missing or wrong
}

// Encode returns m in the form that Decode reads.
func Encode(m Message) []byte {
	var c Coder
	m.Fields(&c)
	return c.buf
}

// Decode fills m, whose fields should be zero, from b, all of it.
func Decode(b []byte, m Message) error {
	c := Coder{buf: b, reading: true}
	m.Fields(&c)
	if c.short || len(c.buf) > 0 {
		return errors.New("malformed message")
	}
	return nil
}

// Int visits an integer.
func Int[T ~int | ~int64 | ~uint32 | ~uint64](c *Coder, v *T) {
	if !c.reading {
		c.buf = binary.AppendUvarint(c.buf, uint64(*v))
		return
	}
	n, size := binary.Uvarint(c.buf)
	if size <= 0 {
		c.fail()
		return
	}
	*v, c.buf = T(n), c.buf[size:]
}

// Bool visits a truth value.
func (c *Coder) Bool(v *bool) {
	n := 0
	if *v {
		n = 1
	}
	Int(c, &n)
	*v = n != 0
}

// String visits a string of any bytes.
func String[T ~string](c *Coder, v *T) {
	n := len(*v)
	Int(c, &n)
	switch {
	case !c.reading:
		c.buf = append(c.buf, *v...)
	case n < 0 || n > len(c.buf):
		c.fail()
	default:
		*v, c.buf = T(c.buf[:n]), c.buf[n:]
	}
}

// Slice visits the elements of a slice, each of which takes at least one byte, with element. None and nil are the same.
func Slice[T any](c *Coder, v *[]T, element func(*Coder, *T)) {
	n := len(*v)
	Int(c, &n)
	if c.reading {
		if n < 0 || n > len(c.buf) {
			c.fail()
			return
		}
		if n > 0 {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		element(c, &(*v)[i])
	}
}

// Strings visits a slice of strings.
func (c *Coder) Strings(v *[]string) { Slice(c, v, String) }

// fail ends the reading: nothing is left for the fields that follow.
func (c *Coder) fail() {
	c.short = true
	c.buf = nil
}
