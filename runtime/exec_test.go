package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// execName is the test binary as "squire exec": its arguments are a process id and a
// command.
const execName = "squire-test-exec"

func testExec() int {
	pid, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return fail(ExitFailed, err)
	}
	e := &ExecSpec{PID: pid, Command: os.Args[2:], Environ: os.Environ(), Workdir: os.Getenv("SQUIRE_TEST_WORKDIR")}
	if set := os.Getenv("SQUIRE_TEST_SET"); set != "" {
		e.SetEnv = []string{set}
	}
	status, err := Exec(e)
	if err != nil {
		return fail(ExitFailed, err)
	}
	return status
}

// executor prepares an exec into the container of a process as w.
func executor(w who, pid int, command ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{execName, strconv.Itoa(pid)}, command...)
	cmd.Env = []string{"PATH=/nowhere", "B=exec", "HERE=1", "LANG=de_DE"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if w.uid != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(w.uid), Gid: uint32(w.uid), Groups: []uint32{}}
	}
	return cmd
}

func execute(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	defer limited(t, cmd)()
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// background starts a container that prints its own process's number, as seen by the
// host, and returns its runner's and that.
func background(t *testing.T, w who, s Spec) (runnerPID, commandPID int) {
	t.Helper()
	s.Command = []string{"/bin/sh", "-c", "echo started; exec sleep 600"}
	cmd := runner(t, w, s)
	begin(t, cmd)
	for _, init := range testenv.Children(cmd.Process.Pid) {
		for _, pid := range testenv.Children(init) {
			return cmd.Process.Pid, pid
		}
	}
	t.Fatal("the container has no process")
	return 0, 0
}

func TestExec(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if err := errors.Join(os.WriteFile(root+"/etc/environment", []byte("A=image\nB=image\n"), 0o644), os.WriteFile(root+"/bin/text", []byte("text\n"), 0o755)); err != nil {
			t.Fatal(err)
		}
		s := Spec{Dir: root, Workdir: "/opt", Unshare: []string{"pid", "ipc", "net"}, Hostname: "inside", SetEnv: []string{"C=run"}, Writable: true}
		runnerPID, commandPID := background(t, w, s)
		for _, pid := range []int{runnerPID, commandPID, testenv.Children(runnerPID)[0]} {
			if r := execute(t, executor(w, pid, "hostname")); r != (result{out: "inside\n"}) {
				t.Errorf("process %d: %+v", pid, r)
			}
		}
		t.Run("sees", func(t *testing.T) {
			script := `pwd; echo $A,$B,$C,$D,$HERE,$LANG,$PATH; for n in user mnt pid ipc net uts; do [ $(readlink /proc/self/ns/$n) = $(readlink /proc/2/ns/$n || readlink /proc/$$/ns/$n) ] || echo other $n; done; touch /made; id -u; ls /dev/fd`
			cmd := executor(w, commandPID, "/bin/sh", "-c", script)
			cmd.Env = append(cmd.Env, "SQUIRE_TEST_SET=D=exec")
			want := fmt.Sprintf("/opt\nimage,image,run,exec,1,,%s\n%d\n0\n1\n2\n3\n", DefaultPath, w.uid)
			if r := execute(t, cmd); r != (result{out: want}) {
				t.Errorf("%+v, want %q", r, want)
			}
			cmd = executor(w, commandPID, "sh", "-c", "pwd; ls /made; echo $PWD")
			cmd.Env = append(cmd.Env, "SQUIRE_TEST_WORKDIR=bin")
			if r := execute(t, cmd); r != (result{out: "/bin\n/made\n/bin\n"}) {
				t.Errorf("%+v", r)
			}
		})
		t.Run("rights", func(t *testing.T) {
			const rights = `grep -E "^(Cap|NoNew|Seccomp:|Groups|Uid|Gid|SigBlk|SigIgn)" /proc/self/status; ulimit -n; umask`
			first := sh(t, w, s, rights)
			if r := execute(t, executor(w, commandPID, "sh", "-c", rights)); r.err != "" || strings.Trim(r.out, "\n") != first {
				t.Errorf("%+v\nthe first command has\n%s", r, first)
			}
		})
		t.Run("status", func(t *testing.T) {
			for _, tt := range []struct {
				command string
				status  int
				err     string
			}{
				{"sh -c exit\t42", 42, ""},
				{"sh -c kill\t-TERM\t$$", 143, ""},
				{"no-such", 127, "squire: no-such: command not found"},
				{"text", 126, "squire: /bin/text: not a program"},
				{"/bin", 126, "is a directory"},
				{"./no", 127, "squire: /opt/./no: command not found"},
			} {
				var argv []string
				for _, a := range strings.Fields(strings.ReplaceAll(tt.command, "\t", "\x00")) {
					argv = append(argv, strings.ReplaceAll(a, "\x00", " "))
				}
				if r := execute(t, executor(w, commandPID, argv...)); r.status != tt.status || !strings.Contains(r.err, tt.err) || strings.Count(r.err, "\n") != min(1, len(tt.err)) {
					t.Errorf("%q: %+v, want %d and %q", argv, r, tt.status, tt.err)
				}
			}
			cmd := executor(w, commandPID, "true")
			cmd.Env = append(cmd.Env, "SQUIRE_TEST_WORKDIR=/no/such")
			if r := execute(t, cmd); r.status != ExitFailed || !strings.Contains(r.err, "working directory /no/such") {
				t.Errorf("%+v", r)
			}
		})
		t.Run("input", func(t *testing.T) {
			cmd := executor(w, commandPID, "cat")
			cmd.Stdin = strings.NewReader(strings.Repeat("0123456789", 100000))
			if r := execute(t, cmd); r.status != 0 || len(r.out) != 1000000 {
				t.Errorf("%d bytes, status %d, %s", len(r.out), r.status, r.err)
			}
		})
		t.Run("signals", func(t *testing.T) {
			cmd := executor(w, commandPID, "sh", "-c", `trap "echo got USR1" USR1; trap "echo got TERM; exit 7" TERM; echo started; while :; do sleep 0.05; done`)
			lines := begin(t, cmd)
			defer limited(t, cmd)()
			_ = cmd.Process.Signal(syscall.SIGUSR1)
			lines.want(t, "got USR1")
			_ = cmd.Process.Signal(syscall.SIGTERM)
			lines.want(t, "got TERM")
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != 7 {
				t.Errorf("exit status %d, want 7", got)
			}
		})
		t.Run("at once", func(t *testing.T) {
			var cmds []*exec.Cmd
			for i := range 20 {
				cmd := executor(w, commandPID, "sh", "-c", fmt.Sprintf("sleep 0.%d; exit %d", i%5, i))
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer limited(t, cmd)()
				cmds = append(cmds, cmd)
			}
			for i, cmd := range cmds {
				_ = cmd.Wait()
				if got := cmd.ProcessState.ExitCode(); got != i {
					t.Errorf("exit status %d, want %d", got, i)
				}
			}
		})
	})
}

