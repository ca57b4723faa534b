package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime/gpu"
)

// The driver's files are bound below driverDir, which is in the container's own
// /dev and so needs no place in the image. The loader finds the libraries by its
// cache, programs find the rest by links. Neither a library's directory of the
// image nor LD_LIBRARY_PATH changes.
const (
	driverDir   = "/dev/squire/nvidia"
	loaderCache = "/etc/ld.so.cache"
)

// ifPossible is a flag of operations that a container can do without, as where
// the image's directories belong to somebody who has no id in it.
const ifPossible = "if-possible"

var roFlags = []string{"ro", "nosuid", "nodev", "nofail"}

// acceleratorMounts are the operations that bring in s.Devices. They come after
// those of /dev.
func acceleratorMounts(s *Spec) (ops []Op) {
	d := s.Devices
	if d == nil {
		return nil
	}
	for _, n := range d.Nodes {
		ops = append(ops, Op{Do: OpBind, Source: n.Source, Target: n.Target, Flags: []string{"nofail"}})
	}
	for _, m := range d.Mounts {
		ops = append(ops, Op{Do: OpBind, Source: m.Source, Target: m.Target, Flags: m.Flags})
	}
	ops = append(ops, classOps(d.Classes)...)
	if d.Params != "" {
		ops = append(ops, Op{Do: OpFile, Target: "/proc/driver/nvidia/params", Args: strings.Split(strings.TrimSpace(d.Params), "\n")})
	}
	cache := slices.Clone(d.Cache)
	if d.Driver != nil {
		more, names := driverMounts(d.Driver)
		ops = append(ops, more...)
		cache = append(names, cache...)
	}
	return append(ops, cacheOps(s, cache)...)
}

// classOps cover directories of sysfs with such as have only what was chosen.
func classOps(classes []gpu.Class) (ops []Op) {
	for _, c := range classes {
		ops = append(ops, Op{Do: OpTmpfs, Target: c.Dir, Flags: []string{"mode=755", "size=64k", "nosuid", "nodev", "noexec"}})
		for _, l := range c.Links {
			ops = append(ops, Op{Do: OpSymlink, Source: l.Target, Target: path.Join(c.Dir, l.Name)})
		}
		for _, f := range c.Texts {
			ops = append(ops, Op{Do: OpFile, Target: path.Join(c.Dir, f.Name), Args: []string{f.Target}})
		}
	}
	return ops
}

// driverMounts binds a driver's files, and lists its libraries for the loader.
func driverMounts(d *gpu.Driver) (ops []Op, cache []gpu.CacheEntry) {
	for _, l := range d.Libraries {
		dir := driverDir + "/lib64"
		if l.ABI == gpu.ABIx86 {
			dir = driverDir + "/lib32"
		}
		file := path.Join(dir, l.File)
		ops = append(ops, Op{Do: OpBind, Source: l.Source, Target: file, Flags: roFlags})
		cache = append(cache, gpu.CacheEntry{Name: l.File, Path: file, ABI: l.ABI})
		for _, name := range l.Names {
			ops = append(ops, Op{Do: OpSymlink, Source: l.File, Target: path.Join(dir, name)})
			cache = append(cache, gpu.CacheEntry{Name: name, Path: path.Join(dir, name), ABI: l.ABI})
		}
	}
	for _, f := range d.Files {
		at := path.Join(driverDir, f.Name)
		ops = append(ops,
			Op{Do: OpBind, Source: f.Source, Target: at, Flags: roFlags},
			Op{Do: OpSymlink, Source: at, Target: f.Link, Flags: []string{ifPossible}})
	}
	return ops, cache
}

// cacheOps adds libraries to the loader's cache of the image. It is written in a
// container that can write, so that ldconfig there can replace it, and ldconfig is
// told of the libraries' directories.
func cacheOps(s *Spec, cache []gpu.CacheEntry) []Op {
	if len(cache) == 0 {
		return nil
	}
	flags := []string{ifPossible}
	var ops []Op
	if s.Writable {
		flags = append(flags, "write")
		ops = append(ops, Op{Do: OpFile, Target: "/etc/ld.so.conf.d/00-squire.conf", Flags: []string{"when-directory"}, Args: cacheDirs(cache)})
	}
	var args []string
	for _, e := range cache {
		args = append(args, e.Name+" ("+e.ABI.String()+") => "+e.Path)
	}
	return append(ops, Op{Do: OpCache, Target: loaderCache, Flags: flags, Args: args})
}

