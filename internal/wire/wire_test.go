package wire

import (
	"reflect"
	"testing"
)

type message struct {
	N       int
	Big     int64
	U       uint64
	Yes, No bool
	Text    string
	List    []string
	Nested  []item
}

type item struct{ Name string }

func (m *message) Fields(c *Coder) {
	Int(c, &m.N)
	Int(c, &m.Big)
	Int(c, &m.U)
	c.Bool(&m.Yes)
	c.Bool(&m.No)
	String(c, &m.Text)
	c.Strings(&m.List)
	Slice(c, &m.Nested, func(c *Coder, i *item) { String(c, &i.Name) })
}

var full = message{-1, -1 << 63, 1<<64 - 1, true, false, "a\x00\xff\n", []string{"", "é"}, []item{{"x"}, {}}}

func TestRoundTrip(t *testing.T) {
	for _, in := range []message{{}, full} {
		var out message
		if err := Decode(Encode(&in), &out); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(in, out) {
			t.Errorf("%+v became %+v", in, out)
		}
	}
}

// Every message that ends early, and one that does not end, is refused.
func TestMalformed(t *testing.T) {
	b := Encode(&full)
	for n := range b {
		if Decode(b[:n], new(message)) == nil {
			t.Errorf("%d bytes of %d are taken", n, len(b))
		}
	}
	if Decode(append(b, 0), new(message)) == nil {
		t.Error("one byte more is taken")
	}
}

// Lengths that lie neither panic nor allocate by what they say.
func FuzzDecode(f *testing.F) {
	f.Add(Encode(&full))
	f.Add([]byte{0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if Decode(b, &m) != nil {
			return
		}
		var again message
		if err := Decode(Encode(&m), &again); err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%+v became %+v: %v", m, again, err)
		}
	})
}
