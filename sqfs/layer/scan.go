package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unsafe"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// merger is a merge under way.
type merger struct {
	ctx    context.Context
	o      Options
	w      contents
	layers []Layer
	report Report
	memory int64 // bytes that may still be taken
	bytes  int64 // of files that may still come

	names  *names
	ops    [][]op     // by number of the layer, from 1 up
	passed [][]passed // the same
	layer  int        // number of the layer that is being read or applied
	stream *stream    // its archive

	parent       uint32 // the directory for which covered was answered last
	parentHidden bool
	parentLayer  int

	dropped   []*dropped
	droppedBy map[string]*dropped
}

// op is what an entry does to the tree, in the shortest form.
type op struct {
	path uint32 // name; of whiteouts: what they hide
	link uint32 // of hard links: name of the target; of others what the constants say
	node *pack.Inode
}

const (
	isEntry    = 1<<32 - 1 - iota // node gets the name
	isWhiteout                    // the name is hidden
	isOpaque                      // what is in the directory is hidden
	notLink    = isOpaque         // from here on
)

// opCost is what an entry takes in memory beside its names: the op, the inode and its
// place in a directory.
const opCost = 16 + int64(unsafe.Sizeof(pack.Inode{})) + 48

// dirCost is what a directory takes beside that: the least map.
const dirCost = 300

// passed is a file whose contents were passed over.
type passed struct {
	entry  int64 // number in the archive
	node   *pack.Inode
	hidden bool // or only excluded
}

// passedOver stands for contents that were not packed yet.
var passedOver = new(pack.Data)

func merge(ctx context.Context, w contents, layers []Layer, o Options) (*pack.Inode, *Report, error) {
	if len(layers) > maxLayers {
		return nil, nil, fmt.Errorf("merge: %d layers are more than %d", len(layers), maxLayers)
	}
	if o.Plain && len(layers) > 1 {
		return nil, nil, fmt.Errorf("merge: %d archives, of which only one can be plain", len(layers))
	}
	m := newMerger(ctx, w, layers, o)
	if err := m.scanAll(); err != nil {
		return nil, nil, err
	}
	root, err := m.apply()
	if err != nil {
		return nil, nil, err
	}
	missing := m.finish(root)
	if err := m.again(missing); err != nil {
		return nil, nil, err
	}
	m.report.Dropped = m.lines()
	return root, &m.report, nil
}

func newMerger(ctx context.Context, w contents, layers []Layer, o Options) *merger {
	set := func(v *int64, otherwise int64) {
		if *v <= 0 {
			*v = otherwise
		}
	}
	set(&o.MaxEntries, defaultEntries)
	set(&o.MaxBytes, defaultBytes)
	set(&o.MaxMemory, defaultMemory)
	set(&o.Ahead, defaultAhead)
	return &merger{
		ctx: ctx, o: o, w: w, layers: layers, names: newNames(), memory: o.MaxMemory, bytes: o.MaxBytes,
		ops: make([][]op, len(layers)+1), passed: make([][]passed, len(layers)+1),
		droppedBy: map[string]*dropped{},
	}
}

func (m *merger) layerName(n int) string { return m.layers[n-1].Name() }

// scanAll reads the layers from the top down: contents go to the writer, headers stay.
func (m *merger) scanAll() error {
	order := make([]int, 0, len(m.layers))
	for n := len(m.layers); n > 0; n-- {
		order = append(order, n)
	}
	return m.each(order, m.scan)
}

// each gives the archives of the layers with these numbers, in this order, to a function.
func (m *merger) each(order []int, do func(*stream) error) error {
	ctx, cancel := context.WithCancel(m.ctx)
	layers := make([]Layer, len(order))
	for i, n := range order {
		layers[i] = m.layers[n-1]
	}
	a := newAhead(ctx, layers, m.o.Ahead)
	defer a.close()
	defer cancel()
	for _, n := range order {
		m.layer = n
		s := a.next()
		err := do(s)
		switch name := m.layerName(n); {
		case err == nil:
		case s.failed == nil:
			return fmt.Errorf("%s %s: %w", m.verb(), name, err)
		case strings.Contains(s.failed.Error(), name): // a layer may well know what it is called
			return fmt.Errorf("%s %w", m.verb(), s.failed)
		default:
			return fmt.Errorf("%s %s: %w", m.verb(), name, s.failed)
		}
	}
	return nil
}

