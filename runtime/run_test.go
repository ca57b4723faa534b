package runtime

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// The tests run containers whose root is a directory with busybox, as the
// test's own user and, when that is root, as an ordinary user as well. The
// test binary stands in for squire: under InitName it is the init stage, under
// runnerName the runner.

const (
	runnerName  = "squire-test-runner"
	probeName   = "squire-test-probe"
	specEnv     = "SQUIRE_TEST_SPEC"
	keepUmask   = "SQUIRE_TEST_UMASK"
	tellNames   = "SQUIRE_TEST_PHASES"
	holdSignals = "SQUIRE_TEST_EARLY"
	plainUID    = 23456 // needs no account
)

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case InitName:
		os.Exit(Init(nil, testConfig))
	case runnerName:
		os.Exit(testRunner())
	case execName:
		os.Exit(testExec())
	case dialerName:
		os.Exit(testDialer())
	case impostorName:
		os.Exit(testImpostor())
	case holderName:
		os.Exit(testHolder())
	case probeName:
		os.Exit(probe())
	}
	if IsEntrypointCommand(os.Args) {
		os.Exit(TellEnviron())
	}
	for _, fd := range inherited() { // from whatever runs the tests
		unix.CloseOnExec(fd)
	}
	os.Exit(m.Run())
}

func testRunner() int {
	if os.Getenv(keepUmask) == "" {
		unix.Umask(0o077)
	}
	var o order
	if err := readMessage(hex.NewDecoder(strings.NewReader(os.Getenv(specEnv))), &o); err != nil {
		return fail(ExitFailed, err)
	}
	s, h := o.Spec, Probe()
	if err := addDevices(&s); err != nil {
		return fail(ExitFailed, err)
	}
	ops, err := Plan(&s, h)
	if err != nil {
		return fail(ExitFailed, err)
	}
	var r Runner
	if os.Getenv(tellNames) != "" {
		r.Phases = func(phases []Phase) {
			for _, p := range phases {
				fmt.Fprintln(os.Stderr, p.Name, p.Took > 0)
			}
		}
	}
	if err = r.Start(&s, h); err != nil {
		return fail(ExitFailed, err)
	}
	if os.Getenv(holdSignals) != "" {
		return holdBack(&r, ops)
	}
	if err = r.Send(ops); err != nil {
		r.Abandon()
		return fail(ExitFailed, err)
	}
	status, err := r.Wait()
	if err != nil {
		return fail(ExitFailed, err)
	}
	return status
}

// who is a user to run as.
type who struct {
	name string
	uid  int
}

// users are the ones that this test process can be.
func users() []who {
	if os.Getuid() == 0 {
		return []who{{"root", 0}, {"user", plainUID}}
	}
	return []who{{"user", os.Getuid()}}
}

// forUsers runs f for each user, in a root file system of its own.
func forUsers(t *testing.T, f func(t *testing.T, w who, root string)) {
	busybox := needBusybox(t)
	for _, w := range users() {
		t.Run(w.name, func(t *testing.T) {
			if w.uid != 0 && !mayUnshare(w) {
				t.Skip("user namespaces are not allowed here: " + namespaceHint())
			}
			f(t, w, makeRoot(t, w, busybox))
		})
	}
}

func needBusybox(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if out, err := exec.Command(p, "ldd", p).CombinedOutput(); err == nil || !strings.Contains(string(out), "=>") {
			if _, err := os.Stat(p); err == nil {
				return p
			}
		}
	}
	t.Skip("needs a static busybox (Debian's busybox-static)")
	return ""
}

func mayUnshare(w who) bool {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: w.uid, HostID: os.Getuid(), Size: 1}},
	}
	return cmd.Run() == nil
}

// publicDir is a temporary directory that belongs to w and that w can reach.
func publicDir(t *testing.T, w who) string {
	t.Helper()
	return testenv.Dir(t, "", w.uid, w.uid)
}