// Whichever end goes, nothing is left.
func TestExecEnds(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		for i, how := range []string{"client killed", "runner killed", "command ended"} {
			t.Run(how, func(t *testing.T) {
				runnerPID, commandPID := background(t, w, Spec{Dir: root})
				mark := strconv.Itoa(880000 + os.Getpid()%10000*10 + i*2 + min(w.uid, 1))
				cmd := executor(w, commandPID, "sh", "-c", "sleep "+mark+" & echo started; wait")
				begin(t, cmd)
				defer limited(t, cmd)()
				victim := map[string]int{"client killed": cmd.Process.Pid, "runner killed": runnerPID, "command ended": commandPID}[how]
				if err := unix.Kill(victim, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				if got := cmd.ProcessState.ExitCode(); how != "client killed" && got != 137 {
					t.Errorf("exit status %d, want 137", got)
				}
				waitFor(t, "what it started to end", func() bool { return len(withArgument(mark)) == 0 })
			})
		}
	})
}

// Nobody gets into a container who could not do to its processes what they like, and
// nobody from inside.
func TestExecRefused(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		runnerPID, commandPID := background(t, w, Spec{Dir: root})
		if r := execute(t, executor(w, os.Getpid(), "true")); r.status != ExitFailed || !strings.Contains(r.err, "not in a container") {
			t.Errorf("a process outside: %+v", r)
		}
		gone := exec.Command("true")
		if err := gone.Run(); err != nil {
			t.Fatal(err)
		}
		if r := execute(t, executor(w, gone.Process.Pid, "true")); r.status != ExitFailed || !strings.Contains(r.err, "no such process") {
			t.Errorf("a process that is gone: %+v", r)
		}
		if os.Getuid() == 0 {
			other := who{"other", plainUID + 1}
			for _, pid := range []int{runnerPID, commandPID} {
				if r := execute(t, executor(other, pid, "id")); r.status != ExitFailed || r.out != "" {
					t.Errorf("another user: %+v", r)
				}
			}
			if r := execute(t, executor(who{"root", 0}, commandPID, "id", "-u")); r != (result{out: fmt.Sprintln(w.uid)}) {
				t.Errorf("root: %+v", r)
			}
		}
		if w.uid == 0 {
			return // what runs in root's container is root
		}
		needStatic(t)
		self, err := os.Readlink("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		program := publicDir(t, w) + "/" + execName
		copyFile(t, self, program)
		for _, remap := range []bool{false, true} {
			s := Spec{Dir: root, RemapRoot: remap, Mounts: []Mount{{Source: program, Target: "/bin/" + execName}}}
			s.Command = []string{"/bin/sh", "-c", fmt.Sprintf("exec %s %d id -u", execName, commandPID)}
			if r := run(t, w, s); r.status != ExitFailed || r.out != "" || !strings.Contains(r.err, "does not answer, or refuses") && !strings.Contains(r.err, "not in a container") {
				t.Errorf("from another container: %+v", r)
			}
			s.Command = []string{"/bin/sh", "-c", "exec " + execName + " $PPID id -u"}
			if r := run(t, w, s); r.status != ExitFailed || r.out != "" || !strings.Contains(r.err, "does not answer, or refuses") && !strings.Contains(r.err, "not in a container") {
				t.Errorf("from inside: %+v", r)
			}
		}
	})
}

