package hostile

import (
	"math"
	"strings"
)

// dirCases are wrong in the listing or the index of a directory.
func dirCases() []spec {
	return []spec{
		{class: 7, name: "entry-past-the-inodes", wrong: "an entry leads behind the inode table", want: Partly, bad: "sub", edit: set("sub.run0.start", math.MaxUint32)},
		{class: 7, name: "entry-offset-65535", wrong: "an entry leads behind its metadata block", want: Partly, bad: "sub/one", edit: set("sub.entry0.offset", 65535)},
		{class: 7, name: "entry-offset-8192", wrong: "an entry leads to the end of its metadata block", want: Partly, bad: "big/" + bigEntries()[0].name, edit: set("big.entry0.offset", 8192)},
		{class: 7, name: "entry-in-the-middle", wrong: "an entry leads into the middle of an inode", want: Either, bad: "sub/one", edit: add("sub.entry0.offset", 1), expect: unknown("sub/one")},
		{class: 7, name: "entry-to-the-wrong-block", wrong: "entries lead into the middle of a metadata block header", want: Partly, bad: "sub", edit: add("sub.run0.start", 1)},
		{class: 19, name: "entry-to-another-file", wrong: "an entry leads to another file: a hard link", want: Fine, edit: copyOf("sub.entry0.offset", "ids.entry0.offset"), expect: sameFile("sub/one", "ids/group")},

		{class: 10, name: "name-dot-dot", wrong: "an entry is called ..", want: Partly, bad: "evil", plan: evil("..")},
		{class: 10, name: "name-dot", wrong: "an entry is called .", want: Partly, bad: "evil", plan: evil(".")},
		{class: 10, name: "name-slash", wrong: "an entry is called /", want: Partly, bad: "evil", plan: evil("/")},
		{class: 10, name: "name-up-and-out", wrong: "an entry is called ../evil", want: Partly, bad: "evil", plan: evil("../evil")},
		{class: 10, name: "name-far-up", wrong: "an entry is called ../../../../tmp/evil", want: Partly, bad: "evil", plan: evil("../../../../tmp/evil")},
		{class: 10, name: "name-absolute", wrong: "an entry is called /tmp/evil", want: Partly, bad: "evil", plan: evil("/tmp/evil")},
		{class: 10, name: "name-slash-inside", wrong: "an entry is called sub/one", want: Partly, bad: "evil", plan: evil("sub/one")},
		{class: 10, name: "name-slash-behind", wrong: "an entry is called one/", want: Partly, bad: "evil", plan: evil("one/")},
		{class: 10, name: "name-nul", wrong: "an entry is called a NUL b", want: Partly, bad: "evil", plan: evil("a\x00b")},
		{class: 10, name: "name-only-nul", wrong: "an entry is called NUL", want: Partly, bad: "evil", plan: evil("\x00")},
		{class: 10, name: "name-dot-dot-nul", wrong: "an entry is called .. and NUL", want: Partly, bad: "evil", plan: evil("..\x00")},
		{class: 10, name: "name-dot-dot-directory", wrong: "a directory is called ..", want: Partly, bad: "evil", plan: evilDir("..")},
		{class: 10, name: "name-255", wrong: "a name as long as Linux allows", want: Fine, plan: evil(strings.Repeat("n", 255))},
		{class: 10, name: "name-256", wrong: "a name as long as the format allows, which Linux cannot have", want: Either, bad: "evil", plan: evil(strings.Repeat("n", 256)), expect: func(im *image) {
			im.files["evil"] = File{Mode: 0o40755, MTime: baseTime, Names: []string{}}
		}},
		{class: 10, name: "name-257", wrong: "a name of 257 bytes, all there", want: Partly, bad: "evil", plan: evil(strings.Repeat("n", 257))},
		{class: 10, name: "name-65536", wrong: "a name of 65536 bytes, most of them elsewhere", want: Partly, bad: "sub", edit: set("sub.entry0.size", 65535)},
		{class: 10, name: "name-dots", wrong: "a file called ..., which is legal", want: Fine, plan: evil("...")},
		{class: 10, name: "name-control", wrong: "a file called newline escape DEL, which is legal", want: Fine, plan: evil("\n\x1b[2J\x7f")},
		{class: 10, name: "name-not-utf8", wrong: "a file called ff fe, which is legal", want: Fine, plan: evil("\xff\xfe")},
		{class: 10, name: "name-backslash", wrong: "a file called ..\\evil, which is legal on Linux", want: Fine, plan: evil("..\\evil")},

		{class: 11, name: "names-twice", wrong: "two entries of one name", want: Partly, bad: "evil", plan: list("a", "b", "b", "c")},
		{class: 11, name: "names-unsorted", wrong: "a then c then b", want: Partly, bad: "evil", plan: list("a", "c", "b")},
		{class: 11, name: "names-signed", wrong: "sorted as signed bytes", want: Partly, bad: "evil", plan: list("\x80", "a")},
		{class: 11, name: "names-unsorted-last", wrong: "the 300th name is not sorted", want: Partly, bad: "big", edit: put("big.entry299.name", "0")},
		{class: 11, name: "names-unsorted-across-runs", wrong: "the first name of the second run is the last of the first", want: Partly, bad: "big", plan: func(b *builder) { b.at("big").entries[256].name = b.at("big").entries[255].name }},
		{class: 11, name: "names-prefix", wrong: "a, aa, ab, b, which is sorted", want: Fine, plan: list("a", "aa", "ab", "b")},
		{class: 12, name: "link-then-directory", wrong: "a symlink to .. and then a directory of the same name with a file", want: Partly, bad: "evil", plan: linkThen(dir(entry{"pwned", file([]byte("pwned"))}))},
		{class: 12, name: "link-then-file", wrong: "a symlink to ../pwned and then a file of the same name", want: Partly, bad: "evil", plan: linkThen(file([]byte("pwned")))},
		{class: 12, name: "link-in-front", wrong: "a symlink that leads out, sorted before what others may write through it; legal", want: Fine, plan: outwardLinks},

		{class: 2, name: "run-257", wrong: "a run of 257 entries", want: Partly, bad: "sub", edit: set("sub.run0.count", 256)},
		{class: 2, name: "run-max", wrong: "a run of 2^32 entries", want: Partly, bad: "sub", edit: set("sub.run0.count", math.MaxUint32)},
		{class: 2, name: "run-2-31", wrong: "a run of 2^31+1 entries", want: Partly, bad: "sub", edit: set("sub.run0.count", uint64(1<<31))},
		{class: 2, name: "run-3", wrong: "a run of 3 entries, of which one is not there", want: Partly, bad: "sub", edit: add("sub.run0.count", 1)},
		{class: 2, name: "listing-max", wrong: "a listing of 2^32-1 bytes", want: Partly, bad: "big", edit: set("big.size", math.MaxUint32)},
		{class: 2, name: "listing-65535", wrong: "a basic directory with a listing of 65535 bytes", want: Partly, bad: "sub", edit: set("sub.size", 65535)},
		{class: 5, name: "listing-0", wrong: "a listing of 0 bytes, not even . and ..", want: Fine, edit: set("sub.size", 0), expect: emptySub},
		{class: 5, name: "listing-1", wrong: "a listing of 1 byte", want: Fine, edit: set("sub.size", 1), expect: emptySub},
		{class: 5, name: "listing-without-3", wrong: "a size that does not count . and .., as old tools write it", want: Fine, edit: add("sub.size", -3)},
		{class: 5, name: "listing-ends-in-a-run", wrong: "a size that ends inside a run, whose count is right", want: Fine, edit: add("sub.size", -8)},
		{class: 7, name: "listing-elsewhere", wrong: "a listing behind its table", want: Partly, bad: "sub", edit: set("sub.start", uint64(1<<31))},
		{class: 7, name: "listing-offset-65535", wrong: "a listing behind its metadata block", want: Partly, bad: "sub", edit: set("sub.offset", 65535)},
		{class: 7, name: "listing-in-the-middle", wrong: "a listing in the middle of an entry of another", want: Partly, bad: "sub", edit: add("sub.offset", 5)},
		{class: 7, name: "listing-empty-elsewhere", wrong: "an empty listing points nowhere, as mksquashfs has it", want: Fine, edit: set("sub/two.start", math.MaxUint32, "sub/two.offset", 65535)},
		{class: 19, name: "listing-of-another", wrong: "two directories share a listing", want: Fine, plan: sharedListing, edit: func(im *image) {
			for _, f := range []string{"start", "offset", "size"} {
				im.set("b."+f, im.get("a."+f))
			}
		}, expect: sameFile("b", "a")},

		{class: 7, name: "index-elsewhere", wrong: "the index leads behind the table", want: Fine, edit: set("big.index0.start", uint64(1<<31))},
		{class: 9, name: "index-max", wrong: "the index has position 2^32-1", want: Fine, edit: set("big.index0.pos", math.MaxUint32)},
		{class: 7, name: "index-in-a-run", wrong: "the index leads into the middle of a run", want: Fine, edit: add("big.index0.pos", 1)},
		{class: 7, name: "index-wrong-name", wrong: "the index has a name that is not there", want: Fine, edit: put("big.index0.name", "a")},
		{class: 7, name: "index-late-name", wrong: "the index has a name that belongs before its place", want: Fine, edit: put("big.index0.name", "entry-000")},
		{class: 9, name: "index-name-max", wrong: "the index has a name of 4 GiB", want: Fine, edit: set("big.index0.size", math.MaxUint32)},
		{class: 2, name: "index-65535", wrong: "the index has 65535 entries", want: Fine, edit: set("big.index_count", 65535)},
		{class: 7, name: "index-missing", wrong: "a directory of two blocks without index", want: Fine, edit: set("big.index_count", 0)},
	}
}