// makeRoot is a root file system with busybox and nothing else but /etc/hosts.
func makeRoot(t *testing.T, w who, busybox string) string {
	t.Helper()
	root := publicDir(t, w)
	for _, d := range []string{"bin", "etc", "opt", "proc", "sys", "dev", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	prog, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(filepath.Join(root, "bin/busybox"), prog, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat ls id env sleep pwd mount touch mkdir rm kill setsid tty stat grep ln hostname readlink true chmod cut chown stty") {
		if err = os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	err = filepath.Walk(root, func(p string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Lchown(p, w.uid, w.uid))
	})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// runner prepares a runner for s as w.
func runner(t *testing.T, w who, s Spec) *exec.Cmd {
	t.Helper()
	var b bytes.Buffer
	if err := writeMessage(hex.NewEncoder(&b), &order{Spec: s}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{runnerName}
	cmd.Env = append(os.Environ(), specEnv+"="+b.String())
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if w.uid != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(w.uid), Gid: uint32(w.uid), Groups: []uint32{uint32(w.uid) + 1}}
	}
	return cmd
}

// result is what a container printed and how it ended.
type result struct {
	out, err string
	status   int
}

func run(t *testing.T, w who, s Spec) result {
	t.Helper()
	cmd := runner(t, w, s)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = limit
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer limited(t, cmd)()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// sh runs a shell script in a container and wants it to succeed.
func sh(t *testing.T, w who, s Spec, script string) string {
	t.Helper()
	s.Command = []string{"/bin/sh", "-c", script}
	r := run(t, w, s)
	if r.status != 0 || r.err != "" {
		t.Fatalf("%s\nexit status %d\nstdout: %s\nstderr: %s", script, r.status, r.out, r.err)
	}
	return strings.Trim(r.out, "\n")
}

func TestRunSees(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		id := strconv.Itoa(w.uid)
		tests := []struct {
			name, script, want string
			spec               Spec
		}{
			{name: "ids", script: "id -u; id -g", want: id + "\n" + id},
			{name: "remap", script: "id -u; id -g; echo $HOME", spec: Spec{RemapRoot: true}, want: "0\n0\n/root"},
			{name: "root", script: "ls /", want: "bin\ndev\netc\nopt\nproc\nsys\ntmp"},
			{name: "default workdir", script: "pwd", want: "/"},
			{name: "workdir", script: "pwd", spec: Spec{Workdir: "/bin"}, want: "/bin"},
			{name: "null", script: "echo x >/dev/null && cat /dev/null", want: ""},
			{name: "urandom", script: "ls -l /dev/urandom | grep -c ^c", want: "1"},
			{name: "fds", script: "ls /dev/fd", want: "0\n1\n2\n3"}, // 3 is ls's own
			{name: "self", script: "cat /proc/self/comm", want: "cat"},
			{name: "sys read-only", script: "touch /sys/x 2>&1 | grep -c 'Read-only'", want: "1"},
			{name: "root read-only", script: "touch /x 2>&1 | grep -c 'Read-only'", want: "1"},
			{name: "seccomp", script: "grep Seccomp: /proc/self/status", want: "Seccomp:\t2"},
			{name: "no new privs", script: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t1"},
			{name: "tmp is the host's", script: "ls -d " + root, want: root},
			{name: "environment", script: "echo $A $B $PATH", spec: Spec{Environ: []string{"A=1", "PATH=/nowhere"}, SetEnv: []string{"B=2"}}, want: "1 2 " + DefaultPath},
			{name: "umask", script: "umask; ls -ld / /dev | cut -c1-10", spec: Spec{Writable: true}, want: "0077\ndrwxr-xr-x\ndrwxr-xr-x"},
			{name: "PWD", script: "/bin/env | grep -E '^(OLD)?PWD='", spec: Spec{Workdir: "/bin", Environ: []string{"PWD=/home/u", "OLDPWD=/home"}}, want: "PWD=/bin"},
			{name: "bytes", script: `echo "$B" "$0"`, spec: Spec{Environ: []string{"B=\xff\xfe"}}, want: "\xff\xfe /bin/sh"},
			{name: "pts", script: "ls /dev/pts; readlink /dev/ptmx", want: "ptmx\npts/ptmx"},
		}
		if w.uid != 0 {
			tests = append(tests, []struct {
				name, script, want string
				spec               Spec
			}{
				{name: "no capabilities", script: "grep -E 'Cap(Eff|Prm|Inh|Amb|Bnd)' /proc/self/status | grep -vc 0000000000000000; true", want: "0"},
				{name: "init is out of reach", script: "[ -r /proc/$PPID/environ ] && cat /proc/$PPID/environ; readlink /proc/$PPID/exe || echo no", want: "no"},
				{name: "groups kept", script: "grep Groups /proc/self/status", want: "Groups:\t" + groups(w)},
				{name: "no host in sight", script: "ls /proc/1/root/ >/dev/null 2>&1 || echo no", want: "no"},
				{name: "locked", script: "mount -o remount,rw / 2>/dev/null || echo no", want: "no"},
			}...)
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				if tt.name == "remap" && w.uid == 0 {
					tt.want = "0\n0\n/root"
				}
				tt.spec.Dir = root
				if got := sh(t, w, tt.spec, tt.script); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		}
	})
}

// groups is the Groups line of w inside: those without a mapping show as
// nogroup, and still count.
func groups(w who) string {
	if w.uid != os.Getuid() {
		return "65534 " // what runner sets
	}
	ids, _ := os.Getgroups()
	line := ""
	for _, g := range ids {
		if g != os.Getgid() {
			g = 65534
		}
		line += strconv.Itoa(g) + " "
	}
	return line
}

func TestRunMounts(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		data := publicDir(t, w)
		if err := os.WriteFile(data+"/f", []byte("data\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Symlink("/etc/passwd", root+"/abs"), os.Symlink("../../../up", root+"/bin/up"),
			os.Symlink("/made/by/link", root+"/dangling"), os.Symlink("loop", root+"/loop"), os.Symlink("/host", root+"/tohost"), os.Symlink("/host/new", root+"/tohost-new")); err != nil {
			t.Fatal(err)
		}
		socket, err := net.Listen("unix", data+"/socket")
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		t.Setenv("SQUIRE_TEST_DATA", data)
		t.Setenv("SQUIRE_TEST_WORD", "made")
		tests := []struct{ name, mounts, script, want string }{
			{"dir", data + ":/data", "cat /data/f", "data"},
			{"made deep", data + ":/a/b/c/d", "cat /a/b/c/d/f", "data"},
			{"writable", data + ":/data", "echo x >/data/new && cat /data/new && rm /data/new", "x"},
			{"read-only", data + ":/data:ro", "touch /data/new 2>&1 | grep -c Read-only", "1"},
			{"file", data + "/f:/etc/conf", "cat /etc/conf", "data"},
			{"same path", data, "cat " + data + "/f", "data"},
			{"onto dangling link", data + ":/dangling", "cat /made/by/link/f", "data"},
			{"link up stays inside", data + ":/bin/up", "cat /up/f", "data"},
			{"missing nofail", "/does/not/exist:/x:nofail", "echo ok", "ok"},
			{"two", data + ":/d1," + data + "/f:/d1/f", "cat /d1/f", "data"},
			{"socket", data + "/socket:/run/a.sock", "[ -S /run/a.sock ] && echo yes", "yes"},
			{"socket onto file", data + "/f:/etc/conf," + data + "/socket:/etc/conf", "[ -S /etc/conf ] && echo yes", "yes"},
			{"variable", "$SQUIRE_TEST_DATA/f:/${SQUIRE_TEST_WORD}:x-create=file", "cat /made", "data"},
			{"tmpfs", "tmpfs:/opt/t:size=64k+mode=700", "touch /opt/t/x && stat -c %a /opt/t && grep ' /opt/t ' /proc/self/mountinfo | grep -c 'nosuid,nodev.*size=64k'", "700\n1"},
			{"tmpfs read-only", "tmpfs:/opt/t:ro", "touch /opt/t/x 2>&1 | grep -c Read-only", "1"},
			{"umount", "umount:/tmp", "ls -A /tmp; ls -d " + root + " 2>/dev/null; echo none", "none"},
			{"umount and mount", "umount:/dev," + data + ":/dev/d", "ls /dev; cat /dev/d/f", "d\ndata"},
			{"umount what was mounted", data + ":/data," + data + "/f:/data/f,umount:/data", "ls /data", ""},
			{"umount nothing", "umount:/opt:nofail,umount:/no/such:nofail", "echo ok", "ok"},
			{"twice", data + ":/data," + data + ":/data", "grep -c ' /data ' /proc/self/mountinfo", "1"},
			{"noexec", data + ":/data:noexec+nosuid+nodev", "grep -c ' /data .*nosuid,nodev,noexec' /proc/self/mountinfo", "1"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				ms, err := (&MountParser{Dir: "/", Getenv: os.LookupEnv}).Parse(tt.mounts)
				if err != nil {
					t.Fatal(err)
				}
				if got := sh(t, w, Spec{Dir: root, Mounts: ms}, tt.script); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		}
		t.Run("made on the host only when named", func(t *testing.T) {
			host := publicDir(t, w)
			ms := []Mount{{Source: host, Target: "/host"}, {Source: data, Target: "/tohost/x/y"}}
			r := run(t, w, Spec{Dir: root, Mounts: ms, Command: []string{"/bin/true"}})
			if names, err := os.ReadDir(host); r.status != ExitFailed || !strings.Contains(r.err, "nothing is made") || err != nil || len(names) > 0 {
				t.Errorf("exit status %d, stderr %q, on the host %v (%v)", r.status, r.err, names, err)
			}
			ms[1].Target = "/tohost-new" // dangles
			r = run(t, w, Spec{Dir: root, Mounts: ms, Command: []string{"/bin/true"}})
			if names, err := os.ReadDir(host); r.status != ExitFailed || !strings.Contains(r.err, "nothing is made") || err != nil || len(names) > 0 {
				t.Errorf("exit status %d, stderr %q, on the host %v (%v)", r.status, r.err, names, err)
			}
			ms[1].Target = "/host/x/y"
			if got := sh(t, w, Spec{Dir: root, Mounts: ms}, "cat /host/x/y/f"); got != "data" {
				t.Errorf("got %q", got)
			}
		})
		for _, name := range []string{"a", "made", "up", "etc/conf", "d1"} {
			if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
				t.Errorf("%s was made in the directory itself", name)
			}
		}
		for name, bad := range map[string]Mount{
			"dir onto file": {Source: data, Target: "/bin/busybox"},
			"file onto dir": {Source: data + "/f", Target: "/etc"},
			"link loop":     {Source: data, Target: "/loop"},
			"gone":          {Source: data + "/gone", Target: "/data"},
			"create file":   {Source: data, Target: "/x", Flags: []string{"x-create=file"}},
			"create dir":    {Source: data + "/f", Target: "/x", Flags: []string{"x-create=dir"}},
			"bad size":      {Source: "tmpfs", Target: "/x", Flags: []string{"size=many"}},
			"not mounted":   {Source: "umount", Target: "/opt"},
			"nothing there": {Source: "umount", Target: "/no/such"},
		} {
			t.Run(name, func(t *testing.T) {
				r := run(t, w, Spec{Dir: root, Mounts: []Mount{bad}, Command: []string{"/bin/true"}})
				if r.status != ExitFailed || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "squire: ") {
					t.Errorf("exit status %d, stderr %q; want 125 and one line", r.status, r.err)
				}
			})
		}
	})
}

