package main_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/testenv"
)

// TestService drives squire over the service of a node, and over a user's own.
func TestService(t *testing.T) {
	l := newLab(t)
	t.Run("node", func(t *testing.T) { testNode(t, l) })
	t.Run("limit", func(t *testing.T) { testServiceLimit(t, l) })
	t.Run("descriptors", func(t *testing.T) { testServiceDescriptors(t, l) })
	t.Run("own", func(t *testing.T) { testOwn(t, l) })
	t.Run("own-at-once", func(t *testing.T) { testOwnAtOnce(t, l) })
	t.Run("own-in-container", func(t *testing.T) { testOwnInContainer(t, l) })
	t.Run("own-name-taken", func(t *testing.T) { testOwnNameTaken(t, l) })
}

func testNode(t *testing.T, l *lab) {
	node := l.daemon(t)
	for _, who := range users {
		t.Run("run/"+who.name, func(t *testing.T) { testServiceRun(t, l, node, who) })
		t.Run("run-bad-input/"+who.name, func(t *testing.T) { testServiceBadInput(t, l, node, who) })
		t.Run("run-killed/"+who.name, func(t *testing.T) { testServiceRunKilled(t, l, node, who) })
	}
	for _, who := range mounters {
		t.Run("mount/"+who.name, func(t *testing.T) { testServiceMount(t, l, node, who) })
	}
	t.Run("mount-as-others", func(t *testing.T) { testServiceMountOthers(t, l, node) })
	t.Run("mount8", func(t *testing.T) { testMount8(t, l, node) })
	t.Run("nested", func(t *testing.T) { testServiceNested(t, l, node) })
}

// service is a way for commands to find a service: variables, as for env(1).
type service []string

// with is a command line of squire's that uses the service.
func (l *lab) with(s service, args ...string) []string {
	return slices.Concat([]string{"env"}, s, []string{l.squire}, args)
}

// daemon starts a service of the node and ends it with the test.
func (l *lab) daemon(t *testing.T, flags ...string) service {
	t.Helper()
	socket := testenv.Daemon(t, l.squire, l.dir, append([]string{"--idle", "100ms", "--drain", "5s"}, flags...)...)
	return service{"SQUIRE_SERVICE=node", "SQUIRE_SOCKET=" + socket}
}

