package layer

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// model is the rules of the package comment once more, in the plainest way: a map of
// paths, "" is the root.
type model struct {
	files map[string]*file1
	own   map[string]bool // what the layer being applied has: true an entry, false only above one
}

type file1 struct {
	typ    byte
	data   string // or target
	mode   int64
	uid    int
	isRoot bool
}

func newModel() *model {
	return &model{files: map[string]*file1{"": {typ: tar.TypeDir, mode: 0o755, isRoot: true}}}
}

// clone copies the model; names of one file stay names of one file.
func (m *model) clone() *model {
	c := &model{files: map[string]*file1{}, own: maps.Clone(m.own)}
	same := map[*file1]*file1{}
	for p, f := range m.files {
		if same[f] == nil {
			g := *f
			same[f] = &g
		}
		c.files[p] = same[f]
	}
	return c
}

var errModel = errors.New("refused")

// real follows the symlinks of a directory's path.
func (m *model) real(p string) (string, error) {
	at := ""
	rest := strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		s := rest[0]
		rest = rest[1:]
		switch s {
		case "", ".":
			continue
		case "..":
			if at = path.Dir(at); at == "." {
				at = ""
			}
			continue
		}
		next := strings.TrimPrefix(at+"/"+s, "/")
		switch f := m.files[next]; {
		case f == nil || f.typ == tar.TypeDir:
			at = next
		case f.typ == tar.TypeSymlink:
			if links++; links > 255 {
				return "", errModel
			}
			if strings.HasPrefix(f.data, "/") {
				at = ""
			}
			rest = append(strings.Split(f.data, "/"), rest...)
		default:
			return "", errModel
		}
	}
	return at, nil
}

func join(dir, name string) string { return strings.TrimPrefix(dir+"/"+name, "/") }

func split(name string) (string, string) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	dir, base := path.Split(name)
	return strings.TrimSuffix(dir, "/"), base
}

func below(p, dir string) bool { return dir == "" && p != "" || strings.HasPrefix(p, dir+"/") }

func (m *model) remove(p string) {
	for q := range m.files {
		if q == p || below(q, p) {
			delete(m.files, q)
			delete(m.own, q)
		}
	}
}

// hide removes what lower layers have at or below p.
func (m *model) hide(p string, inside bool) {
	for q, f := range m.files {
		if q == p && inside || q != p && !below(q, p) || q == "" {
			continue
		}
		switch own, ok := m.own[q]; {
		case !ok:
			delete(m.files, q)
		case !own && f.typ == tar.TypeDir:
			*f = file1{typ: tar.TypeDir, mode: 0o755}
		}
	}
}

func (m *model) parents(dir string) error {
	for p := dir; p != ""; p, _ = split(p) {
		if f := m.files[p]; f == nil {
			m.files[p] = &file1{typ: tar.TypeDir, mode: 0o755}
		} else if f.typ != tar.TypeDir {
			return errModel
		}
	}
	return nil
}