func TestRunWritable(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		script := "echo new >/file && mkdir /dir && rm /opt/gone && cat /file"
		if err := os.WriteFile(root+"/opt/gone", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(root+"/opt/gone", w.uid, w.uid); err != nil {
			t.Fatal(err)
		}
		t.Run("tmpfs", func(t *testing.T) {
			if got := sh(t, w, Spec{Dir: root, Writable: true}, script); got != "new" {
				t.Errorf("got %q", got)
			}
			if got := sh(t, w, Spec{Dir: root, Writable: true}, "ls /file /dir 2>/dev/null; ls /opt/gone"); got != "/opt/gone" {
				t.Errorf("a layer in memory outlived its container: %q", got)
			}
			if got := sh(t, w, Spec{Dir: root, Writable: true, UpperSize: "2m"}, "df -k / | awk 'NR == 2 {print $2}'; head -c 3000000 /dev/zero >/file 2>/dev/null; stat -c %s /file"); got != "2048\n2097152" && !strings.HasPrefix(got, "2048\n20") {
				t.Errorf("a layer of 2 MiB: %q", got)
			}
		})
		t.Run("directory", func(t *testing.T) {
			upper := filepath.Join(publicDir(t, w), "with:odd,name\\")
			s := Spec{Dir: root, Writable: true, Upper: upper}
			sh(t, w, s, script)
			if got := sh(t, w, s, "ls -d /file /dir; ls /opt"); got != "/dir\n/file" {
				t.Errorf("kept layer shows %q", got)
			}
			if _, err := os.Lstat(upper + "/work"); err == nil {
				t.Error("the work directory was left behind")
			}
			// Replacing a directory of the image needs the userxattr option.
			sh(t, w, s, "rm -r /opt && mkdir /opt && touch /opt/x")
			if got := sh(t, w, s, "ls /opt"); got != "x" {
				t.Errorf("replaced directory shows %q", got)
			}
		})
		t.Run("read-only", func(t *testing.T) {
			if os.Getuid() != 0 || w.uid == 0 {
				t.Skip("needs root, to make a directory that a user cannot write to")
			}
			s := Spec{Dir: root, Writable: true, Upper: publicDir(t, w), Command: []string{"/bin/touch", "/x"}}
			if r := run(t, w, s); r != (result{}) {
				t.Fatalf("%+v", r)
			}
			if err := os.Mkdir(s.Upper+"/work", 0o755); err != nil {
				t.Fatal(err)
			}
			if r := run(t, w, s); r.status != ExitFailed || !strings.Contains(r.err, "can only read there") {
				t.Errorf("%+v", r)
			}
		})
		t.Run("not ours", func(t *testing.T) {
			dir := publicDir(t, w)
			precious := filepath.Join(dir, "work/precious")
			if err := errors.Join(os.Mkdir(dir+"/work", 0o755), os.Chown(dir+"/work", w.uid, w.uid), os.WriteFile(precious, nil, 0o644)); err != nil {
				t.Fatal(err)
			}
			r := run(t, w, Spec{Dir: root, Writable: true, Upper: dir, Command: []string{"/bin/true"}})
			if r.status != ExitFailed || !strings.Contains(r.err, "holds other files") {
				t.Errorf("exit status %d, stderr %q", r.status, r.err)
			}
			if _, err := os.Stat(precious); err != nil {
				t.Error(err)
			}
		})
		t.Run("in use", func(t *testing.T) {
			upper := filepath.Join(publicDir(t, w), "u")
			s := Spec{Dir: root, Writable: true, Upper: upper, Command: []string{"/bin/sh", "-c", "echo started; sleep 600"}}
			stop := startUntil(t, w, s, "started")
			defer stop()
			s.Command = []string{"/bin/true"}
			if r := run(t, w, s); r.status != ExitFailed || !strings.Contains(r.err, "in use by another container") {
				t.Errorf("exit status %d, stderr %q", r.status, r.err)
			}
		})
	})
}

