package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/runtime"
)

// The tests stand in for Slurm's plugin: they give the order to a step process, and join as tasks do.

// stepImage is an image with busybox, and a directory for what a user makes.
type stepImage struct {
	dir, file string
}

func newStepImage(t *testing.T, uid int) *stepImage {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs FUSE: %v", err)
	} else {
		f.Close()
	}
	if _, err := exec.LookPath("nsenter"); err != nil {
		t.Skip("needs nsenter (Debian's util-linux)")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil || exec.Command("/bin/busybox", "true").Run() != nil {
		t.Skip("needs a static busybox (Debian's busybox-static)")
	}
	i := &stepImage{dir: publicDir(t, uid)}
	i.file = filepath.Join(i.dir, "image.sqsh")
	tree := filepath.Join(i.dir, "tree")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "work"} {
		if err = os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err = errors.Join(os.WriteFile(tree+"/bin/busybox", busybox, 0o755), os.WriteFile(tree+"/marker", []byte("in the image\n"), 0o644),
		os.WriteFile(tree+"/etc/environment", []byte("OF_IMAGE=yes\n"), 0o644))
	for _, name := range strings.Fields("sh cat ls id touch readlink sleep echo grep env mkdir") {
		err = errors.Join(err, os.Symlink("busybox", tree+"/bin/"+name))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := command(ctx, os.Getuid(), "pack", "--comp", "zstd", tree, i.file).CombinedOutput(); err != nil {
		t.Fatalf("pack: %v\n%s", err, out)
	}
	if err = os.Chmod(i.file, 0o644); err != nil {
		t.Fatal(err)
	}
	return i
}

// testStep is a step process, and its end of the plugin's socket.
type testStep struct {
	t      *testing.T
	uid    int
	cmd    *exec.Cmd
	socket *os.File
	env    []string
	exited chan struct{}
}

// stepOptions are options as the plugin passes them on: of pairs of a name without "container-" and a value.
func stepOptions(pairs ...string) (given []slurmGiven) {
	for i := 0; i < len(pairs); i += 2 {
		given = append(given, slurmGiven{Name: "container-" + pairs[i], Value: pairs[i+1]})
	}
	return given
}

// startStep starts one. order has what differs from a good order.
func startStep(t *testing.T, uid int, env []string, order map[string]any) *testStep {
	t.Helper()
	full := map[string]any{
		"version": slurmVersion, "env": env, "job": 7, "step": 0, "uid": uid, "gid": uid, "node": "n1", "tasks": 1, "cwd": "/tmp",
	}
	for k, v := range order {
		full[k] = v
	}
	text, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	return startStepText(t, uid, env, text)
}

func startStepText(t *testing.T, uid int, env []string, order []byte) *testStep {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "step")
	defer theirs.Close()
	s := &testStep{t: t, uid: uid, socket: os.NewFile(uintptr(pair[0]), "plugin"), env: env, exited: make(chan struct{})}
	s.cmd = command(context.Background(), uid, "slurm", "step")
	s.cmd.Dir, s.cmd.Env, s.cmd.Stdin, s.cmd.ExtraFiles = "/", []string{"PATH=/usr/bin:/bin"}, memory(t, order), []*os.File{theirs}
	if s.cmd.SysProcAttr == nil {
		s.cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	s.cmd.SysProcAttr.Setsid = true
	if err = s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() {
		s.socket.Close()
		select {
		case <-s.exited:
		case <-time.After(testBound):
			t.Error("the step process goes on without the plugin")
			_ = s.cmd.Process.Kill()
			<-s.exited
		}
	})
	return s
}

// memory is a file in memory, to be read from its start.
func memory(t *testing.T, text []byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { f.Close() })
	if _, err = f.WriteAt(text, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// testTask is a task that has asked.
type testTask struct {
	s      *testStep
	env    []string
	socket *os.File
	stderr *os.File // what is said on its standard error
}

// ask asks as task number local.
func (s *testStep) ask(local int, env ...string) *testTask {
	s.t.Helper()
	env = append(slices.Clone(s.env), env...)
	return s.askWith(memory(s.t, []byte(taskText(nil, env))), env)
}

// taskText is what a task says.
func taskText(denied, env []string) string {
	var b strings.Builder
	for _, node := range denied {
		b.WriteString("d" + node + "\x00")
	}
	for _, kv := range env {
		b.WriteString("e" + kv + "\x00")
	}
	return b.String() + "t\x00"
}

func (s *testStep) askWith(file *os.File, env []string) *testTask {
	s.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "step")
	defer theirs.Close()
	if err = unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(testBound / time.Second)}); err != nil {
		s.t.Fatal(err)
	}
	r, w := readable(s.t)
	task := &testTask{s: s, env: env, socket: os.NewFile(uintptr(pair[0]), "task"), stderr: r}
	s.t.Cleanup(func() { task.socket.Close() })
	if err = s.send("{}", theirs, w, file); err != nil {
		s.t.Fatal(err)
	}
	w.Close()
	return task
}

