package servicetest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// storeMain puts a page at the beginning of a file into the kernel's page cache, as a server does (FUSE_NOTIFY_STORE). Its
// descriptor 3 is the device, its argument the number of the file's node.
func storeMain(args []string) error {
	node, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	const page = 4096
	h := struct { // include/uapi/linux/fuse.h: struct fuse_out_header, struct fuse_notify_store_out
		fuse.OutHeader
		node, offset uint64
		size, pad    uint32
	}{node: node, size: page}
	h.Length, h.Status = uint32(unsafe.Sizeof(h)+page), 4 // FUSE_NOTIFY_STORE
	header := (*[unsafe.Sizeof(h)]byte)(unsafe.Pointer(&h))[:]
	_, err = unix.Writev(3, [][]byte{header, make([]byte, page)})
	return err
}

// nodeOf returns the number that the server gives a file of an image.
func nodeOf(t *testing.T, img *image, name string) uint64 {
	t.Helper()
	i, err := sqfs.OpenImage(img.path)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	ref := i.Root()
	for part := range strings.SplitSeq(name, "/") {
		dir, err := i.Inode(ref)
		if err != nil {
			t.Fatal(err)
		}
		e, err := i.Lookup(&dir, part)
		if err != nil {
			t.Fatal(err)
		}
		ref = e.Ref
	}
	return uint64(ref) + 2 // fusefs: nodeBase
}

// device returns the keeper's descriptor for a FUSE connection.
func (d *daemon) device(t *testing.T, connection string) *os.File {
	t.Helper()
	pid := d.report(t).PID
	infos, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	for _, info := range infos {
		b, _ := os.ReadFile(info)
		_, n, ok := strings.Cut(string(b), "fuse_connection:")
		fd, err := strconv.Atoi(filepath.Base(info))
		if !ok || err != nil || strings.TrimSpace(n) != connection {
			continue
		}
		self, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(self)
		got, err := unix.PidfdGetfd(self, fd, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(got), "device")
	}
	t.Skip("the kernel does not tell which device is of which mount, as it does since Linux 6.16")
	return nil
}

// connectionAt is the number of the FUSE connection that is mounted on a directory.
func connectionAt(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(unix.Minor(st.Dev))
}

// connectionsDir mounts what the kernel tells of FUSE connections.
func (l *lab) connectionsDir(t *testing.T) string {
	t.Helper()
	dir := l.mkdir(t, root)
	if err := unix.Mount("none", dir, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// state is how a process is, as ps shows it; "" if there is none.
func state(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:min(1, len(rest))]
}

// All processes of a service are killed while one of them stores into a page that a reader waits for: that one cannot die,
// and keeps the device, and so the reader, with all that comes to the mount. The next service frees them, where nobody has
// mounted fusectl as well.
func TestKilledWhileStoring(t *testing.T) {
	l := newLab(t)
	control := l.connectionsDir(t)
	d := l.start(t)
	dir := l.mkdir(t, root)
	if r := finish(t, d.client(t, root, "mount", l.image.path, dir)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	h := d.hold(t, users[0], l.image) // of another view, and with that another mount, which dies with the service
	name := fmt.Sprintf("data/%02d/%03d", (smallFiles+1)%20, smallFiles+1)
	if f, err := os.Open(filepath.Join(dir, name)); err != nil { // the kernel knows it from here, and asks for pages only
		t.Fatal(err)
	} else {
		f.Close()
	}
	connection := connectionAt(t, dir)
	// The server stands still, so that the page stays locked; the storing is another process's, with what a server has in
	// its hands.
	if err := syscall.Kill(d.serving(t, serverName), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	reader := command(t, root, 2*bound, "cat", filepath.Join(dir, name))
	var said bytes.Buffer
	reader.Stderr = &said
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(filepath.Join(control, connection, "abort"), []byte("1"), 0) })
	eventually(t, "the reader waits", func() bool {
		b, _ := os.ReadFile(filepath.Join(control, connection, "waiting"))
		return strings.TrimSpace(string(b)) != "0"
	})
	storer := command(t, root, 2*bound, l.probe, fmt.Sprint(nodeOf(t, l.image, name)))
	storer.Args[0] = "storer"
	device := d.device(t, connection)
	storer.ExtraFiles = []*os.File{device}
	if err := storer.Start(); err != nil {
		t.Fatal(err)
	}
	device.Close()
	still := 0 // it also waits like that for moments while it starts
	eventually(t, "it waits for the page", func() bool {
		if still++; state(storer.Process.Pid) != "D" {
			still = 0
		}
		return still == 30
	})
	_ = storer.Process.Kill()
	killAll(d.processes)
	<-d.ended
	time.Sleep(300 * time.Millisecond)
	if s := state(storer.Process.Pid); s != "D" {
		t.Errorf("who stores is %q: this test has nothing to say", s)
	}
	d.startAgain(t)
	within(t, bound, "the end of the reader", func() { _ = reader.Wait() })
	if !strings.Contains(said.String(), "connection abort") && !strings.Contains(said.String(), "not connected") {
		t.Errorf("the reader: %v, %q", reader.ProcessState, said.String())
	}
	within(t, bound, "the end of who stores", func() { _ = storer.Wait() })
	eventually(t, "the mount is gone", func() bool { return len(mountsBelow(dir)) == 0 })
	_ = h.end()
	d.wantRun(t, users[1], l.image, "hash", "/", "0")
}
