package importtest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// entry is an entry of a layer. What it does not say is mode 0755 for directories and 0644 for the rest, owner 0, and a
// time of its own.
type entry struct {
	name   string
	kind   byte // as tar.Header.Typeflag; 0 is a regular file
	data   string
	link   string
	mode   int64
	uid    int
	gid    int
	time   time.Time
	major  int64
	minor  int64
	xattrs map[string]string
	gnu    bool // a GNU header, which has names as they are; otherwise PAX where needed
}

// stack is the layers of an image, lowest first.
type stack struct {
	name      string
	layers    [][]entry
	made      func(t *testing.T) [][]byte // archives in place of layers
	noOverlay string                      // why an overlay of separately unpacked layers shows something else
	noUmoci   string                      // why umoci does
}

func file(name, data string) entry    { return entry{name: name, data: data} }
func dir(name string) entry           { return entry{name: name, kind: tar.TypeDir} }
func symlink(name, to string) entry   { return entry{name: name, kind: tar.TypeSymlink, link: to} }
func hardlink(name, to string) entry  { return entry{name: name, kind: tar.TypeLink, link: to} }
func fifo(name string) entry          { return entry{name: name, kind: tar.TypeFifo} }
func whiteout(dir, name string) entry { return file(filepath.Join(dir, ".wh."+name), "") }
func opaque(dir string) entry         { return file(dir+"/.wh..wh..opq", "") }

func (e entry) with(change func(*entry)) entry {
	change(&e)
	return e
}

func (e entry) perm(mode int64) entry    { return e.with(func(e *entry) { e.mode = mode }) }
func (e entry) owner(uid, gid int) entry { return e.with(func(e *entry) { e.uid, e.gid = uid, gid }) }

func (e entry) at(sec, nsec int64) entry {
	return e.with(func(e *entry) { e.time = time.Unix(sec, nsec) })
}
func (e entry) raw() entry { return e.with(func(e *entry) { e.gnu = true }) }
func (e entry) attr(m map[string]string) entry {
	return e.with(func(e *entry) { e.xattrs = m })
}

// archives returns the layers as tar archives.
func (s *stack) archives(t *testing.T) [][]byte {
	t.Helper()
	if s.made != nil {
		return s.made(t)
	}
	var all [][]byte
	seen := map[string]*tar.Header{}
	for i, l := range s.layers {
		a, err := archive(l, int64(i), seen)
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		all = append(all, a)
	}
	return all
}

// archive writes a layer; n tells its times from those of other layers. In seen are the entries so far, by name: a hard
// link says of the file what the file's own entry says, as in archives of real files. Otherwise containerd and Docker
// would change the file, as Squire does, and umoci would not.
func archive(layer []entry, n int64, seen map[string]*tar.Header) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, e := range layer {
		h := e.header(time.Unix(1_000_000_000+n*1_000_000+int64(i), 0))
		if to := seen[clean(h.Linkname)]; to != nil && h.Typeflag == tar.TypeLink {
			h.Mode, h.Uid, h.Gid, h.ModTime = to.Mode, to.Uid, to.Gid, to.ModTime
		}
		seen[clean(h.Name)] = h
		err := w.WriteHeader(h)
		if err == nil && h.Typeflag == tar.TypeReg {
			_, err = w.Write([]byte(e.data))
		}
		if err != nil {
			return nil, fmt.Errorf("entry %q: %w", e.name, err)
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func clean(name string) string { return filepath.Clean("/" + name) }

func (e entry) header(now time.Time) *tar.Header {
	h := &tar.Header{
		Typeflag: e.kind, Name: e.name, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid,
		ModTime: e.time, Devmajor: e.major, Devminor: e.minor,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(e.data))
	}
	if h.ModTime.IsZero() {
		h.ModTime = now
	}
	if h.Typeflag == tar.TypeDir && !strings.HasSuffix(h.Name, "/") {
		h.Name += "/"
	}
	switch {
	case h.Mode == none:
		h.Mode = 0
	case h.Mode != 0:
	case h.Typeflag == tar.TypeDir:
		h.Mode = 0o755
	case h.Typeflag == tar.TypeSymlink:
		h.Mode = 0o777
	default:
		h.Mode = 0o644
	}
	for name, value := range e.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	switch {
	case e.gnu:
		h.Format = tar.FormatGNU
	case h.PAXRecords != nil || h.ModTime.Nanosecond() != 0:
		h.Format = tar.FormatPAX
	}
	return h
}

// none is the mode of an entry without any permission.
const none = -1

// sparse makes layers of a file with holes as GNU tar does, in each form that it knows.
func sparse(t *testing.T) [][]byte {
	t.Helper()
	from := t.TempDir()
	var all [][]byte
	for _, form := range []string{"gnu", "posix 0.0", "posix 0.1", "posix 1.0"} {
		name := strings.NewReplacer(" ", "-", ".", "-").Replace("sparse-" + form)
		f, err := os.Create(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		_, err1 := f.WriteAt([]byte("behind a hole"), 3_000_000)
		_, err2 := f.WriteAt(bytes.Repeat([]byte("block"), 100_000), 8<<20)
		if err := errors.Join(err1, err2, f.Truncate(20<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		format, version, _ := strings.Cut(form, " ")
		argv := []string{"tar", "-C", from, "-c", "-f", "-", "-S", "--owner=5", "--group=6", "--numeric-owner", "--mtime=@1234567890", "--format=" + format}
		if version != "" {
			argv = append(argv, "--sparse-version="+version)
		}
		out := must(t, append(argv, name)...)
		if len(out) > 2<<20 {
			t.Fatalf("%q stored %d bytes: the holes too", argv, len(out))
		}
		all = append(all, []byte(out))
	}
	return all
}