// dialerName is a client of a container that does not look at whom it talks to, as "squire exec" does. Its argument is the
// process id of a runner.
const dialerName = "squire-test-dialer"

func testDialer() int {
	pid, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return fail(ExitFailed, err)
	}
	conn, err := net.DialUnix("unix", nil, controlName(pid))
	if err != nil {
		return fail(ExitFailed, err)
	}
	_ = sendFiles(conn, &execRequest{Command: []string{"/bin/sh", "-c", "echo ran"}}, os.Stdin, os.Stdout, os.Stderr) // it may be closed
	var reply execReply
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err = readFiles(conn, &reply, 1); errors.Is(err, os.ErrDeadlineExceeded) {
		return fail(ExitFailed, err)
	}
	if err == nil {
		_ = readMessage(conn, &reply) // the command has ended, and said what it had to say
	}
	fmt.Printf("replied %v\n", err == nil)
	return 0
}

// impostorName is a process that listens where a container of process number PID would, its argument, its own by default.
const impostorName = "squire-test-impostor"

func testImpostor() int {
	pid := os.Getpid()
	if len(os.Args) > 1 {
		pid, _ = strconv.Atoi(os.Args[1])
	}
	socket, err := net.ListenUnix("unix", controlName(pid))
	if err != nil {
		return fail(ExitFailed, err)
	}
	fmt.Println("listening")
	for {
		conn, err := socket.AcceptUnix()
		if err != nil {
			return fail(ExitFailed, err)
		}
		if n, _ := conn.Read(make([]byte, 1)); n > 0 {
			fmt.Println("was told something")
		}
		conn.Close()
	}
}

// A client tells nothing to, and gives no descriptor to, who listens in the place of a container: another process of its
// own user's, which may be one in a container, and a process of another user's.
func TestExecImpostor(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, _ string) {
		victim := exec.Command("sleep", "600")
		victim.SysProcAttr = executor(w, 0).SysProcAttr
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = victim.Process.Kill()
			_ = victim.Wait()
		})
		impostors := map[string]*exec.Cmd{"another process": executor(w, victim.Process.Pid)}
		if os.Getuid() == 0 && w.uid != 0 {
			impostors["another user"] = executor(who{"other", plainUID + 1}, 0)
			impostors["another user"].Args = []string{impostorName}
		}
		for name, impostor := range impostors {
			impostor.Args[0] = impostorName
			out, err := impostor.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err = impostor.Start(); err != nil {
				t.Fatal(err)
			}
			lines := newLines(out)
			lines.want(t, "listening")
			pid := victim.Process.Pid
			if name == "another user" {
				pid = impostor.Process.Pid
			}
			if r := execute(t, executor(w, pid, "true")); r.status != ExitFailed || !strings.Contains(r.err, "not in a container") {
				t.Errorf("%s: %+v", name, r)
			}
			_ = impostor.Process.Kill()
			for line := range lines.ch {
				t.Errorf("%s: %s", name, line)
			}
			_ = impostor.Wait()
		}
	})
}

