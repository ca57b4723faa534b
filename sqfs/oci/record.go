package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

const (
	recordVersion = 1
	maxRecord     = 1 << 20 // bytes of the file
	maxMade       = 10_000  // directories that a configuration may have made
	maxLinks      = 40      // symlinks in one path, as Linux
)

// Install puts the record into the tree: RecordPath for Squire, and for enroot /etc/rc,
// /etc/environment, /etc/fstab and /etc/rc.local, in the form in which enroot's import writes
// them. They replace what the image has there. The working directory and the volumes are made
// if they are missing. Symlinks are followed inside the tree.
func (r *Record) Install(root *pack.Inode, w *pack.Writer) error {
	t := &installer{root: root, w: w}
	if !r.Created.IsZero() {
		t.time = max(0, r.Created.Unix())
	}
	body, err := r.encode()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		mode uint16
		body []byte
	}{
		{RecordPath, 0o644, body},
		{"etc/rc", 0o755, r.rc()},
		{"etc/environment", 0o644, r.environment()},
		{"etc/fstab", 0o644, r.fstab()},
		{"etc/rc.local", 0o644, []byte(rcLocal)},
	} {
		if err := t.write(f.name, f.mode, f.body); err != nil {
			return fmt.Errorf("oci: /%s of the image: %w", f.name, err)
		}
	}
	// What stands in the way of these is the image's own affair.
	for _, dir := range append(r.volumes(), r.workdir()) {
		if _, err := t.mkdir(dir); errors.Is(err, errTooMany) {
			return fmt.Errorf("oci: volumes of the image: %w", err)
		}
	}
	return nil
}

// encode returns the file. A history that is too long is left out.
func (r *Record) encode() ([]byte, error) {
	c := *r
	c.Version = recordVersion
	for {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(&c); err != nil {
			return nil, fmt.Errorf("oci: record: %w", err)
		}
		if b.Len() <= maxRecord {
			return b.Bytes(), nil
		}
		if c.History == nil {
			return nil, fmt.Errorf("oci: the configuration of the image has %d bytes: at most %d", b.Len(), maxRecord)
		}
		c.History = nil
	}
}

// installer changes a tree.
type installer struct {
	root *pack.Inode
	w    *pack.Writer
	time int64 // of what it makes
	made int
}

var (
	errTooMany = errors.New("too many directories")
	errNoDir   = errors.New("no directory is where one should be")
)

// write puts a file into the tree. A symlink of the name is replaced, not followed.
func (t *installer) write(name string, mode uint16, body []byte) error {
	dir, err := t.mkdir(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if old := dir.Entries[base]; old != nil && old.Type == sqfs.TypeDir {
		return errors.New("there is a directory of this name")
	}
	data, err := t.w.Add(bytes.NewReader(body))
	if err != nil {
		return err
	}
	dir.Entries[base] = &pack.Inode{Type: sqfs.TypeFile, Mode: mode, ModTime: t.time, Data: data}
	return nil
}

// mkdir returns a directory of the tree, and makes it and what is above it if need be. It
// follows symlinks as the kernel does in a container: none leaves the root.
func (t *installer) mkdir(name string) (*pack.Inode, error) {
	stack := []*pack.Inode{t.root}
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		dir := stack[len(stack)-1]
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		case len(part) > 255 || len(stack) > 4096:
			return nil, errors.New("the path is too long")
		}
		next := dir.Entries[part]
		switch {
		case next == nil:
			if t.made++; t.made > maxMade {
				return nil, errTooMany
			}
			next = &pack.Inode{Type: sqfs.TypeDir, Mode: 0o755, ModTime: t.time, Entries: map[string]*pack.Inode{}}
			if dir.Entries == nil {
				dir.Entries = map[string]*pack.Inode{}
			}
			dir.Entries[part] = next
		case next.Type == sqfs.TypeSymlink:
			if links++; links > maxLinks {
				return nil, errors.New("too many symlinks")
			}
			if strings.HasPrefix(next.Target, "/") {
				stack = stack[:1]
			}
			todo = append(strings.Split(next.Target, "/"), todo...)
			continue
		case next.Type != sqfs.TypeDir:
			return nil, errNoDir
		}
		stack = append(stack, next)
	}
	dir := stack[len(stack)-1]
	if dir.Entries == nil {
		dir.Entries = map[string]*pack.Inode{}
	}
	return dir, nil
}

// workdir is an absolute path.
func (r *Record) workdir() string { return path.Clean("/" + r.Config.WorkingDir) }

// volumes are absolute paths, sorted.
func (r *Record) volumes() []string {
	var all []string
	for v := range r.Config.Volumes {
		if v = path.Clean("/" + v); v != "/" {
			all = append(all, v)
		}
	}
	slices.Sort(all)
	return slices.Compact(all) // there may be tens of thousands
}

// provenance is the source as enroot writes it.
func (r *Record) provenance() string {
	src, err := ParseSource(r.Source)
	if err != nil || src.Kind != kindDocker {
		return oneLine(r.Source)
	}
	reg, tag := src.Registry, src.Tag
	if reg == hub {
		reg = "registry-1.docker.io"
	}
	if src.Digest != "" {
		tag = src.Digest
	}
	return "docker://" + reg + "#" + src.Repository + ":" + tag
}