func (s *testStep) send(text string, files ...*os.File) error {
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(int(s.socket.Fd()), []byte(text), rights, nil, unix.MSG_NOSIGNAL)
}

// testReply is the answer to a task.
type testReply struct {
	bad     string // an error; "": none, unless refused is set
	refused bool
	kinds   []string
	files   []*os.File
	set     []string
	unset   []string
	dir     string
	caps    string
	filter  int // instructions
	silent  bool
}

// reply waits for it.
func (task *testTask) reply() testReply {
	t := task.s.t
	t.Helper()
	head, oob := make([]byte, 9), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, _, _, err := unix.Recvmsg(int(task.socket.Fd()), head, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL)
	for errors.Is(err, unix.EINTR) {
		n, oobn, _, _, err = unix.Recvmsg(int(task.socket.Fd()), head, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL)
	}
	if err != nil {
		t.Fatalf("no reply: %v", err)
	}
	if n == 0 {
		return testReply{silent: true}
	}
	r := testReply{files: receivedFiles(oob[:oobn])}
	t.Cleanup(func() { closeAll(r.files) })
	size, err := strconv.ParseUint(string(head[1:n]), 16, 32)
	if err != nil || size > maxReply {
		t.Fatalf("reply %q: %v", head[:n], err)
	}
	text := make([]byte, size)
	if _, err = io.ReadFull(task.socket, text); err != nil {
		t.Fatal(err)
	}
	if head[0] != '+' {
		r.bad, r.refused = string(text), true
		return r
	}
	for _, rec := range strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		if rec == "" {
			continue // there are none: a task without a container
		}
		switch letter, rest := rec[0], rec[1:]; letter {
		case 'n':
			r.kinds = append(r.kinds, rest)
		case 's':
			r.set = append(r.set, rest)
		case 'u':
			r.unset = append(r.unset, rest)
		case 'w':
			r.dir = rest
		case 'c':
			r.caps = rest
		case 'f':
			r.filter = len(rest) / 16
		case 'k':
		default:
			t.Errorf("record %q", rec)
		}
	}
	if len(r.kinds) != len(r.files) {
		t.Errorf("%d namespaces, and %d descriptors", len(r.kinds), len(r.files))
	}
	return r
}

// sh runs a script in the container.
func (task *testTask) sh(r testReply, script string) (string, error) {
	args := []string{"--preserve-credentials"}
	for i, kind := range r.kinds {
		kind = map[string]string{"mnt": "mount"}[kind] + strings.TrimPrefix(kind, "mnt")
		args = append(args, fmt.Sprintf("--%s=/proc/self/fd/%d", kind, 3+i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), testBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append(args, "--", "/bin/sh", "-c", "cd "+r.dir+" && { "+script+"; }")...)
	cmd.ExtraFiles, cmd.Dir, cmd.Env = r.files, "/", append(slices.Clone(task.env), r.set...)
	cmd.SysProcAttr = task.s.cmd.SysProcAttr
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// wantSh runs it and wants it to succeed.
func (task *testTask) wantSh(r testReply, script, want string) {
	task.s.t.Helper()
	if r.refused || r.silent {
		task.s.t.Fatalf("%s: the task was refused: %q", script, r.bad)
	}
	if got, err := task.sh(r, script); err != nil || got != want {
		task.s.t.Errorf("%s: got %q, %v; want %q", script, got, err, want)
	}
}

// end says that all tasks have ended, and returns the answer.
func (s *testStep) end() string {
	s.t.Helper()
	if err := s.send(`{"end":true}`); err != nil {
		s.t.Fatal(err)
	}
	fd := int(s.socket.Fd())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(testBound / time.Second)}); err != nil {
		s.t.Fatal(err)
	}
	b := make([]byte, maxStepMessage)
	n, _, err := unix.Recvfrom(fd, b, 0)
	for errors.Is(err, unix.EINTR) {
		n, _, err = unix.Recvfrom(fd, b, 0)
	}
	if err != nil {
		s.t.Fatalf("no answer to the end: %v", err)
	}
	return string(b[:n])
}