// verb is what is done with the layers, in errors. One archive alone is merged with nothing.
func (m *merger) verb() string {
	if m.o.Plain {
		return "read"
	}
	return "merge"
}

// entries calls a function for all entries of an archive, which is read to its very end:
// only there its reader tells whether it was what it should have been.
func entries(s *stream, do func(number int64, h *tar.Header, r *tar.Reader) error) error {
	t := tar.NewReader(s)
	last := ""
	for number := int64(0); ; number++ {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if number == 0 && errors.Is(err, tar.ErrHeader) {
			return fmt.Errorf("not a tar archive: %w", err)
		}
		if err != nil && (h == nil || !errors.Is(err, tar.ErrInsecurePath)) { // names are cleaned here
			return fmt.Errorf("entry %d, behind %.200q, at byte %d: %w", number, last, s.pos, err)
		}
		if err := do(number, h, t); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
		last = h.Name
	}
	return s.drain(maxTrailing)
}

// maxTrailing bounds what may follow an archive in its file, in bytes: padding, usually
// less than 10 KiB.
const maxTrailing = 1 << 30

func (m *merger) scan(s *stream) error {
	m.stream = s
	return entries(s, m.entry)
}

// entry keeps the header of an entry, and packs its contents unless they are hidden.
func (m *merger) entry(number int64, h *tar.Header, r *tar.Reader) error {
	if m.report.Entries++; m.report.Entries > m.o.MaxEntries {
		return fmt.Errorf("there are more than %d entries", m.o.MaxEntries)
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case 'V': // GNU tar
		m.drop("the label of a volume", h.Name)
		return nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse: // others have no contents, whatever their headers say
		if h.Size > m.bytes {
			return fmt.Errorf("with its %d bytes, files have more than %d in all", h.Size, m.o.MaxBytes)
		}
		m.bytes -= h.Size
	}
	known := m.names.cost
	id, err := m.names.parse(h.Name)
	if err != nil {
		return err
	}
	if name := m.names.at(id).name; !m.o.Plain && strings.HasPrefix(name, whiteout) {
		err = m.whiteout(id, name)
	} else {
		err = m.keep(number, id, h, r)
	}
	if err != nil {
		return err
	}
	return m.charge(opCost + m.names.cost - known)
}

const (
	whiteout = ".wh."
	meta     = whiteout + whiteout
	opaque   = meta + ".opq"
)

// whiteout notes what an entry of such a name hides.
func (m *merger) whiteout(id uint32, name string) error {
	dir := m.names.at(id).parent
	hidden := name[len(whiteout):]
	switch {
	case name == opaque:
		if d := m.names.at(dir); d.opaque == 0 {
			d.opaque = uint16(m.layer)
		}
		m.add(op{path: dir, link: isOpaque})
	case hidden == "" || hidden == "." || hidden == "..":
		return errors.New("the whiteout hides no name")
	case strings.HasPrefix(name, meta):
		m.drop("what only AUFS needs", name)
	default:
		id := m.names.child(dir, hidden)
		if n := m.names.at(id); n.cover == 0 {
			n.cover = uint16(m.layer)
		}
		m.add(op{path: id, link: isWhiteout})
	}
	return nil
}

func (m *merger) add(o op) { m.ops[m.layer] = append(m.ops[m.layer], o) }

// keep notes an entry that is no whiteout.
func (m *merger) keep(number int64, id uint32, h *tar.Header, r *tar.Reader) error {
	i, err := m.inode(h)
	if err != nil {
		return err
	}
	if id == root && h.Typeflag != tar.TypeDir {
		return errors.New("the root cannot be anything but a directory")
	}
	hidden := m.hidden(id)
	o := op{path: id, link: isEntry, node: i}
	n := m.names.at(id)
	switch {
	case h.Typeflag == tar.TypeLink:
		if o.link, err = m.names.parse(h.Linkname); err != nil {
			return fmt.Errorf("link to %.200q: %w", h.Linkname, err)
		}
		if o.link >= notLink {
			return errMemory
		}
		// A target that this layer had is the one, whatever lower layers have.
		if t := m.names.at(o.link); (!hidden || int(n.want) > m.layer) && int(t.last) != m.layer {
			t.want = uint16(m.layer)
		}
	case i.Type == sqfs.TypeDir:
		err = m.charge(dirCost)
	case i.Type == sqfs.TypeFile && h.Size > 0:
		if err = m.contents(number, id, hidden && int(n.want) <= m.layer, h, r, i); err != nil {
			return err
		}
	}
	if n.last = uint16(m.layer); n.entry == 0 {
		n.entry = n.last
	}
	if i.Type != sqfs.TypeDir {
		if n.want = 0; n.cover == 0 {
			n.cover = n.last
		}
	}
	m.add(o)
	return err
}