// stages lists the lab's processes with this name as their first argument.
func (l *lab) stages(name string) (pids []int) {
	for _, pid := range l.processes() {
		if strings.HasPrefix(describe([]int{pid}), fmt.Sprintf("[%d %s", pid, name)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// wantIdle wants no mount of the lab's to be left, and no process but of services.
func (l *lab) wantIdle(t *testing.T, words ...string) {
	t.Helper()
	busy := func() (pids []int) {
		for _, pid := range l.processes(words...) {
			if d := describe([]int{pid}); !strings.Contains(d, " squire-mounter") && !strings.Contains(d, " squire-server") &&
				!strings.Contains(d, " squire-own") && !strings.Contains(d, " daemon ") {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	if !eventually(leaving, func() bool { return len(l.mounts()) == 0 && len(busy()) == 0 }) {
		t.Errorf("%s later there are still mounts %v, in the namespaces of %s, and processes %s", leaving, l.mounts(), l.mounters(), describe(busy()))
	}
}

// testServiceRun wants containers to work as with a server of their own, and to have none.
func testServiceRun(t *testing.T, l *lab, s service, who user) {
	for _, image := range []string{"zstd", "gzip"} {
		r := l.run(t, who, l.with(s, "run", l.images[image], "--", "python3", "-c", script)...)
		if r != (result{stdout: "10\n"}) {
			t.Errorf("%s: %+v", image, r)
		}
	}
	r := l.run(t, who, l.with(s, "run", "--writable", l.images["zstd"], "--", "sh", "-c", "echo changed >/etc/hostname && cat /etc/hostname; stat -c %U /etc/passwd; exit 42")...)
	if r.status != 42 || !strings.HasPrefix(r.stdout, "changed\n") || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	r = l.run(t, who, l.with(s, "run", "--remap-root", l.images["zstd"], "--", "sh", "-c", "id -u; stat -c %u:%g /etc/passwd")...)
	if r != (result{stdout: "0\n0:0\n"}) {
		t.Errorf("--remap-root: %+v", r)
	}
	r = l.run(t, who, l.with(s, "run", "-v", l.images["zstd"], "--", "true")...)
	if r.status != 0 || !strings.HasPrefix(r.stderr, "squire: service ") {
		t.Errorf("-v: %+v", r)
	}
	r = l.run(t, who, l.with(s, "run", l.images["zstd"], "--", "sh", "-c", "grep ' / ' /proc/self/mountinfo")...)
	if !strings.Contains(r.stdout, " ro,nosuid,nodev") && !strings.Contains(r.stdout, "overlay") {
		t.Errorf("the root is mounted so: %+v", r)
	}
	if private := l.stages("squire-serve "); len(private) > 0 {
		t.Errorf("servers of their own: %s", describe(private))
	}
	l.wantIdle(t)
}

// testServiceBadInput wants the words of a command without a service, and its status.
func testServiceBadInput(t *testing.T, l *lab, s service, who user) {
	closed := l.file(t, "closed-to-service", []byte("secret"))
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	text := l.file(t, "text-for-service", bytes.Repeat([]byte("this is no image\n"), 1000))
	dir := l.mkdir(t, who)
	for _, tt := range []struct {
		name  string
		args  []string
		words []string
		skip  bool
	}{
		{name: "closed", args: []string{"run", closed, "--", "true"}, words: []string{closed, "permission denied"}, skip: who.cred == nil},
		{name: "closed mount", args: []string{"mount", closed, dir}, words: []string{closed, "permission denied"}, skip: who.cred == nil},
		{name: "no image", args: []string{"run", text, "--", "true"}, words: []string{text, "not a squashfs image"}},
		{name: "no image to mount", args: []string{"mount", text, dir}, words: []string{text, "not a squashfs image"}},
		{name: "missing", args: []string{"run", l.dir + "/missing", "--", "true"}, words: []string{"missing", "no such file"}},
		{name: "no directory", args: []string{"mount", l.images["zstd"], l.dir + "/none"}, words: []string{"none", "no such directory"}},
		{name: "mount on a file", args: []string{"mount", l.images["zstd"], text}, words: []string{text, "not a directory"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.skip {
				t.Skip("root may read everything")
			}
			r := l.run(t, who, l.with(s, tt.args...)...)
			line, rest, _ := strings.Cut(r.stderr, "\n")
			if r.status != statusFailed || r.stdout != "" || rest != "" || !strings.HasPrefix(line, "squire: ") {
				t.Errorf("%+v", r)
			}
			for _, w := range tt.words {
				if !strings.Contains(line, w) {
					t.Errorf("%q does not name %q", line, w)
				}
			}
		})
	}
	l.wantIdle(t)
}

// testServiceRunKilled wants nothing of a container to be left when its squire was killed.
func testServiceRunKilled(t *testing.T, l *lab, s service, who user) {
	dir := l.mkdir(t, who)
	word := fmt.Sprintf("%d.%06d", 5000, time.Now().UnixNano()%1e6)
	cmd, _ := l.start(t, who, dir, l.with(s, "run", l.images["zstd"], "--", "sh", "-c", "touch "+dir+"/ready; sleep "+word)...)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l.wantIdle(t, word)
}

// testServiceMount wants a mount of the service to be there when the command ends, to be where others' eyes are as
// without it, and to go.
func testServiceMount(t *testing.T, l *lab, s service, who user) {
	s = append(slices.Clone(s), "PATH=/nonexistent") // no fusermount3
	env := exec.Command("env").Path
	squire := func(args ...string) []string { l := l.with(s, args...); l[0] = env; return l }
	for _, options := range []string{"ro", "noexec", "restrict,uid=7,gid=8"} {
		if who.cred != nil {
			options, _, _ = strings.Cut(options, ",")
		}
		dir := l.mountPoint(t, who)
		if r := l.run(t, who, squire("mount", "-o", options, l.images["zstd"], dir)...); r != (result{}) {
			t.Fatalf("mount: %+v", r)
		}
		if mounts := l.mounts(); len(mounts) != 1 || mounts[0].Point != dir {
			t.Errorf("mounts are %v", mounts)
		}
		want, r := result{stdout: "0:0\n"}, l.run(t, who, "stat", "-c", "%u:%g", dir+"/etc/passwd")
		if strings.Contains(options, "uid") {
			want.stdout = "7:8\n"
		}
		if r != want {
			t.Errorf("%s: %+v, want %+v", options, r, want)
		}
		if r := l.run(t, who, "sh", "-c", dir+"/bin/true"); (r.status == 0) == (options == "noexec") {
			t.Errorf("%s: execute: %+v", options, r)
		}
		if r := l.run(t, who, squire("mount", l.images["gzip"], dir)...); r.status != statusFailed || !strings.Contains(r.stderr, "mounted there already") {
			t.Errorf("mount twice: %+v", r)
		}
		if r := l.run(t, who, squire("umount", dir)...); r != (result{}) {
			t.Errorf("umount: %+v", r)
		}
		if r := l.run(t, who, squire("umount", dir)...); r.status != statusFailed || !strings.Contains(r.stderr, "no image is mounted there") {
			t.Errorf("umount twice: %+v", r)
		}
	}
	dir := l.mountPoint(t, who)
	if r := l.run(t, who, squire("mount", l.images["zstd"], dir)...); r != (result{}) {
		t.Fatalf("mount: %+v", r)
	}
	busy := l.command(t.Context(), who, "sleep", "60")
	busy.Dir = dir
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Process.Kill(); _ = busy.Wait() }()
	if r := l.run(t, who, squire("umount", dir)...); r.status != statusFailed || !strings.Contains(r.stderr, "busy") {
		t.Errorf("umount in use: %+v", r)
	}
	if r := l.run(t, who, squire("umount", "-l", dir)...); r != (result{}) {
		t.Errorf("umount -l: %+v", r)
	}
	_ = busy.Process.Kill()
	_ = busy.Wait()
	if private := l.stages("squire-serve "); len(private) > 0 {
		t.Errorf("servers of their own: %s", describe(private))
	}
	l.wantIdle(t)
}

// testServiceMountOthers wants a user's mount to be closed to others, root too, and a directory that is not the user's
// to stay free of it.
func testServiceMountOthers(t *testing.T, l *lab, s service) {
	who := mounters[1]
	dir, roots := l.mountPoint(t, who), l.mountPoint(t, mounters[0])
	if r := l.run(t, who, l.with(s, "mount", l.images["zstd"], roots)...); r.status != statusFailed || !strings.Contains(r.stderr, roots) {
		t.Errorf("mount on root's directory: %+v", r)
	}
	if r := l.run(t, who, l.with(s, "mount", l.images["zstd"], dir)...); r != (result{}) {
		t.Fatalf("mount: %+v", r)
	}
	for _, other := range users {
		if r := l.run(t, other, "cat", dir+"/etc/passwd"); r.status == 0 {
			t.Errorf("%s reads it", other.name)
		}
	}
	if r := l.run(t, users[1], l.with(s, "umount", dir)...); r.status != statusFailed {
		t.Errorf("another unmounts it: %+v", r)
	}
	if r := l.run(t, who, l.with(s, "umount", dir)...); r != (result{}) {
		t.Errorf("umount: %+v", r)
	}
	l.wantIdle(t)
}

// mount8 runs a script with mount(8), in a mount namespace of its own where /sbin has the helper.
func (l *lab) mount8(t *testing.T, s service, script string) result {
	t.Helper()
	helpers, err := os.MkdirTemp(l.dir, "sbin")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(helpers)
	if err = os.Symlink(l.squire, helpers+"/mount.squire"); err != nil {
		t.Fatal(err)
	}
	sbin, err := filepath.EvalSymlinks("/sbin")
	if err != nil {
		t.Fatal(err)
	}
	script = "mount -t overlay -o lowerdir=" + helpers + ":" + sbin + " none " + sbin + " || exit 99\n" + script
	argv := slices.Concat([]string{"env"}, s, []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script})
	return l.run(t, users[0], argv...)
}

func testMount8(t *testing.T, l *lab, node service) {
	image, dir := l.images["zstd"], l.mountPoint(t, users[0])
	table := l.file(t, "fstab", fmt.Appendf(nil, "%s %s squire ro,nofail,noexec,x-systemd.requires=network.target 0 0\n", image, dir))
	missing := l.file(t, "fstab-missing", fmt.Appendf(nil, "/no/such.sqsh %s squire ro,nofail 0 0\n", dir))
	look := "; grep -c ^root: " + dir + "/etc/passwd; grep " + dir + " /proc/self/mountinfo | grep -o 'fuse.squire [^ ]*'; umount " + dir
	for name, s := range map[string]service{"node": node, "off": {"SQUIRE_SERVICE=off"}} {
		t.Run(name, func(t *testing.T) {
			if r := l.mount8(t, s, "true"); r.status == 99 {
				t.Skipf("no overlay for /sbin: %s", r.stderr)
			}
			good := result{stdout: "1\nfuse.squire " + image + "\n"}
			for _, tt := range []struct {
				script string
				want   result
				stderr string
			}{
				{script: "mount -t squire " + image + " " + dir + look, want: good},
				{script: "mount -t squire -o ro,relatime,nosuid " + image + " " + dir + look, want: good},
				{script: "mount -T " + table + " " + dir + look, want: good},
				{script: "mount -T " + table + " -a" + look, want: good},
				{script: "mount -t squire -o nonsense " + image + " " + dir, want: result{status: 1}, stderr: `unknown option "nonsense"`},
				{script: "mount -s -t squire -o nonsense " + image + " " + dir + look, want: good},
				{script: "mount -f -t squire " + image + " " + dir + "; ls " + dir},
				{script: "mount -t squire " + table + " " + dir, want: result{status: 32}, stderr: "not a squashfs image"},
				{script: "mount -t squire " + image + " " + dir + "/none", want: result{status: 32}, stderr: "no such directory"},
				{script: "mount -t squire /no/such.sqsh " + dir, want: result{status: 32}, stderr: "no such file"},
				{script: "mount -T " + missing + " " + dir + " && mount -T " + missing + " -a; s=$?; ls " + dir + "; exit $s"},
				{script: "unshare --mount sleep 20 & sleep 1; mount -N $! -t squire " + image + " " + dir + " && ls " + dir + " && nsenter -t $! -m ls -d " + dir + "/etc; s=$?; nsenter -t $! -m umount " + dir + "; kill $!; exit $s", want: result{stdout: dir + "/etc\n"}},
			} {
				r := l.mount8(t, s, tt.script)
				if !strings.Contains(r.stderr, tt.stderr) || tt.stderr == "" && r.stderr != "" {
					t.Errorf("%s: stderr %q, want %q", tt.script, r.stderr, tt.stderr)
				}
				if r.stderr = ""; r != tt.want {
					t.Errorf("%s: %+v, want %+v", tt.script, r, tt.want)
				}
			}
			l.wantIdle(t)
		})
	}
}

// testServiceLimit wants who comes to a service that is full to do without.
func testServiceLimit(t *testing.T, l *lab) {
	s := l.daemon(t, "--limit-images", "1")
	dir, second := l.mountPoint(t, users[0]), l.mountPoint(t, users[0])
	if r := l.run(t, users[0], l.with(s, "mount", l.images["zstd"], dir)...); r != (result{}) {
		t.Fatalf("mount: %+v", r)
	}
	if r := l.run(t, users[0], l.with(s, "mount", l.images["gzip"], second)...); r != (result{}) {
		t.Errorf("mount of a second image: %+v", r)
	}
	if private := l.stages("squire-serve "); len(private) != 1 {
		t.Errorf("servers of their own: %s, want that of the second mount", describe(private))
	}
	for _, who := range users {
		r := l.run(t, who, l.with(s, "run", "-v", l.images["gzip"], "--", "echo", "ran")...)
		if r.status != 0 || r.stdout != "ran\n" || !strings.Contains(r.stderr, "squire: without a service: ") || !strings.Contains(r.stderr, "squire: server ") {
			t.Errorf("run by %s: %+v", who.name, r)
		}
	}
	for _, d := range []string{dir, second} {
		if r := l.run(t, users[0], l.with(s, "umount", d)...); r != (result{}) {
			t.Errorf("umount: %+v", r)
		}
	}
	l.wantIdle(t)
}

// testServiceNested wants a container in a container to work, where the socket is not to be seen, and where it is.
func testServiceNested(t *testing.T, l *lab, s service) {
	inner := []string{l.squire, "run", l.images["gzip"], "--", "echo", "inside"}
	for name, mounts := range map[string]string{"hidden": l.squire + "," + l.images["gzip"], "bound": l.dir} {
		r := l.run(t, users[1], l.with(s, append([]string{"run", "--mounts", mounts, l.images["zstd"], "--"}, inner...)...)...)
		if r != (result{stdout: "inside\n"}) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	l.wantIdle(t)
}

// testServiceDescriptors wants a service to keep nobody waiting for what it inherited.
func testServiceDescriptors(t *testing.T, l *lab) {
	dir := l.mkdir(t, users[0])
	script := l.squire + " daemon --socket " + dir + "/socket 9>" + dir + `/held & p=$!
		for i in $(seq 200); do [ -S ` + dir + `/socket ] && break; sleep 0.05; done
		ls -l /proc/$p/fd | grep -c /held; kill $p; wait $p`
	if r := l.run(t, users[0], "sh", "-c", script); r.stdout != "0\n" || r.status != 0 {
		t.Errorf("%+v", r)
	}
	os.RemoveAll(dir)
	l.wantIdle(t)
}

// ownService finds the users' only service of their own.
func (l *lab) ownService(t *testing.T) int {
	t.Helper()
	pids := l.stages("squire-own ")
	if len(pids) != 1 {
		t.Fatalf("own services are %s, want one", describe(pids))
	}
	return pids[0]
}

// endOwn ends the users' own services of the lab.
func (l *lab) endOwn(t *testing.T) {
	for _, pid := range l.stages("squire-own ") {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	if !eventually(leaving, func() bool { return len(l.processes()) == 0 }) {
		t.Errorf("still there: %s", describe(l.processes()))
		for _, pid := range l.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// own is how commands find the user's own service.
var own = service{"SQUIRE_SERVICE=own"}

// testOwn wants an ordinary user's first container to start a service, which is nobody's child and outlives it, and the
// next to use that one.
func testOwn(t *testing.T, l *lab) {
	defer l.endOwn(t)
	who := users[1]
	r := l.run(t, who, l.with(own, "run", "-v", l.images["zstd"], "--", "python3", "-c", script)...)
	if r.status != 0 || r.stdout != "10\n" || !strings.HasPrefix(r.stderr, "squire: service ") {
		t.Errorf("%+v", r)
	}
	first := l.ownService(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", first))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(status[bytes.LastIndexByte(status, ')')+1:]))
	if session := fields[3]; fields[4] != "0" || session == fmt.Sprint(os.Getpid()) {
		t.Errorf("session %s, terminal %s", session, fields[4])
	}
	if here, _ := os.ReadFile("/proc/self/cgroup"); len(here) > 0 {
		if there, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", first)); !bytes.Equal(here, there) {
			t.Errorf("it is in cgroup %s, not in %s", there, here)
		}
	}
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", first))
	if bytes.Contains(env, []byte("HOME=")) {
		t.Errorf("its environment is %q", env)
	}
	for i := range 3 {
		if r := l.run(t, who, l.with(own, "run", l.images["gzip"], "--", "sh", "-c", fmt.Sprint("exit ", i))...); r != (result{status: i}) {
			t.Errorf("%+v", r)
		}
	}
	if r := l.run(t, who, l.with(own, "run", "--remap-root", "--writable", l.images["zstd"], "--", "sh", "-c", "echo x >/etc/passwd; id -u; stat -c %u /bin")...); r != (result{stdout: "0\n0\n"}) {
		t.Errorf("%+v", r)
	}
	if second := l.ownService(t); second != first {
		t.Errorf("the service was %d, is %d", first, second)
	}
	// Killed, it has an heir after a second, and leaves who comes next without before: they start another.
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := l.run(t, who, l.with(own, "run", l.images["zstd"], "--", "echo", "again")...); r != (result{stdout: "again\n"}) {
		t.Errorf("after the service was killed: %+v", r)
	}
	// An heir waits half a minute for those who used the images that it took over. Told twice it ends at once.
	_ = syscall.Kill(l.ownService(t), syscall.SIGTERM)
	time.Sleep(100 * time.Millisecond)
}

// testOwnAtOnce starts eight tasks at the same moment, of which one starts the service.
func testOwnAtOnce(t *testing.T, l *lab) {
	defer l.endOwn(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	outputs := make(chan string, 8)
	for range cap(outputs) {
		go func() {
			out, err := l.command(ctx, users[1], l.with(own, "run", l.images["zstd"], "--", "python3", "-c", script)...).CombinedOutput()
			outputs <- fmt.Sprint(string(out), err)
		}()
	}
	for range cap(outputs) {
		if out := <-outputs; out != "10\n<nil>" {
			t.Errorf("a task: %s", out)
		}
	}
	l.ownService(t)
	if servers := l.stages("squire-server "); len(servers) != 1 {
		t.Errorf("servers are %s, want one", describe(servers))
	}
}

// testOwnInContainer wants a service that a container starts to end with it: all that a command started does.
func testOwnInContainer(t *testing.T, l *lab) {
	r := l.run(t, users[1], l.with(service{"SQUIRE_SERVICE=off"}, "run", "--mounts", l.dir, "--set-env", "SQUIRE_SERVICE=own",
		l.images["zstd"], "--", l.squire, "run", l.images["gzip"], "--", "echo", "inside")...)
	if r != (result{stdout: "inside\n"}) {
		t.Errorf("%+v", r)
	}
	l.wantNothingLeft(t)
}

// testOwnNameTaken has another user listen at every name that may be the service's: squire must not talk to them.
func testOwnNameTaken(t *testing.T, l *lab) {
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skipf("needs the host's python3: %v", err)
	}
	defer l.endOwn(t)
	who := users[1]
	// The name is to be found in /proc/net/unix once the service was there.
	if r := l.run(t, who, l.with(own, "run", l.images["zstd"], "--", "true")...); r != (result{}) {
		t.Fatalf("%+v", r)
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	_, name, ok := strings.Cut(string(sockets), fmt.Sprintf("@squire-%d-", who.cred.Uid))
	if !ok {
		t.Fatal("no socket of the service's")
	}
	name, _, _ = strings.Cut(name, "\n")
	l.endOwn(t)
	dir := l.mkdir(t, mounters[1])
	squatter, _ := l.start(t, mounters[1], dir, "/usr/bin/python3", "-c", fmt.Sprintf(`
import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind("\0squire-%d-%s"); s.listen(9)
open("%s/ready", "w")
while True:
    c = s.accept()[0]
    if c.recv(100): open("%s/heard", "w")
`, who.cred.Uid, name, dir, dir))
	defer func() {
		_ = squatter.Process.Kill()
		_ = squatter.Wait()
		os.Remove(filepath.Join(dir, "heard"))
	}()
	if r := l.run(t, who, l.with(own, "run", l.images["zstd"], "--", "echo", "ran")...); r != (result{stdout: "ran\n"}) {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(filepath.Join(dir, "heard")); err == nil {
		t.Error("squire talked to another user's service")
	}
}