// gone waits until the step process and all that it started have ended.
func (s *testStep) gone() {
	s.t.Helper()
	s.socket.Close()
	if !soon(func() bool { return len(sessionOf(s.cmd.Process.Pid)) == 0 }) {
		s.t.Errorf("left: %s", linesOf(sessionOf(s.cmd.Process.Pid)))
	}
}

// sessionOf lists the processes whose session, or whose parent's, is that of process leader: stages have sessions of their
// own (proc(5): /proc/PID/stat).
func sessionOf(leader int) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		word := strconv.Itoa(leader)
		if len(fields) > 3 && fields[0] != "Z" && (fields[1] == word || fields[3] == word) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// stepServices are the ways to have an image served, as variables of the job.
func stepServices(t *testing.T) map[string][]string {
	all := map[string][]string{"server": {"SQUIRE_SERVICE=off"}}
	if os.Getuid() != 0 {
		return all
	}
	socket := filepath.Join(publicDir(t, 0), "socket")
	cmd := command(context.Background(), 0, "daemon", "--socket", socket)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		timer := time.AfterFunc(testBound, func() { t.Error("the service does not end"); _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the service said:\n%s", said.String())
		}
	})
	if !soon(func() bool {
		c, err := noded.Dial(socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	}) {
		t.Fatalf("no service after %s; it said: %s", testBound, said.String())
	}
	all["node"] = []string{"SQUIRE_SERVICE=node", "SQUIRE_SOCKET=" + socket}
	return all
}

// linesOf says what processes are.
func linesOf(pids []int) string {
	var b strings.Builder
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, state, _ := strings.Cut(string(status), "State:\t")
		state, _, _ = strings.Cut(state, "\n")
		fmt.Fprintf(&b, "[%d %s%s]", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '}), state)
	}
	return b.String()
}

func stepEnv(dir string, more ...string) []string {
	return append([]string{"PATH=/usr/bin:/bin", "HOME=" + dir, "PWD=/tmp", "LANG=de_DE", "OF_JOB=yes"}, more...)
}

func TestStep(t *testing.T) {
	services := stepServices(t)
	for _, uid := range importUsers() {
		img := newStepImage(t, uid)
		for name, service := range services {
			t.Run(fmt.Sprintf("%d %s", uid, name), func(t *testing.T) {
				s := startStep(t, uid, stepEnv(img.dir, service...), map[string]any{
					"tasks": 3, "given": stepOptions("image", img.file, "writable", "", "mounts", img.dir+":/data:ro"),
				})
				var spaces []string
				for i := range 3 {
					task := s.ask(i, "SLURM_LOCALID="+strconv.Itoa(i))
					r := task.reply()
					want := fmt.Sprintf("%d in the image yes yes %d none", uid, i)
					task.wantSh(r, `echo $(id -u) $(cat /marker) $OF_IMAGE $OF_JOB $SLURM_LOCALID $LANG none`, strings.Replace(want, "none", "de_DE none", 1))
					task.wantSh(r, "touch /made-"+strconv.Itoa(i)+"; touch /data/x 2>&1 | grep -c Read-only", "1")
					if !slices.Equal(r.unset, []string{"LANG"}) || r.dir != "/" || r.filter == 0 {
						t.Errorf("got %+v", r)
					}
					if want := map[bool]string{true: "ffffffffffffffff", false: "0"}[uid == 0]; r.caps != want {
						t.Errorf("capabilities: got %s, want %s", r.caps, want)
					}
					got, err := task.sh(r, "readlink /proc/self/ns/mnt; ls -d /made-*")
					if err != nil {
						t.Error(err)
					}
					spaces = append(spaces, got)
				}
				first, _, _ := strings.Cut(spaces[0], "\n")
				for i, got := range spaces {
					if want := first + "\n/made-0\n/made-1\n/made-2"; !strings.HasPrefix(want, got) {
						t.Errorf("task %d: got %q", i, got)
					}
				}
				if got := s.end(); got != "+" {
					t.Errorf("the end: got %q", got)
				}
				s.gone()
			})
		}
	}
}

