package fusefs

import (
	"slices"
	"testing"

	"github.com/squirefs/squire/sqfs"
)

func TestOvertaken(t *testing.T) {
	files := storeJob{keep: true}
	for ref := range sqfs.InodeRef(6) {
		files.parts = append(files.parts, part{ref: 10 + ref})
	}
	tail := storeJob{keep: true, parts: []part{{ref: 11}, {ref: 12, off: 1 << 17}, {ref: 13}}}
	one := storeJob{keep: true, parts: files.parts[:1]}
	block := storeJob{parts: files.parts}
	for _, c := range []struct {
		what    string
		job     storeJob
		last    sqfs.InodeRef // that was read
		reading int32
		want    []sqfs.InodeRef // that are stored
	}{
		{"before anybody came", files, 9, 1, []sqfs.InodeRef{10, 11, 12, 13, 14, 15}},
		{"one reader", files, 12, 1, []sqfs.InodeRef{13, 14, 15}},
		{"two readers", files, 10, 2, []sqfs.InodeRef{15}},
		{"who are at the end", files, 14, 2, nil},
		{"who have gone on", files, 16, 4, []sqfs.InodeRef{10, 11, 12, 13, 14, 15}},
		{"one who has come to the tail of a file", tail, 12, 1, []sqfs.InodeRef{12, 13}},
		{"one file", one, 10, 4, []sqfs.InodeRef{10}},
		{"the rest of a block", block, 12, 4, []sqfs.InodeRef{10, 11, 12, 13, 14, 15}},
	} {
		var f FS
		f.lastRead.Store(uint64(c.last))
		f.reading.Store(c.reading)
		var got []sqfs.InodeRef
		for k, p := range c.job.parts {
			if !f.overtaken(&c.job, k) {
				got = append(got, p.ref)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v are stored, want %v", c.what, got, c.want)
		}
	}
}
