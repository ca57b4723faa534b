package importtest

import (
	"archive/tar"
	"fmt"
	"strings"
)

// capability is a security.capability attribute, version 2: cap_net_raw, permitted and effective (linux/capability.h).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// throughSymlink is why an overlay cannot be asked about entries below symlinks of layers below: unpacked by itself, the
// layer has a directory there, and that replaces the symlink. containerd, Docker and umoci follow the symlink, as image
// builders unpack on top of what is there, and Squire does too.
const throughSymlink = "a directory that is only implied replaces the symlink"

// linkBelow is why an overlay cannot be asked about hard links to files of layers below: unpacked by itself, the layer
// has no such file.
const linkBelow = "the link's target is in another layer"

// fixed are the stacks that are known to be hard.
var fixed = []stack{
	{name: "whiteouts", layers: [][]entry{
		{dir("d"), file("d/a", "a"), file("d/b", "b"), dir("d/sub"), file("d/sub/x", "x"), symlink("d/s", "a"), file("top", "t"), fifo("d/p")},
		{dir("d"), whiteout("d", "a"), whiteout("d", "sub"), whiteout("d", "s"), whiteout("d", "never"), whiteout("", "top"), whiteout("d", "p")},
		{dir("d"), file("d/a", "again")},
	}},
	{name: "whiteouts of nothing", layers: [][]entry{
		{file("a", "a"), symlink("l", "a")},
		{whiteout("no/such/dir", "x"), whiteout("a", "x"), whiteout("l", "x"), opaque("none")},
	}, noOverlay: "the directory of a whiteout that hides nothing appears"},
	{name: "whiteout of a directory and a new one", layers: [][]entry{
		{dir("d"), file("d/old", "1"), dir("e"), file("e/old", "1"), file("f", "old")},
		{whiteout("", "d"), dir("d").perm(0o700), file("d/new", "2"), dir("e").perm(0o711), file("e/new", "2"), whiteout("", "e"), file("f", "new"), whiteout("", "f")},
	}, noOverlay: "a name and its whiteout exclude each other in one directory"},
	{name: "whiteouts through three layers", layers: [][]entry{
		{dir("d"), file("d/a", "1"), file("d/b", "1"), file("d/c", "1")},
		{dir("d"), whiteout("d", "a"), file("d/b", "2")},
		{dir("d"), file("d/a", "3"), whiteout("d", "b")},
		{dir("d").perm(0o700), whiteout("d", "a"), file("d/c", "4")},
	}},
	{name: "opaque before its siblings", layers: [][]entry{
		{dir("d"), file("d/old", "1"), dir("d/sub"), file("d/sub/old", "1")},
		{dir("d").perm(0o750), opaque("d"), file("d/new", "2"), dir("d/sub"), file("d/sub/new", "2")},
	}},
	{name: "opaque behind its siblings", layers: [][]entry{
		{dir("d"), file("d/old", "1"), dir("d/sub"), file("d/sub/old", "1"), dir("d/gone"), file("d/gone/x", "1")},
		{dir("d").perm(0o750), file("d/new", "2"), dir("d/sub"), file("d/sub/new", "2"), opaque("d")},
	}},
	{name: "opaque deep down, without its directory", layers: [][]entry{
		{dir("a"), dir("a/b").perm(0o700).owner(3, 4), file("a/b/old", "1"), file("a/keep", "1")},
		{opaque("a/b"), file("a/b/new", "2")},
	}, noOverlay: "an implied directory has an owner and a mode of its own"},
	{name: "opaque in every layer", layers: [][]entry{
		{dir("d"), file("d/1", "1")}, {dir("d"), opaque("d"), file("d/2", "2")}, {dir("d"), file("d/3", "3"), opaque("d")}, {dir("d"), file("d/4", "4")},
	}},
	{name: "opaque where a file was", layers: [][]entry{
		{file("d", "file"), symlink("e", "d")},
		{dir("d"), opaque("d"), file("d/new", "2"), dir("e"), file("e/new", "2"), opaque("e")},
	}},
	{name: "hard links in a layer", layers: [][]entry{
		{file("a", "one"), hardlink("b", "a"), dir("d"), hardlink("d/c", "b"), symlink("s", "a"), hardlink("s2", "s"), fifo("p"), hardlink("p2", "p")},
	}},
	{name: "hard links to layers below", layers: [][]entry{
		{dir("d"), file("d/a", "one").perm(0o640).owner(1, 2), file("whole", "w")},
		{hardlink("b", "d/a"), dir("e"), hardlink("e/c", "b")},
		{hardlink("late", "d/a")},
	}, noOverlay: linkBelow},
	{name: "hard links to files that are hidden later", layers: [][]entry{
		{file("a", "a of 0"), file("b", "b of 0"), file("c", "c of 0")},
		{hardlink("la", "a"), hardlink("lb", "b"), hardlink("lc", "c")},
		{whiteout("", "a"), file("b", "b of 2"), dir("c"), file("c/x", "x")},
	}, noOverlay: linkBelow},
	{name: "hard links to files that the layer replaces", layers: [][]entry{
		{file("a", "a of 0"), file("b", "b of 0")},
		{hardlink("la", "a"), file("a", "a of 1"), hardlink("la2", "a"), file("b", "b of 1"), hardlink("lb", "b")},
	}, noOverlay: linkBelow},
	{name: "one name of several is replaced", layers: [][]entry{
		{file("a", "one"), hardlink("b", "a"), hardlink("c", "a"), hardlink("d", "a")},
		{file("b", "two"), whiteout("", "a")},
	}},
	{name: "hard links through symlinks", layers: [][]entry{
		{dir("usr"), dir("usr/lib"), file("usr/lib/a", "a"), symlink("lib", "usr/lib")},
		{hardlink("b", "usr/../lib/a").at(1_000_000_002, 0), hardlink("lib/c", "usr/lib/a")},
		{hardlink("lib/d", "b")},
	}, noOverlay: linkBelow},
	{name: "types replace each other", layers: replacedTypes()},
	{name: "a directory replaced by a symlink to a directory", layers: [][]entry{
		{dir("lib"), file("lib/a", "a"), dir("usr"), dir("usr/lib"), file("usr/lib/b", "b")},
		{symlink("lib", "usr/lib")},
		{file("lib/c", "c")},
	}, noOverlay: throughSymlink},
	{name: "symlinked parents", layers: [][]entry{
		{dir("usr"), dir("usr/lib").perm(0o711), file("usr/lib/a", "a"), file("usr/lib/b", "b"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib"), symlink("up", "usr/../usr/lib")},
		{file("lib/new", "n"), whiteout("lib", "b"), file("abs/abs", "n"), file("up/up", "n"), dir("lib/sub"), file("lib/sub/x", "x")},
	}, noOverlay: throughSymlink},
	{name: "symlinked parents with a directory entry", layers: [][]entry{
		{dir("usr"), dir("usr/lib"), file("usr/lib/a", "a"), symlink("lib", "usr/lib")},
		{dir("lib").perm(0o700), file("lib/new", "n")},
	}},
	{name: "symlinked parents that lead out", layers: [][]entry{
		{dir("d"), symlink("d/out", "../../../../../tmp"), dir("tmp"), symlink("dangling", "no/such")},
		{file("d/out/x", "stays inside"), file("dangling/y", "makes the target")},
	}, noOverlay: throughSymlink},
	{name: "symlinked whiteouts and opaque directories", layers: [][]entry{
		{dir("usr"), dir("usr/share"), file("usr/share/a", "a"), file("usr/share/b", "b"), symlink("share", "usr/share"), dir("usr/x"), file("usr/x/y", "y"), symlink("x", "usr/x")},
		{whiteout("share", "a"), opaque("x"), file("x/new", "n")},
	}, noOverlay: throughSymlink},
	{name: "a whiteout of a symlink keeps its target", layers: [][]entry{
		{dir("usr"), file("usr/a", "a"), symlink("link", "usr"), symlink("link2", "usr/a")},
		{whiteout("", "link"), whiteout("", "link2")},
	}},
	{name: "implied parents", layers: [][]entry{
		{file("a/b/c/file", "1"), dir("x").perm(0o700).owner(7, 8), dir("x/y").perm(0o710)},
		{file("a/b/other", "2"), file("x/y/z/file", "2")},
		{dir("a").perm(0o711).owner(9, 9), dir("a/b/c").perm(0o1777)},
	}, noOverlay: "an implied directory has an owner and a mode of its own"},
	{name: "a directory's entry behind its contents", layers: [][]entry{
		{file("d/a", "1"), dir("d/sub").perm(0o700), dir("d").perm(0o1750).owner(3, 4)},
		{file("d/b", "2"), dir("d").perm(0o711)},
	}},
	{name: "duplicate entries", layers: [][]entry{
		{file("a", "first"), file("a", "second, and longer").perm(0o600), dir("d"), file("d/x", "x"), dir("d").perm(0o700).owner(1, 1), file("b", "b"), dir("b"), file("b/in", "in")},
		{dir("c"), file("c", "now a file"), symlink("e", "a"), file("e", "not through the link"), file("f", "f"), hardlink("g", "f"), file("f", "other")},
	}},
	{name: "set-id and sticky", layers: [][]entry{
		{file("su", "x").perm(0o4755), file("sg", "x").perm(0o2755).owner(5, 6), file("both", "x").perm(0o6711).owner(1000, 1000), dir("tmp").perm(0o1777), dir("sgid").perm(0o2775).owner(0, 50), file("sgid/f", "x").owner(1, 1), file("closed", "x").perm(none), dir("shut").perm(none), file("shut/f", "x")},
		{file("su", "y").perm(0o755), file("sg", "x").perm(0o2711).owner(0, 6)},
	}},
	{name: "extended attributes", layers: [][]entry{
		{
			file("cap", "x").attr(map[string]string{"security.capability": capability}), dir("d").attr(map[string]string{"user.dir": "1"}),
			file("many", "x").attr(map[string]string{"user.a": "1", "user.binary": "\x00\xff\n=", "user.large": strings.Repeat("large", 700)}),
			file("replaced", "x").attr(map[string]string{"user.old": "1"}), file("linked", "x").attr(map[string]string{"user.l": "1"}), hardlink("linked2", "linked"),
		},
		{dir("d").attr(map[string]string{"user.other": "2"}), file("replaced", "y"), file("cap2", "x").attr(map[string]string{"security.capability": capability, "user.more": "1"})},
		{file("d/in", "x")},
	}, noOverlay: "the attributes of a directory in two layers are those of the upper one only"},
	{name: "an empty attribute", layers: [][]entry{
		{file("a", "x").attr(map[string]string{"user.empty": "", "user.other": "1"})},
	}, noUmoci: "it takes an empty value for none"},
	{name: "owners and times", layers: [][]entry{
		{file("big", "x").owner(3_000_000_000, 4_294_967_294), file("nobody", "x").owner(65534, 65534), file("fraction", "x").at(1_500_000_000, 123_456_789), file("epoch", "x").at(0, 0), file("2038", "x").at(1<<31+5, 0), file("2105", "x").at(1<<32-2, 0), symlink("s", "x").owner(5, 6), symlink("old", "x").at(1, 0)},
	}},
	{name: "odd forms of names", layers: [][]entry{
		{dir("./"), dir("./a/"), file("./a/b", "1"), file("a//c", "2"), file("a/./d", "3"), dir("x/y/"), file("x/../x/e", "4"), file("/abs", "5"), file("./.wh", "no whiteout"), file("a/wh.x", "neither")},
		{file(".//a/b", "6"), hardlink("link", "./a/b"), hardlink("link2", "/a/c"), whiteout("./a", "d")},
	}, noOverlay: linkBelow},
	{name: "the root's own entry", layers: [][]entry{
		{dir("./").perm(0o711).owner(3, 4), file("a", "1")},
		{file("b", "2")},
		{dir("./").perm(0o1755).owner(5, 6).attr(map[string]string{"user.root": "1"})},
	}, noOverlay: "the mount has the upper directory's"},
	{name: "long names", layers: [][]entry{
		{
			file(strings.Repeat("n", 255), "255"), file(strings.Repeat("d/", 60)+"f", "deep"), file("p/"+strings.Repeat("0123456789/", 40)+strings.Repeat("x", 200), "long"),
			symlink("s", strings.Repeat("target/", 200)), file("p/"+strings.Repeat("ab/", 50)+"orig", "o"), hardlink("p/"+strings.Repeat("ab/", 50)+"link", "p/"+strings.Repeat("ab/", 50)+"orig"),
			file(strings.Repeat("g/", 60)+"gnu", "gnu").raw(), symlink("sg", strings.Repeat("gnu/", 100)).raw(),
		},
		{whiteout(strings.TrimSuffix(strings.Repeat("d/", 60), "/"), "f"), whiteout("", strings.Repeat("m", 251))},
	}},
	{name: "names that are no UTF-8", layers: [][]entry{
		{dir("d\xff").raw(), file("d\xff/f\xfe\x80", "x").raw(), file("new\nline", "x"), file(" space ", "x"), file("tab\t\x7f\x01", "x").raw(), file("ä", "composed"), file("a\u0308", "decomposed"), symlink("s\xff", "d\xff/\xfe").raw(), file("star*?[x]\\", "x")},
		{whiteout("d\xff", "f\xfe\x80").raw(), file("d\xff/n\xc3", "y").raw(), hardlink("l\xff", "d\xff/n\xc3").raw()},
	}},
	{name: "deep paths", layers: [][]entry{{file(strings.Repeat("deep/", 400)+"file", "x")}, {file(strings.Repeat("deep/", 300)+"file", "y"), whiteout(strings.TrimSuffix(strings.Repeat("deep/", 390), "/"), "deep")}}},
	{name: "a huge directory", layers: hugeDirectory(5000)},
	{name: "contents", layers: contents()},
	{name: "sparse files", made: sparse, noUmoci: "it does not know the old GNU form"},
	{name: "empty layers", layers: [][]entry{{}, {file("a", "1")}, {}, {whiteout("", "a")}}},
	{name: "nothing at all", layers: [][]entry{{}}},
	{name: "fifos and devices", layers: [][]entry{
		{fifo("fifo").perm(0o600).owner(1, 2), dir("dev"), entry{name: "dev/null", kind: tar.TypeChar, mode: 0o666, major: 1, minor: 3}, entry{name: "loop", kind: tar.TypeBlock, mode: 0o660, gid: 6, major: 7, minor: 300}, file("dev/file", "x")},
		{file("fifo", "a file now"), fifo("again")},
	}},
}

// replacedTypes has a lower and an upper layer for each pair of types.
func replacedTypes() [][]entry {
	put := map[string]func(name string) []entry{
		"file":  func(n string) []entry { return []entry{file(n, "contents of "+n)} },
		"empty": func(n string) []entry { return []entry{file(n, "")} },
		"dir": func(n string) []entry {
			return []entry{dir(n), file(n+"/in", "in"), dir(n + "/sub"), file(n+"/sub/x", "x")}
		},
		"link":  func(n string) []entry { return []entry{symlink(n, "elsewhere")} },
		"todir": func(n string) []entry { return []entry{symlink(n, "target")} },
		"fifo":  func(n string) []entry { return []entry{fifo(n)} },
	}
	names := []string{"file", "empty", "dir", "link", "todir", "fifo"}
	lower, upper := []entry{dir("target"), file("target/in", "t")}, []entry{}
	for _, a := range names {
		for _, b := range names {
			n := a + "-" + b
			lower = append(lower, put[a](n)...)
			upper = append(upper, put[b](n)...)
		}
	}
	return [][]entry{lower, upper}
}

// hugeDirectory has n files, of which a second layer hides a third and replaces another.
func hugeDirectory(n int) [][]entry {
	lower, upper := []entry{dir("huge")}, []entry{}
	for i := range n {
		name := fmt.Sprintf("file-%06d", i)
		lower = append(lower, file("huge/"+name, name[:i%len(name)]))
		switch i % 3 {
		case 0:
			upper = append(upper, whiteout("huge", name))
		case 1:
			upper = append(upper, file("huge/"+name, "upper"))
		}
	}
	return [][]entry{lower, upper}
}

// contents has files of sizes around those of blocks, equal ones and holes.
func contents() [][]entry {
	var lower, upper []entry
	text := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 10_000)
	for _, n := range []int{1, 4095, 4096, 4097, 131071, 131072, 131073, 262144, 400_000} {
		lower = append(lower, file(fmt.Sprintf("size-%d", n), text[:n]), file(fmt.Sprintf("zeros-%d", n), strings.Repeat("\x00", n)))
		upper = append(upper, file(fmt.Sprintf("again-%d", n), text[:n]))
	}
	upper = append(upper, file("mixed", text[:200_000]+strings.Repeat("\x00", 300_000)+"end"))
	return [][]entry{lower, upper}
}