// Of an error that is the step's, one task is told.
func TestStepErrors(t *testing.T) {
	for _, uid := range importUsers() {
		img := newStepImage(t, uid)
		good := stepOptions("image", img.file)
		for _, tt := range []struct {
			name  string
			order map[string]any
			want  string
		}{
			{"no image", map[string]any{"given": stepOptions("image", "/nowhere.sqsh")}, "/nowhere.sqsh: No such file or directory"},
			{"no such directory", map[string]any{"given": stepOptions("image", img.file, "workdir", "/nowhere")}, "/nowhere"},
			{"no source", map[string]any{"given": stepOptions("image", img.file, "mounts", "/nowhere:/x")}, "source path does not exist"},
			{"not an image", map[string]any{"given": stepOptions("image", "/etc/passwd")}, "/etc/passwd"},
			{"PID namespace", map[string]any{"given": stepOptions("image", img.file, "unshare", "pid")}, "pid"},
			{"nothing", map[string]any{"given": stepOptions("workdir", "/")}, "image"},
			{"version", map[string]any{"version": 99, "given": good}, "another squire"},
			{"another user", map[string]any{"uid": uid + 1, "given": good}, "user"},
			{"no tasks", map[string]any{"tasks": 0, "given": good}, "0 tasks"},
			{"NUL", map[string]any{"cwd": "/tmp\x00", "given": good}, "NUL"},
		} {
			t.Run(fmt.Sprintf("%d %s", uid, tt.name), func(t *testing.T) {
				if _, ok := tt.order["tasks"]; !ok {
					tt.order["tasks"] = 4
				}
				s := startStep(t, uid, stepEnv(img.dir, "SQUIRE_SERVICE=off"), tt.order)
				var tasks []*testTask
				for i := range 4 {
					tasks = append(tasks, s.ask(i))
				}
				var texts []string
				for _, task := range tasks {
					r := task.reply()
					if !r.refused {
						t.Errorf("a task was not refused: %+v", r)
					}
					if r.bad != "" {
						texts = append(texts, r.bad)
					}
				}
				if len(texts) != 1 || !strings.Contains(texts[0], tt.want) {
					t.Errorf("got %q, want one with %q", texts, tt.want)
				}
				s.gone()
			})
		}
	}
}

// Where no container is wanted, tasks stay on the host.
func TestStepNothing(t *testing.T) {
	s := startStep(t, os.Getuid(), nil, nil)
	if r := s.ask(0).reply(); r.refused || r.silent || len(r.files) > 0 || len(r.set) > 0 || r.caps != "" || r.filter > 0 {
		t.Errorf("got %+v", r)
	}
	s.gone()
}

// Slurm starts tasks elsewhere when their directory is missing on a node.
func TestStepWithoutDirectory(t *testing.T) {
	uid := os.Getuid()
	img := newStepImage(t, uid)
	s := startStep(t, uid, stepEnv(img.dir, "SQUIRE_SERVICE=off"), map[string]any{"cwd": "/nowhere", "given": stepOptions("image", img.file, "mounts", "./"+filepath.Base(img.dir)+":/data")})
	task := s.ask(0)
	task.wantSh(task.reply(), "ls /data", "image.sqsh\ntree")
	s.gone()
}

// An order that is none.
func TestStepGarbage(t *testing.T) {
	for _, order := range []string{"", "{", "[]", `{"version":1}`, `{"version":1,"given":7}`, strings.Repeat("{", 1<<20)} {
		s := startStepText(t, os.Getuid(), nil, []byte(order))
		if r := s.ask(0).reply(); !r.refused || r.bad == "" || strings.ContainsAny(r.bad, "\x00\n") {
			t.Errorf("%.20q: got %+v", order, r)
		}
		s.gone()
	}
}