// The container itself refuses who may not enter, whatever the client does: another user, and who is in another user
// namespace, as what is in a container is. (CVE-2016-9962)
func TestExecImpudentClient(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		runnerPID, _ := background(t, w, Spec{Dir: root})
		dialer := func(w who) *exec.Cmd {
			cmd := executor(w, runnerPID)
			cmd.Args[0] = dialerName
			return cmd
		}
		if r := execute(t, dialer(w)); r != (result{out: "ran\nreplied true\n"}) {
			t.Fatalf("who may enter: %+v", r)
		}
		refused := result{out: "replied false\n"}
		if os.Getuid() == 0 {
			if r := execute(t, dialer(who{"other", plainUID + 1})); r != refused {
				t.Errorf("another user: %+v", r)
			}
		}
		cmd := dialer(w)
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
		ids := []syscall.SysProcIDMap{{ContainerID: w.uid, HostID: w.uid, Size: 1}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		if os.Getuid() == 0 {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(w.uid), Gid: uint32(w.uid), NoSetGroups: true}
		} else {
			cmd.SysProcAttr.GidMappings = nil
		}
		if r := execute(t, cmd); r != refused {
			t.Errorf("in a user namespace: %+v", r)
		}
	})
}

// A client that sends nothing, nonsense or something else does no harm.
func TestExecHostileClient(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if w.uid != os.Getuid() {
			t.Skip("the client is this process")
		}
		runnerPID, commandPID := background(t, w, Spec{Dir: root})
		dial := func() *net.UnixConn {
			conn, err := net.DialUnix("unix", nil, controlName(runnerPID))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		for range 30 {
			dial() // and say nothing
		}
		null, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		for name, send := range map[string]func(c *net.UnixConn) error{
			"nothing":       func(c *net.UnixConn) error { return c.CloseWrite() },
			"a huge length": func(c *net.UnixConn) error { _, err := c.Write([]byte("\xff\xff\xff\xffxx")); return err },
			"nonsense": func(c *net.UnixConn) error {
				_, err := c.Write([]byte("\x00\x00\x00\x05\xff\xff\xff\xff\xff"))
				return err
			},
			"no files":  func(c *net.UnixConn) error { return sendFiles(c, &execRequest{Command: []string{"true"}}) },
			"two files": func(c *net.UnixConn) error { return sendFiles(c, &execRequest{Command: []string{"true"}}, null, null) },
			"200 files": func(c *net.UnixConn) error {
				return sendFiles(c, &execRequest{Command: []string{"true"}}, bytesOf(null, 200)...)
			},
			"files and a terminal": func(c *net.UnixConn) error {
				return sendFiles(c, &execRequest{Command: []string{"true"}, Terminal: true}, null, null, null)
			},
		} {
			conn := dial()
			if err := send(conn); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if b, err := io.ReadAll(conn); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: answered %q, %v", name, b, err)
			}
		}
		conn := dial()
		if err := sendFiles(conn, &execRequest{}, null, null, null); err != nil {
			t.Fatal(err)
		}
		var reply execReply
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := readFiles(conn, &reply, 1); err != nil || reply.Error != "command not found" {
			t.Errorf("no command: %+v, %v", reply, err)
		}
		if r := execute(t, executor(w, commandPID, "sh", "-c", "echo fine")); r != (result{out: "fine\n"}) {
			t.Errorf("afterwards: %+v", r)
		}
	})
}

func bytesOf(f *os.File, n int) (files []*os.File) {
	for range n {
		files = append(files, f)
	}
	return files
}

// On a terminal the command has one of its own, in its session: its size is ours, ^C
// and ^Z are its, and ours is as before afterwards.
func TestExecTerminal(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		_, commandPID := background(t, w, Spec{Dir: root})
		master, slave := openTerminal(t, w)
		before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		size := func(rows, columns uint16) {
			if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
				t.Fatal(err)
			}
		}
		size(33, 99)
		cmd := executor(w, commandPID, "sh", "-c", `
			tty; stty size; echo hi >/dev/tty
			n=0; trap 'n=$((n+1)); echo int $n' INT; trap 'stty size' WINCH; echo started
			while [ $n -lt 2 ]; do sleep 0.05; done; read line; echo "read $line"; exit 9`)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setctty = true
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer limited(t, cmd)()
		lines := newLines(trimCR{master})
		for _, line := range []string{"/dev/pts/0", "33 99", "hi", "started"} {
			lines.want(t, line)
		}
		press := func(key string) {
			if _, err := master.WriteString(key); err != nil {
				t.Fatal(err)
			}
		}
		press("\x03")
		lines.want(t, "^Cint 1")
		size(10, 20)
		lines.want(t, "10 20")
		press("\x03")
		lines.want(t, "^Cint 2")
		press("a line\r")
		lines.want(t, "read a line")
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 9 {
			t.Errorf("exit status %d, want 9", got)
		}
		after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil || *after != *before {
			t.Errorf("the terminal is %+v, was %+v (%v)", after, before, err)
		}
	})
}
