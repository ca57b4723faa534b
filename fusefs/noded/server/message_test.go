package server

import (
	"reflect"
	"testing"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/wire"
)

// TestMessages wants every field of every message to arrive, those too that are added to the counters of an image later.
func TestMessages(t *testing.T) {
	next := uint64(100)
	for _, m := range []struct{ sent, got wire.Message }{
		{new(setting), new(setting)},
		{new(request), new(request)},
		{new(reply), new(reply)},
		{new(imageStats), new(imageStats)},
	} {
		fill(reflect.ValueOf(m.sent).Elem(), &next)
		if r, ok := m.sent.(*reply); ok {
			r.Stats = nil // these are imageStats
		}
		if s, ok := m.sent.(*imageStats); ok {
			s.id = 99
		}
		if err := wire.Decode(wire.Encode(m.sent), m.got); err != nil {
			t.Errorf("%T: %v", m.sent, err)
		} else if !reflect.DeepEqual(m.sent, m.got) {
			t.Errorf("sent %+v, got %+v", m.sent, m.got)
		}
	}
}

// fill sets all that is exported to something, each time something else.
func fill(v reflect.Value, next *uint64) {
	*next++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				fill(f, next)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), next)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), next)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), next)
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]fusefs.Histogram{"read": {Sum: 7}, "lookup": {}}))
	case reflect.String:
		v.SetString(string(rune(*next)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(*next % 256)
	default:
		v.SetInt(int64(*next))
	}
}

// Of many images the counters come in several messages.
func TestStatsOfMany(t *testing.T) {
	needRoot(t)
	image, _ := newImage(t, 1, 1000)
	n := newNode(t, Config{})
	m := n.mount(image, nil)
	const images = 2000
	for k := range images {
		if _, err := n.server.Open(Image{ID: uint64(10 + k)}, m.file, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	stats, err := n.server.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if len(stats.Images) != images+1 {
		t.Errorf("counters of %d images, want %d", len(stats.Images), images+1)
	}
	for k := range images {
		n.server.Forget(uint64(10 + k))
	}
	if stats, err = n.server.Stats(); err != nil || len(stats.Images) != 1 {
		t.Errorf("counters of %d images after all but one were forgotten: %v", len(stats.Images), err)
	}
}