// evil adds a directory with one file of that name.
func evil(name string) func(*builder) {
	return func(b *builder) { b.root.attach("evil", dir(entry{name, file([]byte("evil"))})) }
}

func evilDir(name string) func(*builder) {
	return func(b *builder) { b.root.attach("evil", dir(entry{name, dir(entry{"pwned", file([]byte("evil"))})})) }
}

// list adds a directory with files of these names in this order.
func list(names ...string) func(*builder) {
	return func(b *builder) {
		d := dir()
		for _, name := range names {
			d.entries = append(d.entries, entry{name, file([]byte(name))})
		}
		b.root.attach("evil", d)
	}
}

// linkThen is CVE-2021-41072: who makes the link first and then opens the second entry
// writes where the link leads.
func linkThen(second *node) func(*builder) {
	return func(b *builder) {
		b.root.attach("evil", dir(entry{"x", link("../../outside")}, entry{"x", second}))
	}
}

// outwardLinks are legal: a reader passes them on, and an extractor must not follow them.
func outwardLinks(b *builder) {
	b.root.attach("evil", dir(
		entry{"a", link("..")}, entry{"b", link("../..")}, entry{"c", link("/")}, entry{"d", link("/etc/passwd")},
		entry{"e", link("../../../../../../../../tmp")}, entry{"f", link("f")},
	))
}

// unknown takes a path out of what is known to be right.
func unknown(name string) func(*image) {
	return func(im *image) { delete(im.files, name) }
}

// sameFile says that a reader finds at one path what is at another.
func sameFile(name, as string) func(*image) {
	return func(im *image) {
		im.files[name] = im.files[as]
		for _, child := range im.files[as].Names {
			im.files[name+"/"+child] = im.files[as+"/"+child]
		}
	}
}

func emptySub(im *image) {
	f := im.files["sub"]
	f.Names = nil
	im.files["sub"] = f
}

func sharedListing(b *builder) {
	b.root.attach("a", dir(entry{"one", file([]byte("1"))}, entry{"two", file([]byte("2"))}))
	b.root.attach("b", dir())
}
