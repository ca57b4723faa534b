package gpu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CDI, the Container Device Interface of the CNCF, has files that say what a
// container needs for a device: nodes, mounts, variables, and hooks. They are
// data here. Hooks are programs that a container engine runs with its own
// rights; none is run, and each use says so. The field names are those of
// SPEC.md in cncf-tags/container-device-interface.

// cdiDirs hold specifications; a later one wins.
var cdiDirs = []string{"/etc/cdi", "/var/run/cdi"}

const (
	maxSpec  = 4 << 20 // bytes of a file
	maxSpecs = 256     // files of a directory
)

// cdiName is VENDOR/CLASS=NAME.
type cdiName struct{ kind, name string }

func (n cdiName) String() string { return n.kind + "=" + n.name }

func parseCDIName(s string) (n cdiName, ok bool) {
	n.kind, n.name, ok = strings.Cut(s, "=")
	vendor, class, ok2 := strings.Cut(n.kind, "/")
	return n, ok && ok2 && cdiWord(vendor, "_-.") && cdiWord(class, "_-") && cdiWord(n.name, "_-.:")
}

// cdiWord reports whether s is of letters, digits and more.
func cdiWord(s, more string) bool {
	for _, c := range []byte(s) {
		if !isAlnum(c) && !strings.ContainsRune(more, rune(c)) {
			return false
		}
	}
	return s != "" && isAlnum(s[0]) && isAlnum(s[len(s)-1])
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// cdiSpec is one file.
type cdiSpec struct {
	file    string
	kind    string
	devices []cdiDevice
	edits   cdiEdits // for every device of the file
}

type cdiDevice struct {
	name  string
	edits cdiEdits
}

// cdiEdits is what to do to a container.
type cdiEdits struct {
	env    []string
	nodes  []cdiNode
	mounts []Mount
	hooks  int
	others []string // names of what is not done
}

type cdiNode struct {
	target, source string
	major, minor   int64 // -1: not given
}

// addCDI adds CDI devices. Edits of a file are made once for all its devices.
func (h *Host) addCDI(names []cdiName, s *Set) error {
	specs, problems := h.cdiSpecs()
	used := map[*cdiSpec]bool{}
	for _, n := range names {
		spec, dev, err := findCDI(specs, n)
		if err != nil {
			return fmt.Errorf("--device %s: %w%s", n, err, problems)
		}
		edits := []*cdiEdits{&dev.edits}
		if !used[spec] {
			edits = append(edits, &spec.edits)
		}
		used[spec] = true
		for _, e := range edits {
			if err := h.edit(e, s); err != nil {
				return fmt.Errorf("--device %s: %s: %w", n, spec.file, err)
			}
		}
	}
	slices.Sort(s.Notes)
	s.Notes = slices.Compact(s.Notes)
	return nil
}

// findCDI looks a device up; later directories come first in specs.
func findCDI(specs []*cdiSpec, n cdiName) (*cdiSpec, *cdiDevice, error) {
	var known []string
	var found *cdiSpec
	var device *cdiDevice
	for _, spec := range specs {
		for i := range spec.devices {
			d := &spec.devices[i]
			known = append(known, spec.kind+"="+d.name)
			switch {
			case spec.kind != n.kind || d.name != n.name:
			case found == nil:
				found, device = spec, d
			case path.Dir(found.file) == path.Dir(spec.file):
				return nil, nil, fmt.Errorf("defined in both %s and %s", found.file, spec.file)
			}
		}
	}
	if found != nil {
		return found, device, nil
	}
	if len(known) == 0 {
		return nil, nil, errors.New("no CDI device is defined in " + strings.Join(cdiDirs, " or "))
	}
	return nil, nil, fmt.Errorf("no such CDI device; there are %s", strings.Join(known, ", "))
}

// cdiSpecs reads all specifications, and says what kept it from others.
func (h *Host) cdiSpecs() (specs []*cdiSpec, problems string) {
	for _, dir := range slices.Backward(cdiDirs) {
		if err := h.trusted(dir, unix.S_IFDIR); err != nil {
			if !errors.Is(err, unix.ENOENT) {
				problems += fmt.Sprintf("; %s: %v", dir, err)
			}
			continue
		}
		names := h.t.list(dir)
		for _, name := range names[:min(len(names), maxSpecs)] {
			if ext := path.Ext(name); ext != ".json" && ext != ".yaml" {
				continue
			}
			spec, err := h.cdiSpec(path.Join(dir, name))
			if err != nil {
				problems += fmt.Sprintf("; %s: %v", path.Join(dir, name), err)
				continue
			}
			specs = append(specs, spec)
		}
	}
	return specs, problems
}

// trusted refuses what somebody else than root and the caller can write to.
func (h *Host) trusted(name string, kind uint32) error {
	st, err := h.t.stat(name)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != kind:
		return errors.New("of the wrong type")
	case st.Mode&0o022 != 0:
		return errors.New("refused: others may write to it")
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return errors.New("refused: it belongs to neither root nor you")
	}
	return nil
}