// rc is the script that enroot starts a container with. All that is of the image is quoted for
// a POSIX shell, or in comments that it cannot leave.
func (r *Record) rc() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# enroot-provenance: %s\n", r.provenance())
	for _, k := range slices.Sorted(maps.Keys(r.Config.Labels)) {
		fmt.Fprintf(&b, "# %s %s\n", oneLine(k), oneLine(r.Config.Labels[k]))
	}
	entry, cmd := quoteAll(r.Config.Entrypoint), quoteAll(r.Config.Cmd)
	if entry == "" && cmd == "" {
		cmd = " '/bin/sh'"
	}
	dir := `"` + r.workdir() + `"`
	if strings.ContainsAny(dir, "$`\\!\n") || strings.Count(dir, `"`) > 2 {
		dir = quote(r.workdir())
	}
	fmt.Fprintf(&b, rcForm, dir, dir, entry, entry, cmd)
	return b.Bytes()
}

const rcForm = `
mkdir -p %s 2> /dev/null
cd %s && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec%s "$@"
else
    exec%s%s
fi
`

const rcLocal = `# /etc/rc reads this file when the container starts. It may change what is run, and how.
`

// quote makes one word for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// quoteAll makes words, each with a blank before it.
func quoteAll(words []string) string {
	var b strings.Builder
	for _, w := range words {
		b.WriteString(" " + quote(w))
	}
	return b.String()
}

// oneLine makes text fit for a comment.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// environment is a line for each variable. The form knows no values of several lines.
func (r *Record) environment() []byte {
	var b bytes.Buffer
	for _, e := range r.Config.Env {
		b.WriteString(strings.NewReplacer("\n", " ", "\r", " ").Replace(e) + "\n")
	}
	return b.Bytes()
}

// fstab binds each volume onto itself, so that its mount is like that of a container engine.
// What enroot would take for a variable is left out.
func (r *Record) fstab() []byte {
	var b bytes.Buffer
	for _, v := range r.volumes() {
		if strings.Contains(v, "$") {
			continue
		}
		v = strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(v) // fstab(5)
		fmt.Fprintf(&b, "${ENROOT_ROOTFS}%s %s none x-create=dir,bind,rw,nosuid,nodev\n", v, v)
	}
	return b.Bytes()
}

// ReadRecord returns the record of an image, nil if it has none. The file is not trusted: its
// size is bounded, and what cannot be understood is an error. Of an image that enroot made, it
// returns what its files say, with Version 0; nothing of them is executed.
func ReadRecord(img *sqfs.Image) (*Record, error) {
	return FindRecord(func(name string) ([]byte, error) { return readFile(img, name) })
}

// FindRecord is ReadRecord for an image in any form: read returns its files, which are
// named from the root on and without a slash before, and for one that is not there nil
// or an error that is [fs.ErrNotExist].
func FindRecord(read func(name string) ([]byte, error)) (*Record, error) {
	body, err := orMissing(read(RecordPath))
	if err != nil {
		return nil, err
	}
	if body != nil {
		return decodeRecord(body)
	}
	rc, err := read("etc/rc")
	if rc == nil || err != nil {
		return nil, nil // whatever it is, it is not enroot's
	}
	r := parseRC(string(rc))
	if r == nil {
		return nil, nil
	}
	env, err := orMissing(read("etc/environment"))
	if err != nil {
		return nil, err
	}
	fstab, err := orMissing(read("etc/fstab"))
	if err != nil {
		return nil, err
	}
	r.Config.Env = parseEnvironment(string(env))
	r.Config.Volumes = parseVolumes(string(fstab))
	return r, nil
}

func orMissing(body []byte, err error) ([]byte, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return body, err
}

// readFile returns a file of an image, nil if it is not there or no regular file.
func readFile(img *sqfs.Image, name string) ([]byte, error) {
	ino, err := img.Resolve(name, true)
	if err != nil || ino.Type != sqfs.TypeFile {
		if err != nil && errors.Is(err, sqfs.ErrCorrupt) {
			return nil, fmt.Errorf("oci: %w", err)
		}
		return nil, nil
	}
	if ino.Size > maxRecord {
		return nil, fmt.Errorf("oci: /%s of the image has %d bytes: at most %d", name, ino.Size, maxRecord)
	}
	f, err := img.File(&ino)
	if err != nil {
		return nil, fmt.Errorf("oci: /%s: %w", name, err)
	}
	b, err := io.ReadAll(io.NewSectionReader(&f, 0, ino.Size))
	if err != nil {
		return nil, fmt.Errorf("oci: /%s: %w", name, err)
	}
	return b, nil
}

func decodeRecord(body []byte) (*Record, error) {
	r := &Record{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("oci: /%s: %w", RecordPath, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("oci: /%s has version %d: %d is known", RecordPath, r.Version, recordVersion)
	}
	digests := []string{r.Digest, r.Index, r.ConfigDigest}
	for _, l := range r.Layers {
		digests = append(digests, l.Digest, l.DiffID)
	}
	for _, d := range digests {
		if d == "" {
			continue
		}
		if err := checkDigest(d); err != nil {
			return nil, fmt.Errorf("/%s: %w", RecordPath, err)
		}
	}
	if r.Source != oneLine(r.Source) || r.Platform != oneLine(r.Platform) {
		return nil, fmt.Errorf("oci: /%s has control characters", RecordPath)
	}
	if err := r.Config.check(); err != nil {
		return nil, fmt.Errorf("/%s: %w", RecordPath, err)
	}
	return r, nil
}
