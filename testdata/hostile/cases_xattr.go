package hostile

import (
	"fmt"
	"math"
	"strings"
)

// xattrCases are wrong in extended attributes. set0 is that of x, whose only value lies out
// of line.
func xattrCases() []spec {
	return []spec{
		{class: 16, name: "set-out-of-range", wrong: "an inode with row 1000 of the xattr ids", want: Partly, bad: "x/fifo", edit: set("x/fifo.xattr", 1000)},
		{class: 16, name: "set-max-1", wrong: "an inode with row 2^32-2 of the xattr ids", want: Partly, bad: "x/fifo", edit: set("x/fifo.xattr", math.MaxUint32-1)},
		{class: 16, name: "set-of-another", wrong: "two inodes share a set, which is legal", want: Fine, edit: copyOf("x/fifo.xattr", "x/sock.xattr"), expect: func(im *image) {
			f := im.files["x/fifo"]
			f.Xattrs = im.files["x/sock"].Xattrs
			im.files["x/fifo"] = f
		}},
		{class: 16, name: "pairs-0", wrong: "a set of no attributes", want: Partly, bad: "x/file", edit: setOf("x/file", "count", 0)},
		{class: 16, name: "pairs-max", wrong: "a set of 2^32-1 attributes", want: Partly, bad: "x/file", edit: setOf("x/file", "count", math.MaxUint32)},
		{class: 16, name: "pairs-60000", wrong: "a set of 60000 attributes, most of them not there", want: Partly, bad: "x/file", edit: setOf("x/file", "count", 60000)},
		{class: 16, name: "pairs-size-max", wrong: "a set that claims to have 2^32-1 bytes, which is only information", want: Fine, edit: setOf("x/file", "size", math.MaxUint32)},
		{class: 16, name: "set-past-the-end", wrong: "a set behind the table", want: Partly, bad: "x/file", edit: setOf("x/file", "ref", 1<<40)},
		{class: 16, name: "set-64-bits", wrong: "a set at a reference of 64 bits", want: Partly, bad: "x/file", edit: setOf("x/file", "ref", 1<<63)},
		{class: 16, name: "set-offset-65535", wrong: "a set behind its metadata block", want: Partly, bad: "x/file", edit: setOf("x/file", "ref", 65535)},
		{class: 16, name: "pair-unknown-type", wrong: "an attribute in name space 77, which is left out", want: Fine, edit: set("x/file.xattr0.type", 77), expect: withoutShort},
		{class: 16, name: "pair-unknown-flag", wrong: "an attribute with bit 15 of its type set", want: Either, bad: "x/file", edit: set("x/file.xattr0.type", 1<<15)},
		{class: 16, name: "pair-name-65535", wrong: "a name of 65535 bytes", want: Partly, bad: "x/file", edit: set("x/file.xattr0.name_size", 65535)},
		{class: 16, name: "pair-name-0", wrong: "an empty name", want: Either, bad: "x/sock", edit: set("x/sock.xattr0.name_size", 0), expect: unknown("x/sock")},
		{class: 16, name: "pair-name-nul", wrong: "a name with a zero byte", want: Partly, bad: "x/file", edit: put("x/file.xattr0.name", "s\x00")},
		{class: 16, name: "pair-twice", wrong: "two attributes of one name", want: Either, bad: "x/file", plan: func(b *builder) {
			x := b.at("x/file")
			x.xattrs = append(x.xattrs, x.xattrs[0])
		}},
		{class: 16, name: "value-max", wrong: "a value of 2^32-1 bytes", want: Partly, bad: "x/file", edit: set("x/file.xattr0.size", math.MaxUint32)},
		{class: 16, name: "value-2-31", wrong: "a value of 2^31 bytes", want: Partly, bad: "x/file", edit: set("x/file.xattr0.size", uint64(1<<31))},
		{class: 16, name: "value-past-the-end", wrong: "the last value ends behind the table", want: Partly, bad: "x/file", edit: set("value1.size", 60000)},
		{class: 16, name: "value-65537", wrong: "a value a byte longer than Linux allows, all there", want: Partly, bad: "x/file", plan: longValue(65537)},
		{class: 16, name: "value-65536", wrong: "a value as long as Linux allows", want: Fine, plan: longValue(65536)},
		{class: 16, name: "away-short", wrong: "a reference to a value that has 7 bytes", want: Partly, bad: "x/file", edit: set("x/file.xattr1.size", 7)},
		{class: 16, name: "away-nowhere", wrong: "a value out of line behind the table", want: Partly, bad: "x/file", edit: set("x/file.xattr1.ref", 1<<47)},
		{class: 16, name: "away-64-bits", wrong: "a value out of line at a reference of 64 bits", want: Partly, bad: "x/file", edit: set("x/file.xattr1.ref", uint64(1<<63))},
		{class: 16, name: "away-max", wrong: "a value out of line of 2^32-1 bytes", want: Partly, bad: "x/file", edit: set("value1.size", math.MaxUint32)},
		{class: 16, name: "away-itself", wrong: "a reference to a value leads to itself, which makes 8 bytes", want: Fine, edit: valueAt("x/file.xattr1.size"), expect: func(im *image) {
			im.files["x/file"].Xattrs["user.long"] = string(le.AppendUint64(nil, im.get("x/file.xattr1.ref")))
		}},
		{class: 16, name: "away-in-the-middle", wrong: "a value out of line in the middle of another", want: Partly, bad: "x/file", edit: add("x/file.xattr1.ref", 8)},
		{class: 16, name: "away-inline", wrong: "a value out of line that lies inside the list of another inode, as mksquashfs does it", want: Fine, edit: valueAt("x/block.xattr0.size"), expect: func(im *image) {
			im.files["x/file"].Xattrs["user.long"] = "block"
		}},
		{class: 21, name: "sets-3000", wrong: "3000 sets of attributes", want: Fine, plan: manySets},
		{class: 21, name: "pairs-1000", wrong: "1000 attributes of one file, whose names alone have 60 KiB", want: Fine, plan: manyPairs(1000)},
		{class: 21, name: "pairs-20000", wrong: "20000 attributes of one file, more than Linux can list", want: Either, bad: "x/file", plan: manyPairs(20000)},
		{class: 21, name: "values-shared", wrong: "1000 attributes of one file that share a value of 65536 bytes", want: Fine, plan: sharedValues},
	}
}