func (h *Host) cdiSpec(file string) (*cdiSpec, error) {
	if err := h.trusted(file, unix.S_IFREG); err != nil {
		return nil, err
	}
	b, err := h.t.read(file, maxSpec)
	if err != nil {
		return nil, err
	}
	spec, err := parseCDI(b)
	if spec != nil {
		spec.file = file
	}
	return spec, err
}

// parseCDI reads a specification, JSON or YAML.
func parseCDI(b []byte) (*cdiSpec, error) {
	v, err := decodeSpec(b)
	if err != nil {
		return nil, err
	}
	r := &specReader{}
	top := r.object(v, "the file")
	r.known(top, "cdiVersion", "kind", "annotations", "devices", "containerEdits")
	version := r.text(top, "cdiVersion")
	if !strings.HasPrefix(version, "0.") && !strings.HasPrefix(version, "1.") {
		r.fail("cdiVersion %q is not known", version)
	}
	spec := &cdiSpec{kind: r.text(top, "kind"), edits: r.edits(top["containerEdits"])}
	vendor, class, _ := strings.Cut(spec.kind, "/")
	if !cdiWord(vendor, "_-.") || !cdiWord(class, "_-") {
		r.fail("kind %q is not VENDOR/CLASS", spec.kind)
	}
	names := map[string]bool{}
	for _, v := range r.list(top["devices"], "devices") {
		d := r.object(v, "a device")
		r.known(d, "name", "annotations", "containerEdits")
		name := r.text(d, "name")
		if !cdiWord(name, "_-.:") || names[name] {
			r.fail("device name %q is not valid, or there twice", name)
		}
		names[name] = true
		spec.devices = append(spec.devices, cdiDevice{name, r.edits(d["containerEdits"])})
	}
	if r.err == nil && len(spec.devices) == 0 {
		r.fail("no devices")
	}
	return spec, r.err
}

// decodeSpec turns a file into maps, lists, strings and nil. Numbers and
// booleans are the strings that they were written as.
func decodeSpec(b []byte) (any, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		return parseYAML(b)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

// specReader takes decoded values apart, and keeps the first error.
type specReader struct{ err error }

func (r *specReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *specReader) object(v any, what string) map[string]any {
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		r.fail("%s is not an object", what)
	}
	return m
}

func (r *specReader) list(v any, what string) []any {
	l, ok := v.([]any)
	if !ok && v != nil {
		r.fail("%s is not a list", what)
	}
	return l
}

// known refuses fields that are not in the specification, as the CNCF's
// library does: a word that is not understood may have been a restriction.
func (r *specReader) known(m map[string]any, fields ...string) {
	for k := range m {
		if !slices.Contains(fields, k) {
			r.fail("unknown field %q", k)
		}
	}
}

// text returns a string without NUL bytes, "" for one that is not there.
func (r *specReader) text(m map[string]any, field string) string {
	if m[field] == nil {
		return ""
	}
	return r.string(m[field], field)
}

func (r *specReader) string(v any, what string) string {
	s, ok := v.(string)
	if !ok || strings.ContainsRune(s, 0) {
		r.fail("%s is not a string, or holds a NUL byte", what)
	}
	return s
}

func (r *specReader) strings(v any, what string) (ss []string) {
	for _, e := range r.list(v, what) {
		ss = append(ss, r.string(e, what))
	}
	return ss
}

// path returns an absolute path that does not climb.
func (r *specReader) path(m map[string]any, field string) string {
	p := r.text(m, field)
	if !path.IsAbs(p) || slices.Contains(strings.Split(p, "/"), "..") || path.Clean(p) == "/" {
		r.fail("%s %q is not an absolute path without ..", field, p)
	}
	return path.Clean(p)
}

func (r *specReader) edits(v any) (e cdiEdits) {
	m := r.object(v, "containerEdits")
	r.known(m, "env", "deviceNodes", "mounts", "hooks", "intelRdt", "additionalGids", "additionalGIDs", "netDevices")
	for _, kv := range r.strings(m["env"], "env") {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			r.fail("env %q is not NAME=VALUE", kv)
		}
		e.env = append(e.env, kv)
	}
	for _, v := range r.list(m["deviceNodes"], "deviceNodes") {
		e.nodes = append(e.nodes, r.node(v))
	}
	for _, v := range r.list(m["mounts"], "mounts") {
		e.mounts = append(e.mounts, r.mount(v))
	}
	e.hooks = len(r.list(m["hooks"], "hooks"))
	for _, k := range []string{"intelRdt", "additionalGids", "additionalGIDs", "netDevices"} {
		if m[k] != nil {
			e.others = append(e.others, k)
		}
	}
	return e
}

