package hostile

import (
	"fmt"
	"strings"
)

// treeCases are wrong, or large, in how directories and files hang together.
func treeCases() []spec {
	return []spec{
		{class: 1, name: "cycle-1", wrong: "a directory contains itself", want: Partly, bad: "loop", plan: cycle(1)},
		{class: 1, name: "cycle-2", wrong: "a directory contains its parent", want: Partly, bad: "loop/d", plan: cycle(2)},
		{class: 1, name: "cycle-3", wrong: "a directory contains the parent of its parent", want: Partly, bad: "loop/d/d", plan: cycle(3)},
		{class: 1, name: "cycle-50", wrong: "a directory contains what is 50 levels above it", want: Partly, bad: "loop" + strings.Repeat("/d", 49), plan: cycle(50)},
		{class: 1, name: "cycle-root", wrong: "a directory contains the root", want: Partly, bad: "sub", plan: func(b *builder) { b.at("sub").attach("top", b.root) }},
		{class: 1, name: "cycle-root-itself", wrong: "the root contains itself", want: Partly, bad: ".", plan: func(b *builder) { b.root.attach("top", b.root) }},
		{class: 1, name: "cycle-each-other", wrong: "two directories contain each other", want: Partly, bad: "a/b b", plan: func(b *builder) {
			x, y := dir(), dir()
			x.attach("b", y)
			y.attach("a", x)
			b.root.attach("a", x)
			b.root.attach("b", y)
		}},
		{class: 1, name: "two-parents", wrong: "a directory in two places", want: Partly, bad: "zsub", plan: func(b *builder) { b.root.attach("zsub", b.at("sub")) }},
		{class: 1, name: "two-names", wrong: "a directory twice in one directory", want: Partly, bad: "d/2", plan: func(b *builder) {
			to := dir(entry{"f", file(nil)})
			b.root.attach("d", dir(entry{"1", to}, entry{"2", to}))
		}},
		{class: 1, name: "dag-40", wrong: "40 levels of two names for one directory: 2^40 paths", want: Partly, bad: dagBad(40), plan: dag(40)},
		{class: 21, name: "deep-1500", wrong: "1500 levels of directories", want: Fine, plan: deep(1500)},
		{class: 21, name: "deep-5000", wrong: "5000 levels of directories, more than a path can have", want: Either, bad: "deep", plan: deep(5000)},
		{class: 21, name: "wide-100k", wrong: "100000 entries in a directory without index", want: Fine, plan: wide(100000, false)},
		{class: 21, name: "wide-100k-index", wrong: "100000 entries in a directory with an index", want: Fine, plan: wide(100000, true)},
		{class: 21, name: "wide-100k-lying-index", wrong: "100000 entries in a directory whose index leads to its start, again and again", want: Fine, plan: wide(100000, true), edit: lyingIndex},
		{class: 21, name: "wide-runs-of-1", wrong: "4000 entries, each with a run of its own", want: Fine, plan: scattered},
		{class: 21, name: "sparse-5-gib", wrong: "a file of 5 GiB without a byte of data", want: Fine, plan: sparse(5<<30 + 1)},
		{class: 21, name: "sparse-4-gib-edge", wrong: "files of 2^32-1 and 2^32 zeros", want: Fine, plan: func(b *builder) {
			sparse(1<<32 - 1)(b)
			b.root.entries[len(b.root.entries)-1].to.long = true
			b.root.attach("zz", &node{kind: typeFile, long: true, mode: 0o644, mtime: baseTime, size: 1 << 32})
		}},
		{class: 21, name: "links-10000", wrong: "one inode of 10000 names", want: Fine, plan: manyLinks},
		{class: 21, name: "one-fragment", wrong: "2000 files in one fragment", want: Fine, plan: oneFragment},
		{class: 19, name: "shared-blocks", wrong: "1000 files of the same data", want: Fine, plan: func(b *builder) {
			data := pattern("shared", 2*blockSize)
			for i := range 1000 {
				b.root.attach(fmt.Sprintf("zz%03d", i), file(data))
			}
		}, edit: func(im *image) {
			for i := range 1000 {
				im.set(fmt.Sprintf("zz%03d.start", i), im.get("zz000.start"))
			}
		}},
		{class: 19, name: "image-in-itself", wrong: "a file whose data is the image, from its first byte", want: Partly, bad: "self", plan: addSelf, edit: itself(0)},
		{class: 19, name: "image-in-itself-96", wrong: "a file whose data is the image, from behind the superblock", want: Fine, plan: addSelf, edit: itself(superblockSize), expect: contains},
	}
}