func TestRunStatus(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if err := errors.Join(
			os.WriteFile(root+"/bin/text", []byte("just text\n"), 0o755),
			os.WriteFile(root+"/bin/script", []byte("#!/no/such/interpreter\n"), 0o755),
			os.WriteFile(root+"/bin/plain", []byte("#!/bin/sh\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
		tests := []struct {
			name    string
			spec    Spec
			command []string
			want    int
			err     string
		}{
			{name: "true", command: []string{"true"}, want: 0},
			{name: "status", command: []string{"sh", "-c", "exit 42"}, want: 42},
			{name: "signal", command: []string{"sh", "-c", "kill -TERM $$"}, want: 128 + 15},
			{name: "killed", command: []string{"sh", "-c", "kill -KILL $$"}, want: 128 + 9},
			{name: "not in PATH", command: []string{"no-such"}, want: 127, err: "no-such: command not found"},
			{name: "no such path", command: []string{"/no/such"}, want: 127, err: "/no/such: command not found"},
			{name: "text", command: []string{"text"}, want: 126, err: "not a program"},
			{name: "no interpreter", command: []string{"script"}, want: 126, err: "interpreter"},
			{name: "not executable", command: []string{"/bin/plain"}, want: 126, err: "not executable"},
			{name: "empty", command: []string{""}, want: 127, err: "the command is empty"},
			{name: "escape", command: []string{"no\x1b[31m\u009b\nsuch"}, want: 127, err: "no?[31m??such: command not found"},
			{name: "directory", command: []string{"/bin"}, want: 126, err: "is a directory"},
			{name: "workdir", spec: Spec{Workdir: "/nowhere"}, command: []string{"true"}, want: 125, err: "working directory /nowhere"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				tt.spec.Dir, tt.spec.Image, tt.spec.Command = root, "IMG", tt.command
				r := run(t, w, tt.spec)
				lines := min(1, len(tt.err))
				if r.status != tt.want || strings.Count(r.err, "\n") != lines || !strings.Contains(r.err, tt.err) {
					t.Errorf("exit status %d, stderr %q, want %d and %q", r.status, r.err, tt.want, tt.err)
				}
			})
		}
	})
}