func (r *specReader) node(v any) (n cdiNode) {
	m := r.object(v, "a device node")
	r.known(m, "path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid")
	n.target = r.path(m, "path")
	n.source = n.target
	if m["hostPath"] != nil && m["hostPath"] != "" {
		n.source = r.path(m, "hostPath")
	}
	if t := r.text(m, "type"); t != "" && t != "c" && t != "u" {
		r.fail("%s: type %q is not that of a character device", n.target, t)
	}
	n.major, n.minor = r.number(m, "major"), r.number(m, "minor")
	return n
}

func (r *specReader) number(m map[string]any, field string) int64 {
	if m[field] == nil {
		return -1
	}
	v, _ := m[field].(json.Number)
	n, err := strconv.ParseInt(v.String(), 10, 32)
	if err != nil || n < 0 {
		r.fail("%s is not a number", field)
	}
	return n
}

// mountWords are the options of mounts that are carried out; emptyWords say
// what is so anyway, or would change nothing here.
var (
	mountWords = []string{"ro", "nosuid", "nodev", "noexec", "private", "rprivate", "slave", "rslave", "shared", "rshared"}
	emptyWords = []string{"rw", "bind", "rbind", "exec", "suid", "dev", "relatime", "noatime", "nodiratime", "strictatime"}
)

func (r *specReader) mount(v any) (mt Mount) {
	m := r.object(v, "a mount")
	r.known(m, "hostPath", "containerPath", "type", "options")
	mt.Source, mt.Target = r.path(m, "hostPath"), r.path(m, "containerPath")
	if t := r.text(m, "type"); t != "" && t != "bind" && t != "none" {
		r.fail("mount of %s: type %q is not bind", mt.Target, t)
	}
	for _, o := range r.strings(m["options"], "options") {
		switch {
		case slices.Contains(mountWords, o):
			mt.Flags = append(mt.Flags, o)
		case !slices.Contains(emptyWords, o):
			r.fail("mount of %s: unknown option %q", mt.Target, o)
		}
	}
	return mt
}

// edit adds what e says to a Set.
func (h *Host) edit(e *cdiEdits, s *Set) error {
	for _, n := range e.nodes {
		if err := h.addCDINode(n, s); err != nil {
			return fmt.Errorf("device node %s: %w", n.source, err)
		}
	}
	for _, m := range e.mounts {
		real, err := h.t.resolve(m.Source)
		if err != nil {
			return fmt.Errorf("mount of %s: %w", m.Source, err)
		}
		if h.t.is(real, unix.S_IFCHR) || h.t.is(real, unix.S_IFBLK) {
			return fmt.Errorf("mount of %s: a device is no mount", m.Source)
		}
		m.Source = h.t.source(real)
		if !slices.ContainsFunc(s.Mounts, func(o Mount) bool { return o.Source == m.Source && o.Target == m.Target }) {
			s.Mounts = append(s.Mounts, m)
			s.Cache = append(s.Cache, h.loaderNames(real, m.Target)...)
		}
	}
	s.Env = append(s.Env, e.env...)
	if e.hooks > 0 {
		s.Notes = append(s.Notes, "hooks of CDI devices are not run")
	}
	for _, o := range e.others {
		s.Notes = append(s.Notes, o+" of CDI devices is ignored")
	}
	return nil
}

func (h *Host) addCDINode(n cdiNode, s *Set) error {
	st, err := h.t.stat(n.source)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return errors.New("not a character device")
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	if n.major > 0 && (n.major != major || n.minor >= 0 && n.minor != minor) { // 0 stands for no number
		return fmt.Errorf("is device %d:%d, not %d:%d as the specification has it", major, minor, n.major, n.minor)
	}
	return h.addNodeAt(n.source, n.target, s)
}

// loaderNames are the names under which the host's loader finds a library, for
// the container's: to make links and the cache is what CDI leaves to hooks.
func (h *Host) loaderNames(real, target string) (list []CacheEntry) {
	if !strings.HasPrefix(path.Base(real), "lib") || !strings.Contains(real, ".so") {
		return nil
	}
	stem, _, _ := strings.Cut(path.Base(real), ".so")
	for _, e := range h.libraryNames() {
		if !strings.HasPrefix(e.Name, stem+".so") {
			continue
		}
		if at, err := h.t.resolve(e.Path); err == nil && at == real {
			list = append(list, CacheEntry{Name: e.Name, Path: target, ABI: e.ABI})
		}
	}
	return list
}
