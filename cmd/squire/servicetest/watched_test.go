package servicetest

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watch has the kernel note every process that opens something in the file system of dir, until it is stopped.
func watch(t *testing.T, dir string) (stop func() map[int]bool) {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err == nil {
		const what = unix.FAN_OPEN | unix.FAN_ACCESS | unix.FAN_OPEN_EXEC
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, what|unix.FAN_ONDIR, unix.AT_FDCWD, dir)
	}
	if err != nil {
		t.Skipf("no fanotify: %v", err)
	}
	f := os.NewFile(uintptr(fd), "fanotify")
	seen := make(map[int]bool)
	var reading sync.WaitGroup
	reading.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			for e := b[:n]; len(e) >= 24; { // struct fanotify_event_metadata
				size := binary.NativeEndian.Uint32(e)
				if about := int32(binary.NativeEndian.Uint32(e[16:])); about >= 0 {
					unix.Close(int(about))
				}
				seen[int(int32(binary.NativeEndian.Uint32(e[20:])))] = true
				e = e[size:]
			}
		}
	})
	return func() map[int]bool {
		f.Close()
		reading.Wait()
		return seen
	}
}

// No process of the service opens anything in a mount that it serves, whatever happens to the others and whatever is asked of
// it: it would wait for itself.
func TestNeverInItsMounts(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	dir := l.mkdir(t, root)
	if r := finish(t, d.client(t, root, "mount", l.image.path, dir)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	of := make(map[int]string)
	note := func() {
		for _, p := range d.processes() {
			of[p.pid] = p.name
		}
	}
	stop := watch(t, dir)
	reader := command(t, root, bound, l.probe, "cold", dir, "0")
	var out bytes.Buffer
	reader.Stdout = &out
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	note()
	for _, name := range []string{serverName, mounterName, heirName} {
		d.kill(name)
		d.serving(t, name)
		d.report(t)
		note()
	}
	_ = d.cmd.Process.Signal(syscall.SIGHUP)
	d.serving(t, serverName)
	if r := finish(t, d.client(t, root, "stats", "--json")); r.status != 0 {
		t.Errorf("%+v", r)
	}
	note()
	if err := reader.Wait(); err != nil {
		t.Errorf("%v, %s", err, &out)
	}
	if r := finish(t, d.client(t, root, "umount", dir)); r.status != 0 {
		t.Errorf("%+v", r)
	}
	d.report(t)
	note()
	seen := stop()
	if !seen[reader.Process.Pid] {
		t.Errorf("the reader was not seen, of %v", seen)
	}
	for pid := range seen {
		if name, ok := of[pid]; ok {
			t.Errorf("%s (%d) was in its own mount", name, pid)
		}
	}
}

// The service's cgroup has less memory than its caches would take: what the kernel ends is the server, readers go on, and
// the keeper is the same.
func TestLittleMemory(t *testing.T) {
	l := newLab(t)
	acc := newAccount(t)
	if acc == nil {
		t.Skip("needs a memory cgroup")
	}
	img, err := l.makeImage("large-blocks", 21, "-b", "1M")
	if err != nil {
		t.Fatal(err)
	}
	limit := strings.TrimSuffix(acc.stat, "stat") + "max"
	if _, err := os.Stat(limit); err != nil {
		limit = strings.TrimSuffix(acc.stat, "stat") + "limit_in_bytes"
	}
	if err := os.WriteFile(limit, []byte(strconv.Itoa(48<<20)), 0); err != nil {
		t.Skipf("cannot limit memory: %v", err)
	}
	d := l.newDaemon(t)
	cmd := exec.Command(d.exe, d.args("--cache", "4G")...)
	acc.enter(cmd)
	d.launch(t, cmd)
	d.wantAnswer(t)
	t.Cleanup(func() { d.clear(t) }) // before the cgroup is removed
	pid := d.report(t).PID
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for i := range 16 {
		cmd, out := d.run(t, users[i%len(users)], img, "cold", "/", "3"), new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		forgetNames()
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("reader %d: %v\n%s", i, err, outs[i])
		}
	}
	r := d.report(t)
	if r.PID != pid {
		t.Errorf("keeper %d has become %d", pid, r.PID)
	}
	t.Logf("%d servers and %d mounters died", r.Restarts.Server, r.Restarts.Mounter)
}