func (m *model) apply(e item) error {
	h := e.header()
	dir, base := split(e.name)
	if base == "" {
		if h.Typeflag != tar.TypeDir {
			return errModel
		}
		m.files[""].mode, m.files[""].uid = h.Mode, h.Uid
		return nil
	}
	dir, err := m.real(dir)
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		p := join(dir, hidden)
		if f := m.files[dir]; err != nil || f == nil || f.typ != tar.TypeDir {
			if _, loop := m.loops(e.name); loop {
				return errModel
			}
			return nil
		}
		if base == ".wh..wh..opq" {
			m.hide(dir, true)
		} else {
			m.hide(p, false)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err = m.parents(dir); err != nil {
		return err
	}
	p := join(dir, base)
	old := m.files[p]
	f := &file1{typ: h.Typeflag, data: e.data, mode: h.Mode, uid: h.Uid}
	if old != nil && old.typ == tar.TypeDir && f.typ == tar.TypeDir {
		old.mode, old.uid = f.mode, f.uid
	} else {
		m.remove(p)
		if f.typ == tar.TypeLink {
			dir, base := split(e.data)
			if dir, err = m.real(dir); err != nil {
				return err
			}
			target := m.files[join(dir, base)]
			if target == nil || target.typ == tar.TypeDir {
				return errModel
			}
			target.uid = f.uid
			if target.typ != tar.TypeSymlink {
				target.mode = f.mode
			}
			f = target
		}
		m.files[p] = f
	}
	m.own[p] = true
	for p, _ = split(p); p != ""; p, _ = split(p) {
		if _, ok := m.own[p]; !ok {
			m.own[p] = false
		}
	}
	return nil
}

// loops tells whether the directory of a name cannot be found for its symlinks.
func (m *model) loops(name string) (string, bool) {
	dir, _ := split(name)
	c := m.clone()
	for p, f := range c.files {
		if f.typ != tar.TypeDir && f.typ != tar.TypeSymlink {
			delete(c.files, p)
		}
	}
	p, err := c.real(dir)
	return p, err != nil
}

// lines shows the model as show does a tree.
func (m *model) lines() []string {
	paths := slices.SortedFunc(maps.Keys(m.files), func(a, b string) int {
		return strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
	})
	var lines []string
	first := map[*file1]string{}
	for _, p := range paths {
		f := m.files[p]
		if p == "" {
			p = "."
		}
		if q, ok := first[f]; ok {
			lines = append(lines, fmt.Sprintf("= %s %s", p, q))
			continue
		}
		first[f] = p
		switch f.typ {
		case tar.TypeDir:
			lines = append(lines, fmt.Sprintf("d %o %d %s", f.mode, f.uid, p))
		case tar.TypeSymlink:
			lines = append(lines, fmt.Sprintf("l %s -> %s", p, f.data))
		case tar.TypeFifo:
			lines = append(lines, fmt.Sprintf("p %o %d %s 0x0", f.mode, f.uid, p))
		default:
			lines = append(lines, fmt.Sprintf("f %o %d %s %s", f.mode, f.uid, p, f.data))
		}
	}
	return lines
}

// generator makes random stacks of few names, so that everything collides.
type generator struct {
	*rand.Rand
	simple bool // no links of any kind
	sane   bool // nothing in which implementations differ: links have metadata, whiteouts come first
	files  int
}

func (g *generator) name() string { return string("abc"[g.IntN(3)]) }

func (g *generator) path() string {
	p := g.name()
	for g.IntN(5) < 2 {
		p += "/" + g.name()
	}
	return p
}

func (g *generator) item() item {
	e := item{name: g.path(), mode: int64(0o600 + g.IntN(0o100)), uid: g.IntN(3)}
	switch k := g.IntN(20); {
	case k < 5:
		e.name, e.mode = e.name+"/", e.mode|0o100
	case k < 6 && !g.sane:
		e.typ = tar.TypeFifo
	case k < 9 && !g.simple:
		e.typ, e.data, e.mode = tar.TypeSymlink, []string{"a", "b", "c", "..", "../a", "../b", "/a", "/b/c", "a/b", "c/../a", "../../b", "."}[g.IntN(12)], 0o777
	case k < 11 && !g.simple:
		e.typ, e.data = tar.TypeLink, g.path()
	case k < 13:
		dir, base := path.Split(e.name)
		e = wh(dir + ".wh." + base)
	case k < 14:
		dir, _ := path.Split(e.name)
		e = wh(dir + ".wh..wh..opq")
	case k < 15 && !g.sane:
		e.name = []string{"./", "/", "./" + e.name, "//" + e.name, "x/../" + e.name, "../" + e.name}[g.IntN(6)]
		if strings.HasSuffix(e.name, "/") {
			e.mode |= 0o100
			break
		}
		fallthrough
	default:
		g.files++
		e.data = fmt.Sprint("data", g.files)
	}
	return e
}

// stack makes layers and what they should be; nil if they should be an error.
func (g *generator) stack() ([][]item, *model) {
	m := newModel()
	var layers [][]item
	for range 1 + g.IntN(6) {
		m.own = map[string]bool{}
		var layer []item
		late := false // whiteouts have gone before
		for range g.IntN(9) {
			// Most of what is an error is left away, or there would be little else.
			e := g.item()
			next := m.clone()
			if g.sane && (e.typ == tar.TypeLink && !g.adopt(m, &e) || late && strings.Contains(e.name, ".wh.")) {
				continue
			}
			if err := next.apply(e); err != nil {
				if !g.sane && g.IntN(200) == 0 {
					return append(layers, append(layer, e)), nil
				}
				continue
			}
			m, layer, late = next, append(layer, e), late || !strings.Contains(e.name, ".wh.")
		}
		layers = append(layers, layer)
	}
	return layers, m
}

// adopt gives a link the metadata of its target, as whoever writes archives does.
func (g *generator) adopt(m *model, e *item) bool {
	f := m.files[e.data]
	if f == nil {
		return false
	}
	e.mode, e.uid = f.mode, f.uid
	return true
}

// disjoint tells whether no entry of a layer replaces what another has made.
func disjoint(layers [][]item) bool {
	for _, l := range layers {
		for i, e := range l {
			for j, f := range l {
				a, b := path.Clean("/"+e.name), path.Clean("/"+f.name)
				if i != j && (a == b || below(a, b) && f.header().Typeflag != tar.TypeDir) {
					return false
				}
			}
		}
	}
	return true
}

func TestModel(t *testing.T) {
	var failed, rereads, exact int
	for seed := range uint64(4000) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), simple: seed%5 == 0}
		layers, m := g.stack()
		var archives [][]byte
		for _, l := range layers {
			archives = append(archives, archived(t, l...))
		}
		lines, report, w, err := mergeAll(t, Options{}, archives...)
		if m == nil {
			if err == nil {
				t.Fatalf("seed %d: no error, but\n%s\nof %v", seed, strings.Join(lines, "\n"), layers)
			}
			failed++
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v\n%v", seed, err, layers)
		}
		want := m.lines()
		if !slices.Equal(lines, want) {
			t.Fatalf("seed %d: got\n%s\n\nwant\n%s\n\nof %+v", seed, strings.Join(lines, "\n"), strings.Join(want, "\n"), layers)
		}
		rereads += int(report.Reread)
		if g.simple && disjoint(layers) {
			exact++
			visible := 0
			for _, l := range lines {
				if strings.Contains(l, " data") {
					visible++
				}
			}
			if len(w.all) != visible {
				t.Fatalf("seed %d: %d files packed, %d are visible: %v", seed, len(w.all), visible, layers)
			}
		}
	}
	t.Logf("%d errors, %d layers read twice, %d stacks without links", failed, rereads, exact)
	if failed == 0 || rereads == 0 || exact == 0 {
		t.Error("the stacks do not try everything")
	}
}

