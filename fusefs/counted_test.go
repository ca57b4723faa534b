package fusefs

import (
	"reflect"
	"testing"
)

// What requests decode is counted, and what they find decoded already.
func TestCountedBlocks(t *testing.T) {
	f := openImage(t, mksquashfs(t, manyFiles(t, 50), "-b", "128K"), Options{})
	read := func(name string) {
		t.Helper()
		ino := lookUp(t, f, name)
		if _, code := f.read(uint64(ino.Ref)+nodeBase, 0, make([]byte, 300<<10)); !code.Ok() {
			t.Fatal(code)
		}
	}
	read("small-0003")
	one := f.Stats()
	if one.Wanted != 1 || one.Missed != 1 || one.Decoded != 1 || one.DecodedBytes == 0 {
		t.Errorf("after one small file: %+v", one)
	}
	read("small-0002") // in the same fragment
	two := f.Stats()
	if two.Wanted != 2 || two.Missed != 1 || two.Decoded != 1 || two.DecodedBytes != one.DecodedBytes {
		t.Errorf("after another one: %+v", two)
	}
	two.Latency = map[string]Histogram{"read": {Counts: [maxBuckets]uint64{7}}}
	sum := one
	sum.Add(&two)
	sum.Add(&two)
	if h := sum.Latency["read"]; sum.Read != 5 || sum.Wanted != 5 || sum.ReadBytes != one.ReadBytes+2*two.ReadBytes || h.Count() != 14 {
		t.Errorf("the sum is %+v", sum)
	}
	if one.Latency != nil || two.Latency["read"].Counts[0] != 7 {
		t.Error("the sum changed what was added")
	}
}

// No counter is left out of a sum, or of a difference.
func TestStatsAdd(t *testing.T) {
	var one, sum Stats
	v := reflect.ValueOf(&one).Elem()
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Uint64 {
			v.Field(i).SetUint(1)
		}
	}
	sum.Add(&one)
	sum.Add(&one)
	v = reflect.ValueOf(sum)
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Uint64 && v.Field(i).Uint() != 2 {
			t.Errorf("%s is not added", v.Type().Field(i).Name)
		}
	}
	one.Latency = map[string]Histogram{"read": {Counts: [maxBuckets]uint64{7}}}
	sum.Add(&one)
	d := sum.Since(&one)
	v = reflect.ValueOf(d)
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Uint64 && v.Field(i).Uint() != 2 {
			t.Errorf("%s is not subtracted", v.Type().Field(i).Name)
		}
	}
	if h := d.Latency["read"]; h.Count() != 0 {
		t.Errorf("%d requests since", h.Count())
	}
	if d = one.Since(&sum); !reflect.DeepEqual(d, one) {
		t.Errorf("begun anew: %+v, want %+v", d, one)
	}
}
