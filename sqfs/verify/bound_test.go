package verify

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/imagetest"
)

const (
	deepLevels = 500
	deepName   = 250
	deepFiles  = 2000
)

// deepImage has 500 directories in each other, with names of 250 bytes, and 2000 entries
// in the last. All metadata is stored. With typ TypeFile each entry is a file with one
// block of its own that cannot be expanded; with another type, entries say that they are
// a file and are not.
func deepImage(typ sqfs.Type) []byte {
	le := binary.LittleEndian
	// ref returns where a position of a table is: the offset of its block and that in it.
	ref := func(pos int) (block uint32, off uint16) {
		return uint32(pos / 8192 * 8194), uint16(pos % 8192)
	}
	var inodes, dirs []byte
	header := func(typ sqfs.Type, number int) {
		inodes = le.AppendUint16(inodes, uint16(typ))
		inodes = le.AppendUint16(inodes, 0o755)
		inodes = append(inodes, make([]byte, 8)...) // owner and time
		inodes = le.AppendUint32(inodes, uint32(number))
	}
	entry := func(pos, number int, typ sqfs.Type, name string) {
		block, off := ref(pos)
		dirs = le.AppendUint32(dirs, 0) // one entry
		dirs = le.AppendUint32(dirs, block)
		dirs = le.AppendUint32(dirs, uint32(number))
		dirs = le.AppendUint16(dirs, off)
		dirs = le.AppendUint16(dirs, 0)
		dirs = le.AppendUint16(dirs, uint16(typ))
		dirs = le.AppendUint16(dirs, uint16(len(name)-1))
		dirs = append(dirs, name...)
	}
	const dirSize, fileSize = 32, 36
	for i := range deepLevels {
		listing := len(dirs)
		if i < deepLevels-1 {
			entry(dirSize*(i+1), i+2, sqfs.TypeDir, strings.Repeat("d", deepName))
		} else {
			for j := range deepFiles {
				entry(dirSize*deepLevels+fileSize*j, deepLevels+1+j, sqfs.TypeFile, fmt.Sprintf("%04d", j))
			}
		}
		block, off := ref(listing)
		header(sqfs.TypeDir, i+1)
		inodes = le.AppendUint32(inodes, block)
		inodes = le.AppendUint32(inodes, 2) // links
		inodes = le.AppendUint16(inodes, uint16(len(dirs)-listing+3))
		inodes = le.AppendUint16(inodes, off)
		inodes = le.AppendUint32(inodes, uint32(max(i, 1)))
	}
	for j := range deepFiles {
		header(typ, deepLevels+1+j)
		inodes = le.AppendUint32(inodes, uint32(96+j)) // of a file: its block
		inodes = le.AppendUint32(inodes, 0xffffffff)   // no fragment
		inodes = le.AppendUint32(inodes, 0)
		inodes = le.AppendUint32(inodes, 4096) // its length
		inodes = le.AppendUint32(inodes, 16)   // and that of the block
	}
	image := make([]byte, 96+deepFiles+16) // the blocks are zeros, which is no zlib stream
	table := func(b []byte) (start uint64) {
		start = uint64(len(image))
		for len(b) > 0 {
			n := min(len(b), 8192)
			image = le.AppendUint16(image, uint16(n)|0x8000)
			image = append(image, b[:n]...)
			b = b[n:]
		}
		return start
	}
	inodeTable, dirTable, ids := table(inodes), table(dirs), table(make([]byte, 4))
	idTable := uint64(len(image))
	image = le.AppendUint64(image, ids)
	sb := le.AppendUint32(nil, 0x73717368)
	sb = le.AppendUint32(sb, deepLevels+deepFiles)
	sb = le.AppendUint32(sb, 0)
	sb = le.AppendUint32(sb, 4096)
	sb = le.AppendUint32(sb, 0)
	for _, v := range []uint16{1, 12, 0, 1, 4, 0} { // gzip, log of the block size, flags, ids, version
		sb = le.AppendUint16(sb, v)
	}
	const none = 1<<64 - 1
	for _, v := range []uint64{0, uint64(len(image)), idTable, none, inodeTable, dirTable, none, none} {
		sb = le.AppendUint64(sb, v)
	}
	copy(image, sb)
	return image
}

// TestLongPaths has 125 KB of path for each fault: the list is cut off by its length in
// bytes, not only in faults, and nothing is kept or made that is not in it.
func TestLongPaths(t *testing.T) {
	for _, typ := range []sqfs.Type{sqfs.TypeFile, sqfs.TypeFifo} {
		t.Run(typ.String(), func(t *testing.T) {
			img := imagetest.New(t, deepImage(typ))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r, err := Run(t.Context(), img, &Options{Data: true, Workers: 2})
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			if r.DamageCount != deepFiles {
				t.Errorf("%d places, want %d", r.DamageCount, deepFiles)
			}
			text := 0
			for _, d := range r.Damage {
				if len(d.Path) < deepLevels*deepName-deepName || !d.HasPath() {
					t.Fatalf("path of %d bytes", len(d.Path))
				}
				text += len(d.Path) + len(d.Err.Error())
			}
			if text > maxText || text < maxText*9/10 {
				t.Errorf("%d bytes of text in %d places", text, len(r.Damage))
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 2*maxText {
				t.Errorf("%d bytes allocated", n)
			}
		})
	}
}

// TestFull adds what is listed and what is not, in turn, to a list that is full.
func TestFull(t *testing.T) {
	v := verification{faults: make(map[cause]fault), room: maxText}
	at := sqfs.Visit{Path: []byte("x")}
	fail := func(i int) fault {
		return v.damaged(&at, -1, &sqfs.FormatError{What: fmt.Sprint(i), Off: int64(i)})
	}
	for i := range maxDamage {
		if f := fail(i); f != fault(i+1) {
			t.Fatalf("%d is listed at %d", i, f)
		}
	}
	for range 2 {
		if f := fail(maxDamage); f != unlisted {
			t.Errorf("listed at %d", f)
		}
	}
	fail(3)
	if r := &v.report; r.DamageCount != maxDamage+2 || r.Damage[maxDamage-1].Paths != 1 || r.Damage[3].Paths != 2 {
		t.Errorf("%d, last %+v", r.DamageCount, r.Damage[maxDamage-1])
	}
}

// TestKeep never has more in a map of what was seen than there may be.
func TestKeep(t *testing.T) {
	m := make(map[uint32]struct{})
	for i := range uint32(maxSeen + 1) {
		keep(m, i, struct{}{})
		if _, has := m[i]; !has || len(m) > maxSeen {
			t.Fatalf("%d: %v, %d in all", i, has, len(m))
		}
	}
	if len(m) != 1 {
		t.Errorf("%d are left", len(m))
	}
}
