package servicetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// faultMain is a file system with one file, "image", which is that of its first argument, on the directory of its second.
// It does what lines of its standard input say:
//
//	ok            answer as one should
//	eio, estale   answer every read with that error
//	hang          answer no read until told otherwise
//	short         answer reads with half of what they ask for
//	blips         answer the first read of each part with EIO, and those that come after as one should; of some parts also
//	              the second, as the kernel asks twice for what it reads ahead
//	swap FILE     be another file from now on
//	grow N, ino N answer with another size or inode number
//	only UID      let nobody but a user open the file, root neither
//
// With "private" as third argument others do not get in.
func faultMain(args []string) error {
	f := &faultFS{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	f.cond.L = &f.mu
	if err := f.swap(args[0]); err != nil {
		return err
	}
	private := len(args) > 2 && args[2] == "private"
	srv, err := fuse.NewServer(f, args[1], &fuse.MountOptions{
		AllowOther: !private, FsName: "faultfs", Name: "faultfs", DirectMountStrict: os.Getuid() == 0, DirectMount: os.Getuid() == 0,
	})
	if err != nil {
		return err
	}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		return err
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := f.command(strings.Fields(lines.Text())); err != nil {
			return err
		}
		f.mu.Lock()
		fmt.Printf("done, %d reads failed\n", f.failed)
		f.failed = 0
		f.mu.Unlock()
	}
	return srv.Unmount()
}

type faultFS struct {
	fuse.RawFileSystem
	mu   sync.Mutex
	cond sync.Cond
	mode string
	file *os.File
	attr fuse.Attr
	only uint32 // who may open the file; 0: all

	failed int           // reads since the last line
	blips  map[int64]int // how many parts have had
}

// blipPart is large enough for a block of an image to lie in two parts at most: storage may be asked for it four times.
const blipPart = 256 << 10

// blip reports whether a read has come to a part that is due to fail.
func (f *faultFS) blip(off, length int64) (due bool) {
	for part := off / blipPart; part <= (off+length-1)/blipPart; part++ {
		times := 1
		if part%8 == 0 {
			times = 2
		}
		due = due || f.blips[part] < times
		f.blips[part]++
	}
	return due
}

func (f *faultFS) swap(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	f.file = file
	f.attr.FromStat(fi.Sys().(*syscall.Stat_t))
	f.attr.Ino, f.attr.Mode = 7, syscall.S_IFREG|0o644
	return nil
}

func (f *faultFS) command(words []string) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.cond.Broadcast()
	switch words[0] {
	case "swap":
		return f.swap(words[1])
	case "grow":
		_, err = fmt.Sscan(words[1], &f.attr.Size)
	case "ino":
		_, err = fmt.Sscan(words[1], &f.attr.Ino)
	case "only":
		_, err = fmt.Sscan(words[1], &f.only)
	default:
		f.mode, f.blips = words[0], make(map[int64]int)
	}
	return err
}

func (f *faultFS) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "image" {
		return fuse.ENOENT
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out.NodeId, out.Attr = 2, f.attr
	return fuse.OK
}

func (f *faultFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Mode = syscall.S_IFDIR | 0o755
		return fuse.OK
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out.Attr = f.attr
	return fuse.OK
}

// StatFs is what the service asks if it does not know the file system.
func (f *faultFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.NameLen = 255
	return fuse.OK
}

// Open has every read come here: no page of the file is kept.
func (f *faultFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.only != 0 && in.Uid != f.only {
		return fuse.EACCES
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (f *faultFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.mu.Lock()
	for f.mode == "hang" {
		f.cond.Wait()
	}
	mode, file := f.mode, f.file
	if mode == "blips" {
		mode = "ok"
		if f.blip(int64(in.Offset), int64(len(buf))) {
			mode = "eio"
		}
	}
	if mode == "eio" || mode == "estale" {
		f.failed++
	}
	f.mu.Unlock()
	switch mode {
	case "eio":
		return nil, fuse.EIO
	case "estale":
		return nil, fuse.Status(syscall.ESTALE)
	case "short":
		buf = buf[:(len(buf)+1)/2]
	}
	n, err := file.ReadAt(buf, int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// storage is a file system with faults, in a process of its own.
type storage struct {
	*image
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Scanner
}

// newStorage mounts one that has img, by owner, for all or for the owner alone.
func (l *lab) newStorage(t *testing.T, owner user, img *image, private bool) *storage {
	t.Helper()
	dir := l.mkdir(t, owner)
	argv := []string{filepath.Join(l.dir, "faultfs"), img.path, dir}
	if err := os.Link(l.probe, argv[0]); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	if private {
		argv = append(argv, "private")
	}
	return startStorage(t, owner, dir, img, argv...)
}

// newOpenStorage mounts one that is a user's and lets everybody in, as where a node's fuse.conf allows that. It is in a
// mount namespace with such a file, and its path leads there.
func (l *lab) newOpenStorage(t *testing.T, owner user, img *image) *storage {
	t.Helper()
	dir, conf := l.mkdir(t, owner), filepath.Join(l.mkdir(t, root), "fuse.conf")
	program := filepath.Join(l.dir, "faultfs")
	if err := os.Link(l.probe, program); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("user_allow_other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("mount --bind %s /etc/fuse.conf && exec setpriv --reuid=%d --regid=%d --clear-groups %s %s %s", conf, owner.uid, owner.gid, program, img.path, dir)
	s := startStorage(t, root, dir, img, "unshare", "-m", "sh", "-c", script)
	s.path = fmt.Sprintf("/proc/%d/root%s", s.cmd.Process.Pid, s.path)
	return s
}

func startStorage(t *testing.T, by user, dir string, img *image, argv ...string) *storage {
	t.Helper()
	s := &storage{image: &image{path: filepath.Join(dir, "image"), size: img.size, data: img.data}}
	s.cmd = command(t, by, 4*bound, argv...)
	s.cmd.Stderr = os.Stderr
	var err error
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	if !s.out.Scan() || s.out.Text() != "ready" {
		t.Skipf("cannot mount a file system with faults: %q", s.out.Text())
	}
	return s
}

// do has it behave as a line says, and returns how it answers.
func (s *storage) do(t *testing.T, line string) (answer string) {
	t.Helper()
	if !within(t, bound, "the storage's answer to "+line, func() {
		fmt.Fprintln(s.stdin, line)
		s.out.Scan()
		answer = s.out.Text()
	}) {
		t.FailNow()
	}
	return answer
}

// kill ends it: everything that waits for it gets an error.
func (s *storage) kill() {
	_ = syscall.Kill(s.cmd.Process.Pid, syscall.SIGKILL)
	_ = s.cmd.Wait()
	_ = syscall.Unmount(filepath.Dir(s.path), syscall.MNT_DETACH)
}

// st0 is a time that no file has.
var st0 = time.Unix(1, 0)