// cycle adds a chain of n directories whose last contains the first.
func cycle(n int) func(*builder) {
	return func(b *builder) {
		first := dir()
		last := first
		for range n - 1 {
			next := dir()
			last.attach("d", next)
			last = next
		}
		last.attach("d", first)
		b.root.attach("loop", first)
	}
}

// dag adds levels of directories in which a and b lead to the same.
func dag(levels int) func(*builder) {
	return func(b *builder) {
		top := dir(entry{"f", file([]byte("bottom"))})
		for range levels {
			top = dir(entry{"a", top}, entry{"b", top})
		}
		b.root.attach("dag", top)
	}
}

// dagBad returns the paths at which a directory is found for the second time by who goes
// depth first.
func dagBad(levels int) string {
	var bad []string
	for i := range levels {
		bad = append(bad, "dag/"+strings.Repeat("a/", i)+"b")
	}
	return strings.Join(bad, " ")
}

func deep(n int) func(*builder) {
	return func(b *builder) {
		top := dir(entry{"f", file([]byte("bottom"))})
		for range n {
			top = dir(entry{"d", top})
		}
		b.root.attach("deep", top)
	}
}

func wide(n int, indexed bool) func(*builder) {
	return func(b *builder) {
		d := dir()
		d.long, d.indexed = true, indexed
		var to [10]*node // more inodes would only take longer to make
		for i := range to {
			to[i] = file(nil)
			to[i].long = true
		}
		for i := range n {
			d.entries = append(d.entries, entry{fmt.Sprintf("f%06d", i), to[i%len(to)]})
		}
		b.root.attach("wide", d)
	}
}

// lyingIndex makes all entries of the index lead to the first run.
func lyingIndex(im *image) {
	for i := range im.get("wide.index_count") {
		at := fmt.Sprintf("wide.index%d.", i)
		im.set(at+"pos", i)
		im.set(at+"start", im.get("wide.start"))
	}
}

// scattered has entries whose inodes are far apart in turn.
func scattered(b *builder) {
	low, high, d := dir(), dir(), dir()
	for i := range 2000 {
		low.entries = append(low.entries, entry{fmt.Sprintf("f%04d", i), file(nil)})
		high.entries = append(high.entries, entry{fmt.Sprintf("f%04d", i), file(nil)})
	}
	for i := range 2000 {
		d.entries = append(d.entries, entry{fmt.Sprintf("%04d-a", i), low.entries[i].to}, entry{fmt.Sprintf("%04d-b", i), high.entries[i].to})
	}
	for _, n := range []*node{low, high, d} {
		n.long = true
	}
	b.root.attach("aa", low)
	b.root.attach("ab", high)
	b.root.attach("ac", d)
}

// sparse adds a file of zeros.
func sparse(size int64) func(*builder) {
	return func(b *builder) {
		b.log = 20 // or the list of its blocks would be long
		b.root.attach("zsparse", &node{kind: typeFile, long: true, mode: 0o644, mtime: baseTime, size: size})
	}
}

func manyLinks(b *builder) {
	to, d := file([]byte("linked")), dir()
	to.long, d.long = true, true
	for i := range 10000 {
		d.entries = append(d.entries, entry{fmt.Sprintf("%05d", i), to})
	}
	b.root.attach("links", d)
}

func oneFragment(b *builder) {
	d := dir()
	d.long = true
	for i := range 2000 {
		n := file([]byte{byte(i)})
		n.tail = true
		d.entries = append(d.entries, entry{fmt.Sprintf("%04d", i), n})
	}
	b.root.attach("tails", d)
}

// addSelf adds a file as long as a small image without the last block.
func addSelf(b *builder) {
	n := file([]byte(strings.Repeat("self", 6*blockSize/4)))
	b.root.attach("self", n)
}

// itself lets that file begin at a byte of the image.
func itself(at int) func(*image) { return set("self.start", at) }

func contains(im *image) {
	f := im.files["self"]
	f.Data = im.b[superblockSize:][:len(f.Data)]
	im.files["self"] = f
}