func TestRunSignals(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		s := Spec{Dir: root, Command: []string{"/bin/sh", "-c", `
			for s in HUP INT QUIT USR1 USR2; do trap "echo got $s" $s; done
			trap 'echo got TERM; exit 7' TERM
			echo started
			while :; do sleep 0.05; done`}}
		cmd := runner(t, w, s)
		cmd.SysProcAttr.Setsid = true // no terminal
		lines := begin(t, cmd)
		defer limited(t, cmd)()
		for sig, name := range map[syscall.Signal]string{
			unix.SIGHUP: "HUP", unix.SIGINT: "INT", unix.SIGQUIT: "QUIT", unix.SIGUSR1: "USR1", unix.SIGUSR2: "USR2", unix.SIGTERM: "TERM",
		} {
			if sig == unix.SIGTERM || signal.Ignored(sig) { // by nohup, say: it stays so
				continue
			}
			_ = cmd.Process.Signal(sig)
			lines.want(t, "got "+name)
		}
		_ = cmd.Process.Signal(unix.SIGTERM)
		lines.want(t, "got TERM")
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 7 {
			t.Errorf("exit status %d, want 7", got)
		}
	})
}

// A container leaves nothing behind, however it ends: not a daemon that left
// its session and parent, not a mount.
func TestRunEnds(t *testing.T) {
	const daemon = `(setsid sh -c 'sh -c "exec sleep %d" & sleep %[1]d' &) ; echo started; `
	forUsers(t, func(t *testing.T, w who, root string) {
		for i, how := range []string{"normally", "runner killed", "init killed", "group killed"} {
			t.Run(how, func(t *testing.T) {
				mark := 870000 + os.Getpid()%10000*10 + i*2 + min(w.uid, 1)
				cmd := runner(t, w, Spec{Dir: root, Command: []string{"/bin/sh", "-c", fmt.Sprintf(daemon, mark) + "read line; true"}})
				cmd.SysProcAttr.Setpgid = true
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				defer in.Close()
				begin(t, cmd)
				defer limited(t, cmd)()
				waitFor(t, "the daemon to start", func() bool { return len(withArgument(strconv.Itoa(mark))) >= 2 })
				switch how {
				case "normally":
					in.Close()
				case "runner killed":
					_ = cmd.Process.Kill()
				case "group killed":
					_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
				case "init killed":
					for _, pid := range testenv.Children(cmd.Process.Pid) {
						_ = unix.Kill(pid, unix.SIGKILL)
					}
				}
				_ = cmd.Wait()
				waitFor(t, "every process to end", func() bool { return len(withArgument(strconv.Itoa(mark))) == 0 })
				mounts, err := os.ReadFile("/proc/self/mountinfo")
				if err != nil || strings.Contains(string(mounts), root) {
					t.Errorf("something is still mounted (%v)", err)
				}
			})
		}
	})
}