// Messages that no plugin sends change nothing for those that it does.
func TestStepHostileMessages(t *testing.T) {
	uid := os.Getuid()
	img := newStepImage(t, uid)
	s := startStep(t, uid, stepEnv(img.dir, "SQUIRE_SERVICE=off"), map[string]any{"given": stepOptions("image", img.file)})
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, m := range []struct {
		text  string
		files int
	}{
		{"{}", 0},
		{"{", 0},
		{"[1,2]", 2},
		{`{"end":7}`, 1},
		{"{}", 9},
		{"{}", 200},
		{strings.Repeat("x", maxStepMessage+1), 3},
		{"{}", 3}, // 3: /dev/null is no socket
	} {
		if err := s.send(m.text, slices.Repeat([]*os.File{null}, m.files)...); err != nil {
			t.Fatal(err)
		}
	}
	pipe, _ := readable(t)
	for _, file := range []*os.File{null, pipe, memory(t, nil), memory(t, []byte("eA=1\x00")), memory(t, []byte("eA=1\x00x\x00t\x00")), memory(t, []byte("eA=1t\x00"))} {
		if r := s.askWith(file, nil).reply(); !r.refused || r.bad == "" {
			t.Errorf("got %+v", r)
		}
	}
	huge := memory(t, nil)
	if err := huge.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	if r := s.askWith(huge, nil).reply(); !r.refused || r.bad == "" {
		t.Errorf("a huge file: got %+v", r)
	}
	if r := s.ask(0, "BIG="+strings.Repeat("x", 5<<20)).reply(); r.refused || r.silent {
		t.Errorf("a big environment that stays as it is: got %q", r.bad)
	}
	task := s.ask(0)
	task.wantSh(task.reply(), "cat /marker", "in the image")
	s.gone()
}

// What Slurm signals are the tasks: the container stays.
func TestStepSignals(t *testing.T) {
	services := stepServices(t)
	for _, uid := range importUsers() {
		img := newStepImage(t, uid)
		for name, service := range services {
			t.Run(fmt.Sprintf("%d %s", uid, name), func(t *testing.T) {
				s := startStep(t, uid, stepEnv(img.dir, service...), map[string]any{"tasks": 2, "given": stepOptions("image", img.file)})
				first := s.ask(0)
				r := first.reply()
				for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGQUIT, unix.SIGALRM, unix.SIGXCPU} {
					for _, pid := range sessionOf(s.cmd.Process.Pid) {
						if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
							t.Error(err)
						}
					}
				}
				second := s.ask(1)
				second.wantSh(second.reply(), "cat /marker", "in the image")
				first.wantSh(r, "cat /marker", "in the image")
				s.gone()
			})
		}
	}
}

// A task that goes on after the step process was killed keeps its container, and all of it goes with the task.
func TestStepKilled(t *testing.T) {
	services := stepServices(t)
	for _, uid := range importUsers() {
		img := newStepImage(t, uid)
		for name, service := range services {
			t.Run(fmt.Sprintf("%d %s", uid, name), func(t *testing.T) {
				s := startStep(t, uid, stepEnv(img.dir, service...), map[string]any{"given": stepOptions("image", img.file)})
				task := s.ask(0)
				r := task.reply()
				left := sessionOf(s.cmd.Process.Pid)
				_ = s.cmd.Process.Kill()
				<-s.exited
				if name == "server" { // the node's may let go of the image: who asked for it is dead
					task.wantSh(r, "cat /marker", "in the image")
				}
				closeAll(r.files)
				running := func() (pids []int) {
					for _, pid := range left {
						if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(b) > 0 {
							pids = append(pids, pid)
						}
					}
					return pids
				}
				if !soon(func() bool { return len(running()) == 0 }) {
					t.Errorf("left: %s", linesOf(running()))
				}
				// What it could not remove from the disk the user's next step does.
				next := startStep(t, uid, stepEnv(img.dir, service...), map[string]any{"given": stepOptions("image", img.file)})
				again := next.ask(0)
				again.wantSh(again.reply(), "cat /marker", "in the image")
				next.gone()
				if kept, _ := filepath.Glob(fmt.Sprintf("/var/tmp/squire-%d/7.0", uid)); len(kept) != 0 {
					t.Errorf("on the disk: %s", kept)
				}
			})
		}
	}
}

