package servicetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Tasks are killed at any moment of their lives, with SIGKILL, as by scancel or the kernel. Who shares the image with
// them notices nothing, and nothing of them is left: no reference, mount, process or descriptor.
func TestKilledTasks(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "100ms")
	h := d.hold(t, users[0], l.image)
	kill := func(count int) {
		var crowd sync.WaitGroup
		for worker := range 4 {
			crowd.Go(func() {
				r := rand.New(rand.NewPCG(uint64(worker), 9))
				for range count {
					cmd := d.run(t, users[worker], l.image, "cold", "/", "5")
					cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setpgid = false, true
					if err := cmd.Start(); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Duration(r.IntN(120)) * time.Millisecond)
					// The client alone, or with its group: what runs in the container ends with either.
					pid := cmd.Process.Pid
					if r.IntN(2) == 0 {
						pid = -pid
					}
					_ = syscall.Kill(pid, syscall.SIGKILL)
					_ = cmd.Wait()
				}
			})
		}
		crowd.Wait()
	}
	kill(4)
	settled := func(limit *usage) (u usage) {
		eventually(t, "nothing is left of the tasks", func() bool {
			u = d.usage()
			i := d.imageReport(t)
			return i.References == 1 && (limit == nil || u.processes <= limit.processes && u.files <= limit.files+spareFiles && u.mounts <= limit.mounts)
		})
		return u
	}
	before := settled(nil)
	kill(16)
	after := settled(&before)
	t.Logf("before %+v, after %+v", before, after)
	if r := finish(t, d.inside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("%+v", r)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
	d.wantUnmounted(t)
	l.wantNoClients(t)
}

// A task that is stopped, as by scontrol suspend, in the middle of its reading keeps nobody else waiting.
func TestStoppedTask(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	cmd := d.run(t, users[0], l.image, "cold", "/", "30")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it reads", func() bool {
		r := d.ask()
		return r != nil && len(r.Images) == 1 && r.Images[0].Stats.Read > 10
	})
	inner := d.inner(t, cmd.Process.Pid)
	_ = syscall.Kill(inner, syscall.SIGSTOP)
	within(t, bound, "other tasks", func() {
		for i := range 3 {
			d.wantRun(t, users[i], l.image, "cold", "/", "0")
		}
	})
	_ = syscall.Kill(inner, syscall.SIGCONT)
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
}