// TestUmoci compares with what umoci unpacks.
func TestUmoci(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("umoci gives files owners as root only")
	}
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("umoci is not installed")
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for seed := range uint64(100) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 2)), sane: true}
		layers, _ := g.stack()
		var archives [][]byte
		for _, l := range layers {
			archives = append(archives, archived(t, l...))
		}
		tmp := t.TempDir()
		writeLayout(t, tmp+"/oci", archives)
		out, failure := exec.CommandContext(t.Context(), umoci, "unpack", "--image", tmp+"/oci:x", tmp+"/bundle").CombinedOutput()
		lines, _, _, err := mergeAll(t, Options{}, archives...)
		if failure != nil || err != nil {
			t.Fatalf("seed %d: umoci says %v %s, we %v, of %+v", seed, failure, out, err, layers)
		}
		want := list(t, tmp+"/bundle/rootfs")
		if !slices.Equal(lines, want) {
			t.Fatalf("seed %d: got\n%s\n\nwant\n%s\n\nof %+v", seed, strings.Join(lines, "\n"), strings.Join(want, "\n"), layers)
		}
		if err := os.RemoveAll(tmp); err != nil {
			t.Fatal(err)
		}
	}
}

// writeLayout writes an image of these layers as the OCI image layout has it.
func writeLayout(t *testing.T, dir string, archives [][]byte) {
	t.Helper()
	type object = map[string]any
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(media string, b []byte) object {
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		put("blobs/sha256/"+sum, b)
		return object{"mediaType": media, "digest": "sha256:" + sum, "size": len(b)}
	}
	encode := func(o object) []byte {
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	layers, ids := []object{}, []any{}
	for _, b := range archives {
		l := blob("application/vnd.oci.image.layer.v1.tar", b)
		layers, ids = append(layers, l), append(ids, l["digest"])
	}
	config := blob("application/vnd.oci.image.config.v1+json", encode(object{
		"architecture": "amd64", "os": "linux", "config": object{}, "rootfs": object{"type": "layers", "diff_ids": ids},
	}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", encode(object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
	}))
	manifest["annotations"] = object{"org.opencontainers.image.ref.name": "x"}
	put("index.json", encode(object{"schemaVersion": 2, "manifests": []object{manifest}}))
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

// list shows a directory as show does a tree.
func list(t *testing.T, root string) []string {
	t.Helper()
	m := &model{files: map[string]*file1{}}
	inodes := map[uint64]*file1{}
	if err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		f := inodes[st.Ino]
		if f == nil {
			f = &file1{typ: tar.TypeReg, mode: int64(st.Mode & 0o7777), uid: int(st.Uid)}
			inodes[st.Ino] = f
			switch {
			case d.IsDir():
				f.typ = tar.TypeDir
			case info.Mode()&fs.ModeSymlink != 0:
				f.typ = tar.TypeSymlink
				f.data, err = os.Readlink(p)
			case info.Mode()&fs.ModeNamedPipe != 0:
				f.typ = tar.TypeFifo
			default:
				var b []byte
				b, err = os.ReadFile(p)
				f.data = string(b)
			}
		}
		m.files[strings.TrimPrefix(strings.TrimPrefix(p, root), "/")] = f
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return m.lines()
}