// A preparation that takes long ends when nobody waits for it any more.
func TestStepCancelled(t *testing.T) {
	for _, uid := range importUsers() {
		dir := publicDir(t, uid)
		importer, mark := filepath.Join(dir, "importer"), filepath.Join(dir, "started")
		script := "#!/bin/sh\n[ $1 = get ] || exit 0\necho importing >&2\ntouch " + mark + "\nexec sleep 1000\n"
		if err := os.WriteFile(importer, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, how := range []string{"end", "plugin gone", "SIGTERM"} {
			t.Run(fmt.Sprintf("%d %s", uid, how), func(t *testing.T) {
				os.Remove(mark)
				s := startStep(t, uid, stepEnv(dir), map[string]any{
					"tasks": 100, "given": stepOptions("image", "docker://x/y"), "plugin": []string{"importer=" + importer},
				})
				tasks := []*testTask{s.ask(0)}
				if !soon(func() bool { _, err := os.Stat(mark); return err == nil }) {
					t.Fatal("the import does not start")
				}
				wantWords(t, tasks[0].stderr, "importing\n")
				for i := range 99 {
					tasks = append(tasks, s.ask(i+1))
				}
				switch how {
				case "end":
					if got := s.end(); got != "+" {
						t.Errorf("got %q", got)
					}
				case "SIGTERM":
					if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
						t.Fatal(err)
					}
				case "plugin gone":
					s.socket.Close()
				}
				texts := 0
				for _, task := range tasks {
					if r := task.reply(); !r.refused {
						t.Errorf("got %+v", r)
					} else if r.bad != "" {
						texts++
					}
				}
				if texts != 1 {
					t.Errorf("%d tasks were told", texts)
				}
				s.gone()
			})
		}
	}
}

// Many tasks come at once, and the step process may open few files.
func TestStepManyTasks(t *testing.T) {
	uid := os.Getuid()
	img := newStepImage(t, uid)
	const tasks = 200
	s := startStep(t, uid, stepEnv(img.dir, "SQUIRE_SERVICE=off"), map[string]any{"tasks": tasks, "given": stepOptions("image", img.file)})
	few := unix.Rlimit{Cur: tasks + 100, Max: tasks + 100}
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range tasks {
		task := s.ask(i)
		all.Go(func() {
			if r := task.reply(); r.refused || r.silent || !slices.Contains(r.kinds, "mnt") {
				t.Errorf("task %d: got %+v", i, r)
			}
		})
	}
	all.Wait()
	s.gone()
}

func FuzzSlurmOrder(f *testing.F) {
	f.Add([]byte(`{"version":1,"given":[{"name":"container-image","value":"/x.sqsh"}],"plugin":[],"env":["A=1"],"job":1,"step":0,"uid":0,"gid":0,"node":"n","tasks":8,"cwd":"/"}`))
	f.Add([]byte(`{"version":1,"given":[{"name":"container-image","value":"x"},{"name":"no-container-writable","inherited":true}],"plugin":["a=b"],"script":"/s"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var o slurmOrder
		if err := readSlurmDocument(bytes.NewReader(text), &o); err != nil {
			if words := wordsOf(err); strings.ContainsAny(words, "\x00\r\x1b") {
				t.Errorf("%q", words)
			}
			return
		}
		if o.check() != nil {
			return
		}
		if o.Tasks < 1 || o.Tasks > maxNodeTasks || strings.ContainsRune(o.Cwd+o.Script, 0) {
			t.Errorf("got %+v", o)
		}
		if options, err := o.resolve(); err != nil {
			if words := wordsOf(err); words == "" || strings.ContainsAny(words, "\x00\r\x1b") {
				t.Errorf("%q", words)
			}
		} else if options.Path != "" && !filepath.IsAbs(options.Path) {
			t.Errorf("got %+v", options)
		}
	})
}

func FuzzSlurmTask(f *testing.F) {
	f.Add([]byte(taskText([]string{"/dev/nvidia0"}, []string{"A=1", "B"})), "PATH=/bin", "/")
	f.Fuzz(func(t *testing.T, text []byte, image, dir string) {
		task, err := parseSlurmTask(text)
		if err != nil {
			return
		}
		c := &slurmContainer{spec: new(runtime.Spec), environ: []string{image}, dir: dir}
		r, err := c.reply(nil, task)
		if err != nil {
			return
		}
		b, err := r.encode()
		if err != nil {
			return
		}
		if len(b) > maxReply+9 {
			t.Errorf("%d bytes", len(b))
		}
		for _, rec := range strings.Split(strings.TrimSuffix(string(b[9:]), "\x00"), "\x00") {
			if rec != "" && !strings.ContainsRune("knsuwcf", rune(rec[0])) {
				t.Errorf("record %q", rec)
			}
		}
	})
}

// testBound is how long may take what should take no time: not a measure, but the end of a test that hangs.
const testBound = time.Minute

// soon reports whether something becomes true in time.
func soon(is func() bool) bool { return testenv.Eventually(testBound, is) }