// setOf changes a field of the set of an inode.
func setOf(name, field string, v uint64) func(*image) {
	return func(im *image) { im.set(fmt.Sprintf("set%d.%s", im.get(name+".xattr"), field), v) }
}

func withoutShort(im *image) { delete(im.files["x/file"].Xattrs, "user.short") }

func longValue(n int) func(*builder) {
	return func(b *builder) {
		x := b.at("x/file")
		x.xattrs[1].value = strings.Repeat("v", n)
	}
}

// valueAt lets the value of user.long of x/file be the one at a field.
func valueAt(field string) func(*image) {
	return func(im *image) {
		at := im.pos(field)[0] - im.pos("kv.meta0")[0] - 2 // all of them are in the first block
		im.set("x/file.xattr1.ref", uint64(at))
	}
}

func manySets(b *builder) {
	d := dir()
	d.long = true
	for i := range 3000 {
		n := file(nil)
		n.long = true
		n.xattrs = []xattr{{name: "n", value: fmt.Sprint(i)}}
		d.entries = append(d.entries, entry{fmt.Sprintf("%04d", i), n})
	}
	b.root.attach("sets", d)
}

func manyPairs(n int) func(*builder) {
	return func(b *builder) {
		x := b.at("x/file")
		x.xattrs = nil
		for i := range n {
			x.xattrs = append(x.xattrs, xattr{name: fmt.Sprintf("%06d%s", i, strings.Repeat("n", 48)), value: "v"})
		}
	}
}

// sharedValues makes all attributes of a file lead to one value.
func sharedValues(b *builder) {
	x := b.at("x/file")
	x.xattrs = nil
	value := strings.Repeat("v", 65536)
	for i := range 1000 {
		x.xattrs = append(x.xattrs, xattr{name: fmt.Sprintf("n%03d", i), value: value, away: true})
	}
}