// Children that the runner's process had before it became the runner, as after
// "exec squire run" in a script, are not the container's.
func TestRunSparesOthers(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		cmd := runner(t, w, Spec{Dir: root, Command: []string{"/bin/true"}})
		self, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		bash, err := exec.LookPath("bash")
		if err != nil {
			t.Skip("needs bash, for exec -a")
		}
		cmd.Path, cmd.ExtraFiles = bash, []*os.File{self}
		cmd.Args = []string{"bash", "-c", `(sleep 0.5; echo alive) & exec -a ` + runnerName + ` /proc/self/fd/3`}
		out, err := cmd.Output()
		if err != nil || string(out) != "alive\n" {
			t.Errorf("%v: output %q", err, out)
		}
	})
}

// Signals that the caller ignores, as nohup does, stay ignored.
func TestRunNohup(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		s := Spec{Dir: root, Command: []string{"/bin/grep", "SigIgn", "/proc/self/status"}}
		cmd := runner(t, w, s)
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `trap "" HUP; exec -a ` + runnerName + ` /proc/self/fd/9`}
		self, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		if _, err = exec.LookPath("bash"); err != nil {
			t.Skip("needs bash, for exec -a")
		}
		cmd.Path, cmd.Args[0] = "/bin/bash", "bash"
		cmd.ExtraFiles = []*os.File{self, self, self, self, self, self, self} // 3 to 9
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		mask, err := strconv.ParseUint(strings.Fields(string(out))[1], 16, 64)
		if err != nil || mask&(1<<(unix.SIGHUP-1)) == 0 {
			t.Errorf("SIGHUP is not ignored inside: %s", out)
		}
	})
}

// Descriptors that the caller passes on purpose arrive at their own numbers,
// as Slurm's PMI_FD must; none of ours do.
func TestRunDescriptors(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		r, wr, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd := runner(t, w, Spec{Dir: root, Command: []string{"/bin/sh", "-c", "ls /proc/self/fd; echo hello >&4"}})
		cmd.ExtraFiles = []*os.File{nil, wr}
		out, err := cmd.Output()
		wr.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Fields(string(out)); strings.Join(got, " ") != "0 1 2 3 4" { // 3 is ls's own
			t.Errorf("descriptors inside: %v", got)
		}
		b := make([]byte, 10)
		if n, _ := r.Read(b); string(b[:n]) != "hello\n" {
			t.Errorf("got %q through descriptor 4", b[:n])
		}
	})
}

func TestInitAlone(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{InitName}
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != ExitFailed || !strings.Contains(string(out), "squire's own use") {
		t.Errorf("%v: %s", err, out)
	}
}