func cacheDirs(cache []gpu.CacheEntry) (dirs []string) {
	for _, e := range cache {
		if dir := path.Dir(e.Path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// parseCacheLine reads an argument of OpCache, which has the form of a line of
// ldconfig -p.
func parseCacheLine(s string) (e gpu.CacheEntry, err error) {
	name, rest, ok := strings.Cut(s, " (")
	abi, file, ok2 := strings.Cut(rest, ") => ")
	if !ok || !ok2 {
		return e, fmt.Errorf("library %q", s)
	}
	e = gpu.CacheEntry{Name: name, Path: file}
	e.ABI, err = gpu.ParseABI(abi)
	return e, err
}

// cache puts a loader's cache in place that has the image's entries and op's.
func (b *builder) cache(op Op) error {
	var more []gpu.CacheEntry
	for _, arg := range op.Args {
		e, err := parseCacheLine(arg)
		if err != nil {
			return err
		}
		more = append(more, e)
	}
	old, err := readIn(b.root, op.Target)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	text := gpu.MergeCache(old, more)
	if slices.Contains(op.Flags, "write") {
		return b.replace(op.Target, text)
	}
	return b.text(op.Target, text)
}

// readIn reads a plain file of the image, of at most 8 MiB. What is not one is not
// opened: it may be a link to a device.
func readIn(root int, name string) ([]byte, error) {
	const limit = 8 << 20
	fd, err := openIn(root, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > limit {
		return nil, err
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// link makes a link. One that the container can do without is made in the root
// file system alone: a link of the image may lead to a directory of the host.
func (b *builder) link(op Op) error {
	if slices.Contains(op.Flags, ifPossible) {
		fd, err := makeTarget(b.root, path.Dir(op.Target), true)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if same, err := sameMount(b.root, fd); err != nil || !same {
			return errors.Join(err, errForeign)
		}
	}
	return symlinkIn(b.root, op.Source, op.Target)
}

// replace puts a file in the place of one of the image, in the layer above it.
func (b *builder) replace(name string, text []byte) error {
	dir, base := path.Split(name)
	fd, err := makeTarget(b.root, dir, true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	same, err := sameMount(b.root, fd)
	if err != nil || !same {
		return errors.Join(err, errForeign)
	}
	temporary := base + ".squire-" + strconv.Itoa(unix.Getpid())
	_ = unix.Unlinkat(fd, temporary, 0)
	out, err := unix.Openat(fd, temporary, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(out), name)
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = unix.Renameat(fd, temporary, fd, base)
	}
	if err != nil {
		_ = unix.Unlinkat(fd, temporary, 0)
	}
	return err
}

// text shows content at target, read-only, from a file on the scaffold.
func (b *builder) text(target string, content []byte) error {
	f, err := os.CreateTemp(scaffoldDir, "file")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Chmod(0o444); err != nil {
		return err
	}
	src, err := unix.OpenTree(unix.AT_FDCWD, f.Name(), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if err = unix.MountSetattr(src, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	dst, err := makeTarget(b.root, target, false)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return attach(src, dst, "")
}

// driverEnvironment makes up for what could not be put in place: the loader's
// cache, the links to programs. It runs inside.
func driverEnvironment(ops []Op, env []string) []string {
	uses := func(name string) bool {
		return slices.ContainsFunc(ops, func(op Op) bool { return strings.HasPrefix(op.Target, driverDir+name) })
	}
	e := newEnvList(env)
	if uses("/lib64/") {
		if !cacheHas(driverDir) {
			e.append("LD_LIBRARY_PATH", driverDir+"/lib64")
		}
	}
	if uses("/bin/nvidia-smi") && executable("/usr/bin/nvidia-smi") != nil {
		e.append("PATH", driverDir+"/bin")
	}
	return e.list
}

// cacheHas reports whether the loader's cache names a directory.
func cacheHas(dir string) bool {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(root)
	b, err := readIn(root, loaderCache)
	return err == nil && strings.Contains(string(b), dir)
}

func newEnvList(env []string) *envList {
	var e envList
	for _, kv := range env {
		e.set(kv)
	}
	return &e
}

// append adds a directory to a search path.
func (e *envList) append(name, dir string) {
	if old, _ := e.get(name); old != "" {
		dir = old + ":" + dir
	}
	e.set(name + "=" + dir)
}