// contents packs the contents of a file or passes them over.
func (m *merger) contents(number int64, id uint32, hidden bool, h *tar.Header, r *tar.Reader, i *pack.Inode) (err error) {
	left := m.excluded(id)
	if !hidden && !left {
		i.Data, err = m.pack(h, r)
		return err
	}
	i.Data = passedOver
	m.passed[m.layer] = append(m.passed[m.layer], passed{number, i, !left})
	if !left {
		m.report.Hidden++
		m.report.HiddenBytes += h.Size
	}
	return m.charge(24)
}

// pack adds the contents of the entry that r is at.
func (m *merger) pack(h *tar.Header, r *tar.Reader) (*pack.Data, error) {
	f := io.Reader(&file{ctx: m.ctx, r: r})
	if isSparse(h) {
		f = &sparse{file: file{ctx: m.ctx, r: r}, s: m.stream}
	}
	d, err := m.w.Add(f)
	if err != nil {
		return nil, fmt.Errorf("contents of %d bytes: %w", h.Size, err)
	}
	return d, nil
}

// hidden tells whether layers above the current one hide what it has at a name. It
// believes what the names say, though symlinks may lead elsewhere: what that gets wrong is
// found when the layers are applied.
func (m *merger) hidden(id uint32) bool {
	n := m.names.at(id)
	if int(n.entry) > m.layer || int(n.cover) > m.layer {
		return true
	}
	if id == root {
		return false
	}
	if n.parent == m.parent && m.parentLayer == m.layer {
		return m.parentHidden
	}
	m.parent, m.parentLayer, m.parentHidden = n.parent, m.layer, false
	for p := n.parent; ; p = m.names.at(p).parent {
		d := m.names.at(p)
		if int(d.opaque) > m.layer || int(d.cover) > m.layer {
			m.parentHidden = true
		}
		if p == root || m.parentHidden {
			return m.parentHidden
		}
	}
}

// excluded asks Options.Exclude for a name and all above it, once each.
func (m *merger) excluded(id uint32) bool {
	if m.o.Exclude == nil || id == root {
		return false
	}
	n := m.names.at(id)
	if n.flags&judged == 0 {
		n.flags |= judged
		if m.excluded(n.parent) || m.o.Exclude(m.names.path(id)) {
			n.flags |= excluded
		}
	}
	return n.flags&excluded != 0
}

// again reads layers a second time for the contents that are missing, top down.
func (m *merger) again(missing map[*pack.Inode]bool) error {
	if len(missing) == 0 {
		return nil
	}
	var order []int
	for n := len(m.layers); n > 0; n-- {
		m.passed[n] = slices.DeleteFunc(m.passed[n], func(p passed) bool { return !missing[p.node] })
		if len(m.passed[n]) > 0 {
			order = append(order, n)
		}
	}
	m.report.Reread = int64(len(order))
	return m.each(order, func(s *stream) error {
		m.stream = s
		want := m.passed[m.layer]
		err := entries(s, func(number int64, h *tar.Header, r *tar.Reader) (err error) {
			if len(want) == 0 || want[0].entry != number {
				return nil
			}
			if types[h.Typeflag] != sqfs.TypeFile || h.Typeflag == tar.TypeLink {
				return errChanged
			}
			p := want[0]
			want = want[1:]
			if p.hidden {
				m.report.Hidden--
				m.report.HiddenBytes -= h.Size
			}
			p.node.Data, err = m.pack(h, r)
			return err
		})
		if err == nil && len(want) > 0 {
			err = errChanged
		}
		return err
	})
}

var errChanged = errors.New("the archive is not the same when read a second time")
