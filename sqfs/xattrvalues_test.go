package sqfs

import (
	"bytes"
	"testing"
)

// TestXattrValues compares the values of a walk with those asked for by name.
func TestXattrValues(t *testing.T) {
	n := 0
	for _, path := range []string{"testdata/xattr-zstd.sqfs", "testdata/xattr-ng-zstd.sqfs", "testdata/stored.sqfs"} {
		img := openTest(t, path)
		root := find(t, img)
		for v, err := range img.Walk(&root) {
			if err != nil {
				t.Fatal(err)
			}
			var names, want []string
			for x, err := range img.Xattrs(&v.Inode) {
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, x.Name)
			}
			for x, err := range img.XattrValues(&v.Inode, nil) {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, x.Name)
				value, err := img.AppendXattr(nil, &v.Inode, x.Name)
				if err != nil || !bytes.Equal(value, x.Value) {
					t.Errorf("%s: %s: %q differs from %q, %v", v.Path, x.Name, x.Value, value, err)
				}
				n++
			}
			if _, has := v.Inode.XattrSet(); has != (len(want) > 0) || len(names) != len(want) {
				t.Errorf("%s: names %q, want %q", v.Path, names, want)
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d values", n)
	}
}