// Devices are in the hands of the keeper, its heir, the server and its like alone; images are not in those of the mounter; no
// process of the service is on a mount that it serves; and none has more rights than it needs.
func TestHands(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	d.wantRun(t, users[1], l.image, "hash", "/", "0")
	// A process that is about to become another one has for a moment what its parent has.
	var bad []string
	if !eventually(t, "each process has what it needs and no more", func() bool { bad = d.badHands(); return len(bad) == 0 }) {
		t.Error(strings.Join(bad, "\n"))
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// badHands are the processes of the service that have what they should not.
func (d *daemon) badHands() (bad []string) {
	for _, p := range d.processes() {
		found := d.badHand(p)
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); to == d.exe { // not gone meanwhile
			bad = append(bad, found...)
		}
	}
	return bad
}

func (d *daemon) badHand(p process) (bad []string) {
	proc := fmt.Sprintf("/proc/%d/", p.pid)
	is := func(format string, args ...any) {
		bad = append(bad, fmt.Sprintf("%v ", p)+fmt.Sprintf(format, args...))
	}
	fds, _ := os.ReadDir(proc + "fd")
	devices, images := devicesOf(p.pid), 0
	for _, fd := range fds {
		switch to, _ := os.Readlink(proc + "fd/" + fd.Name()); {
		case to == d.image.path:
			images++
		case strings.HasPrefix(to, d.image.path):
			is("has %s open", to)
		}
	}
	keeper := p.pid == d.cmd.Process.Pid
	if devices+images > 0 && !keeper && p.name != serverName && p.name != heirName {
		is("has %d devices and %d images", devices, images)
	}
	for _, link := range []string{"cwd", "root"} {
		if to, _ := os.Readlink(proc + link); to != "/" {
			is("has %s %s", link, to)
		}
	}
	b, _ := os.ReadFile(proc + "status")
	status := string(b)
	if p.name == serverName {
		for _, want := range []string{"NoNewPrivs:\t1", "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"} {
			if !strings.Contains(status, want) {
				is("lacks %q:\n%s", want, status)
			}
		}
	}
	if env, _ := os.ReadFile(proc + "environ"); !keeper && strings.Contains(string(env), "SQUIRE_SOCKET") {
		is("has the environment %q", env)
	}
	return bad
}

// While the server stands still, and mounts of it are in directories, nobody who looks at processes and mounts waits.
func TestNobodyElseWaits(t *testing.T) {
	l := newLab(t, "ps")
	d := l.start(t)
	dir := l.mkdir(t, users[0])
	if r := finish(t, d.client(t, users[0], "mount", l.image.path, dir)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	h := d.hold(t, users[1], l.image)
	pid := 0
	stop := func() { // the one that is there: it is replaced after some seconds
		pid = d.serving(t, serverName)
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	stop()
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	forgetNames()
	stuck := command(t, users[0], 4*bound, l.probe, "cold", dir, "0")
	if err := stuck.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	for _, argv := range [][]string{{"ps", "-ef"}, {"cat", "/proc/self/mountinfo"}, {d.squire, "ps"}, {d.squire, "stats", "--json"}} {
		waited := true
		for tries := 0; waited && tries < 4; tries++ {
			stop()
			cmd := command(t, root, bound, argv...)
			cmd.Env = append(cmd.Env, "SQUIRE_SOCKET="+d.socket, "SQUIRE_SERVICE=node")
			if r := finish(t, cmd); r.status != 0 {
				t.Errorf("%q: %+v", argv, r)
			}
			waited = !stopped(pid) // or the machine is busy
		}
		if waited {
			t.Errorf("%q ends only when there is a server again", argv)
		}
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	if err := stuck.Wait(); err != nil {
		t.Errorf("the reader: %v", err)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// stopped says whether a process stands still.
func stopped(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "T")
}

// Clients in user namespaces, nested ones too, are who they really are, whatever they are called there.
func TestNestedClients(t *testing.T) {
	l := newLab(t, "unshare")
	d := l.start(t)
	for _, depth := range []int{0, 1, 2, 3, 29} { // the kernel has 32, of which the container takes two
		cmd := d.run(t, users[2], l.image, "wait")
		argv := []string{}
		for range depth {
			argv = append(argv, "unshare", "-Ur")
		}
		cmd.Args = append(argv, cmd.Args...)
		if depth > 0 {
			path, err := exec.LookPath("unshare")
			if err != nil {
				t.Fatal(err)
			}
			cmd.Path = path
		}
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil {
			t.Errorf("depth %d: %v", depth, err)
		}
		// They may do without the service: root of the node is nobody's number there, which clients need not believe.
		i := d.imageReport(t)
		if !slices.Equal(i.Users, []uint32{users[2].uid}) && (depth == 0 || i.References > 0) {
			t.Errorf("depth %d: %d references of users %v", depth, i.References, i.Users)
		}
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
}

// What runs in a container has nothing of the service in its hands.
func TestNothingInherited(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	d.imageReport(t)
	proc := fmt.Sprintf("/proc/%d/fd", d.inner(t, h.cmd.Process.Pid))
	fds, err := os.ReadDir(proc)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(proc + "/" + fd.Name())
		// Others come from Go's runtime, and from whoever has started the test.
		for _, of := range []string{"/dev/fuse", "socket:", "/memfd:", "[pidfd]", l.dir, "/list", "mnt:", "user:"} {
			if strings.Contains(to, of) {
				t.Errorf("descriptor %s is %s", fd.Name(), to)
			}
		}
		if to == "/" {
			t.Errorf("descriptor %s is a root", fd.Name())
		}
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// What users mounted is theirs to use: by everybody's leave only for root, with the owners of the image, and with
// options that are checked.
func TestMounts(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "100ms")
	for _, u := range []user{root, users[0], users[1]} {
		dir := l.mkdir(t, u)
		if r := finish(t, d.client(t, u, "mount", "-o", "ro,noexec", l.image.path, dir)); r.status != 0 {
			t.Fatalf("user %v: %+v", u, r)
		}
		if r := finish(t, command(t, u, bound, l.probe, "hash", dir, "0")); r.status != 0 {
			t.Errorf("user %v: %+v", u, r)
		}
		if r := finish(t, command(t, users[3], bound, l.probe, "hash", dir, "0")); (r.status == 0) != (u == root) {
			t.Errorf("another, on the mount of user %v: %+v", u, r)
		}
		if r := finish(t, command(t, u, bound, "sh", "-c", dir+"/bin/probe wait </dev/null")); r.status != 126 {
			t.Errorf("noexec: %+v", r)
		}
		if r := finish(t, d.client(t, u, "mount", l.image.path, dir)); r.status == 0 {
			t.Error("mounted twice in one place")
		}
		d.kill(serverName)
		d.kill(mounterName)
		eventually(t, "it can be unmounted", func() bool { return finish(t, d.client(t, u, "umount", dir)).status == 0 })
		if m := mountsBelow(dir); len(m) > 0 {
			t.Errorf("still there: %v", m)
		}
	}
	d.wantUnmounted(t)
}

// A mount of squire mount goes on after its client has ended, its image's file was removed, and every process of the
// service but the keeper was killed; unmounted with plain umount, it is forgotten.
func TestMountOutlives(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "100ms")
	img := l.own(t, users[0])
	dir := l.mkdir(t, users[0])
	if r := finish(t, d.client(t, users[0], "mount", img.path, dir)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	if err := os.Remove(img.path); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // longer than idle
	d.kill(serverName)
	d.kill(mounterName)
	forgetNames()
	if r := finish(t, command(t, users[0], bound, l.probe, "cold", dir, "0")); r.status != 0 {
		t.Errorf("%+v", r)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	d.wantUnmounted(t)
}

// The disk that traces go to is full, or cannot be written to: containers run all the same.
func TestTraceDisk(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "50ms")
	home := l.mkdir(t, users[0])
	if err := unix.Mount("tmpfs", home, "tmpfs", 0, "size=64k,mode=0777"); err != nil {
		t.Fatal(err)
	}
	run := func() {
		cmd := d.run(t, users[0], l.image, "cold", "/", "0")
		cmd.Env = slices.DeleteFunc(cmd.Env, func(s string) bool { return s == "SQUIRE_TRACE=0" || s == "HOME=/nonexistent" })
		cmd.Env = append(cmd.Env, "HOME="+home)
		if r := finish(t, cmd); r.status != 0 {
			t.Errorf("%+v", r)
		}
		eventually(t, "the image is gone", func() bool { return len(d.report(t).Images) == 0 })
	}
	run()
	_ = os.WriteFile(home+"/filler", make([]byte, 64<<10), 0o644) // as much as there is room for
	run()
	// The server has the trace open for a moment after the image is gone.
	eventually(t, "it can be made read-only", func() bool { return unix.Mount("", home, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") == nil })
	run()
}
