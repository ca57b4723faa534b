package runtime

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// holderName is a process that holds a container. It says in JSON what it has, a heldText a line: first the container,
// then one for each line of its standard input, which names device nodes to hide. At its end it lets go.
const holderName = "squire-test-holder"

// heldText is a container by descriptors of the holder's.
type heldText struct {
	Kinds   []string
	Files   []int
	Environ []string
	Workdir string
	Caps    bool
	Filter  int
	Error   string
}

func testHolder() int {
	var o order
	if err := readMessage(hex.NewDecoder(strings.NewReader(os.Getenv(specEnv))), &o); err != nil {
		return fail(ExitFailed, err)
	}
	out := json.NewEncoder(os.Stdout)
	s, h := o.Spec, Probe()
	ops, err := Plan(&s, h)
	if err != nil {
		return fail(ExitFailed, err)
	}
	var r Runner
	if err = r.Start(&s, h); err != nil {
		return fail(ExitFailed, err)
	}
	held, err := r.Hold(ops)
	if err != nil {
		_ = out.Encode(heldText{Error: err.Error()})
		return 0
	}
	defer held.Close()
	text := heldText{Environ: held.Environ, Workdir: held.Workdir, Caps: held.KeepsCapabilities(), Filter: len(held.Filter())}
	for _, n := range held.Namespaces {
		text.Kinds, text.Files = append(text.Kinds, n.Kind), append(text.Files, int(n.File.Fd()))
	}
	_ = out.Encode(text)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		text = heldText{}
		ns, err := held.Derive(strings.Fields(lines.Text()))
		if err != nil {
			text.Error = err.Error()
		} else {
			text.Kinds, text.Files = []string{"mnt"}, []int{int(ns.Fd())}
			defer ns.Close()
		}
		_ = out.Encode(text)
	}
	return 0
}

// holder is one, from outside.
type holder struct {
	heldText
	t   *testing.T
	w   who
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// hold starts a holder of s as w, until the test's end. Its error is in the result.
func startHolder(t *testing.T, w who, s Spec) *holder {
	t.Helper()
	if _, err := exec.LookPath("nsenter"); err != nil {
		t.Skip("needs nsenter (Debian's util-linux)")
	}
	h := &holder{t: t, w: w, cmd: runner(t, w, s)}
	h.cmd.Args = []string{holderName}
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err = h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := limited(t, h.cmd)
	t.Cleanup(func() { h.end(); stop() })
	h.out = json.NewDecoder(out)
	if err = h.out.Decode(&h.heldText); err != nil {
		t.Fatal(err)
	}
	return h
}

// end lets go of the container.
func (h *holder) end() {
	h.in.Close()
	_ = h.cmd.Wait()
}

// derive asks for a mount namespace in which devices are hidden, and returns the container with it.
func (h *holder) derive(hide string) *holder {
	h.t.Helper()
	fmt.Fprintln(h.in, hide)
	var text heldText
	if err := h.out.Decode(&text); err != nil {
		h.t.Fatal(err)
	}
	d := *h
	d.Error, d.Files = text.Error, slices.Clone(h.Files)
	if text.Error == "" {
		d.Files[slices.Index(h.Kinds, "mnt")] = text.Files[0]
	}
	return &d
}

// join returns a shell script that is run in the container as a task would be.
func (h *holder) join(script string) *exec.Cmd {
	args := []string{"--preserve-credentials"}
	for i, kind := range h.Kinds {
		kind = map[string]string{"mnt": "mount"}[kind] + strings.TrimPrefix(kind, "mnt")
		args = append(args, fmt.Sprintf("--%s=/proc/%d/fd/%d", kind, h.cmd.Process.Pid, h.Files[i]))
	}
	cmd := exec.Command("nsenter", append(args, "--", "/bin/sh", "-c", script)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = h.cmd.SysProcAttr
	cmd.WaitDelay = limit
	return cmd
}

// sh runs a script and wants it to succeed.
func (h *holder) sh(script string) string {
	h.t.Helper()
	var out, stderr bytes.Buffer
	cmd := h.join(script)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("%s: %v\n%s%s", script, err, out.String(), stderr.String())
	}
	return strings.Trim(out.String(), "\n")
}

func TestHold(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		h := startHolder(t, w, Spec{Dir: root, Image: root, Workdir: "/bin", Writable: true, Unshare: []string{"ipc"}})
		if h.Error != "" {
			t.Fatal(h.Error)
		}
		kinds := "user mnt ipc"
		if w.uid == 0 {
			kinds = "mnt ipc uts"
		}
		if got := strings.Join(h.Kinds, " "); got != kinds {
			t.Errorf("namespaces: got %s, want %s", got, kinds)
		}
		if h.Workdir != "/bin" || h.Filter == 0 || h.Caps != (w.uid == 0) {
			t.Errorf("got %+v", h.heldText)
		}
		if !slices.Contains(h.Environ, "PATH="+DefaultPath) {
			t.Errorf("environment: got %q", h.Environ)
		}
		if got, want := h.sh("id -u; ls /; touch /made; pwd"), strconv.Itoa(w.uid)+"\nbin\ndev\netc\nopt\nproc\nsys\ntmp\n/"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := h.sh("ls /made"); got != "/made" {
			t.Errorf("another task: got %q", got)
		}
		if got := h.sh("ls /dev/shm"); got != "" {
			t.Errorf("/dev/shm: got %q", got)
		}
	})
}

func TestHoldRemapped(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		h := startHolder(t, w, Spec{Dir: root, Image: root, RemapRoot: true})
		if got := h.sh("id -u"); got != "0" || !h.Caps {
			t.Errorf("got %q, %+v", got, h.heldText)
		}
	})
}

func TestHoldErrors(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		for _, tt := range []struct {
			spec Spec
			want string
		}{
			{Spec{Workdir: "/nowhere"}, ": no such file or directory"},
			{Spec{Unshare: []string{"pid"}}, "a PID namespace needs a process in it"},
			{Spec{Mounts: []Mount{{Source: "/nowhere", Target: "/x"}}}, "/nowhere: no such file"},
		} {
			tt.spec.Dir, tt.spec.Image = root, root
			if h := startHolder(t, w, tt.spec); !strings.Contains(h.Error, tt.want) {
				t.Errorf("got %q, want %q", h.Error, tt.want)
			}
		}
	})
}

// The container lives as long as a task does, and nothing of it stays.
func TestHoldEnds(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		for _, how := range []string{"end", "kill"} {
			h := startHolder(t, w, Spec{Dir: root, Image: root, Writable: true})
			// It is kept open: else the next namespace, of whoever makes one, may have the number of this one.
			file, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", h.cmd.Process.Pid, h.Files[slices.Index(h.Kinds, "mnt")]))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			var ns unix.Stat_t
			if err = unix.Fstat(int(file.Fd()), &ns); err != nil {
				t.Fatal(err)
			}
			task := h.join("echo there; read x; ls /bin/cat")
			in, err := task.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := task.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err = task.Start(); err != nil {
				t.Fatal(err)
			}
			said := newLines(out)
			said.want(t, "there")
			if how == "kill" {
				_ = h.cmd.Process.Kill()
			}
			h.end()
			waitFor(t, "the init stage's end", func() bool { return len(inNamespace(ns.Ino)) <= 1 })
			in.Close()
			said.want(t, "/bin/cat")
			if err = task.Wait(); err != nil {
				t.Error(err)
			}
			if pids := inNamespace(ns.Ino); len(pids) > 0 {
				t.Errorf("%s: processes %q are left", how, pids)
			}
		}
	})
}

// inNamespace lists the processes in a mount namespace.
func inNamespace(ino uint64) (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
	for _, f := range files {
		var st unix.Stat_t
		if unix.Stat(f, &st) == nil && st.Ino == ino {
			pids = append(pids, f)
		}
	}
	return pids
}

func TestDerive(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		data := publicDir(t, w)
		if err := os.WriteFile(data+"/f", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		h := startHolder(t, w, Spec{Dir: root, Image: root, Writable: true, Mounts: []Mount{
			{Source: "/dev/null", Target: "/dev/gpu0"},
			{Source: "/dev/zero", Target: "/dev/gpu1"},
			{Source: "/dev/null", Target: "/dev/caps/one"},
			{Source: "/dev/zero", Target: "/dev/caps/two"},
			{Source: data, Target: "/dev/caps/deep/data"},
		}})
		first, second := h.derive("/dev/gpu1 /dev/caps/one"), h.derive("/dev/gpu0 /dev/caps/two /dev/nowhere")
		if first.Error != "" || second.Error != "" {
			t.Fatal(first.Error, second.Error)
		}
		const list = "ls /dev/caps; ls /dev/gpu*; ls /dev/caps/deep/data; readlink /dev/stdin; ls -d /dev/null /dev/pts/ptmx"
		const rest = "\nf\n/proc/self/fd/0\n/dev/null\n/dev/pts/ptmx"
		for _, tt := range []struct {
			name string
			h    *holder
			want string
		}{
			{"all", h, "deep\none\ntwo\n/dev/gpu0\n/dev/gpu1" + rest},
			{"first", first, "deep\ntwo\n/dev/gpu0" + rest},
			{"second", second, "deep\none\n/dev/gpu1" + rest},
		} {
			if got := tt.h.sh(list); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
			}
			// Nothing is there but devices, and what was there before is not below.
			if got := tt.h.sh("echo x >/dev/null; grep -c ' /dev ' /proc/self/mounts; ls -ld /dev | cut -c1-10"); got != "1\ndrwxr-xr-x" {
				t.Errorf("%s: got %q", tt.name, got)
			}
		}
		first.sh("touch /made")
		if got := second.sh("ls /made; [ -c /dev/gpu1 ] && echo device"); got != "/made\ndevice" {
			t.Errorf("the root is shared: got %q", got)
		}
		for _, bad := range []string{"/etc/passwd", "/dev/../etc", "dev/x"} {
			if d := h.derive(bad); !strings.Contains(d.Error, "not a device node below /dev") {
				t.Errorf("%s: got %q", bad, d.Error)
			}
		}
	})
}

// What has the container's rights does not reach the init stage, which has more.
func TestHoldInitOutOfReach(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if w.uid == 0 {
			t.Skip("root reaches all")
		}
		h := startHolder(t, w, Spec{Dir: root, Image: root})
		inits := testenv.Children(h.cmd.Process.Pid)
		if len(inits) != 1 {
			t.Fatalf("the holder has children %v", inits)
		}
		if got := h.sh(fmt.Sprintf("readlink /proc/%d/exe || echo no; cat /proc/%[1]d/environ 2>/dev/null || echo no", inits[0])); got != "no\nno" {
			t.Errorf("got %q", got)
		}
	})
}

// An entrypoint has no more rights than a command, and the init stage has its own still.
func TestHoldEntrypoint(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		entry := "#!/bin/sh\nexport FOUND=\"$(grep -c '^Cap[A-Z][a-z]*:.0*$' /proc/self/status) $(grep -c -e '^Seccomp:.2' -e '^NoNewPrivs:.1' /proc/self/status)\"\ncd /opt\nexec \"$@\"\n"
		if err := os.WriteFile(root+"/bin/entry", []byte(entry), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+testConfigFile, []byte("entrypoint /bin/entry\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		h := startHolder(t, w, Spec{Dir: root, Image: root, Entrypoint: true, Mounts: []Mount{{Source: "/dev/null", Target: "/dev/gpu0"}}})
		want := "FOUND=5 2" // all sets are empty
		if w.uid == 0 {
			want = "FOUND=2 2" // root's inheritable and ambient ones are, too
		}
		if h.Error != "" || !slices.Contains(h.Environ, want) || h.Workdir != "/opt" {
			t.Errorf("got %+v, want %s", h.heldText, want)
		}
		if d := h.derive("/dev/gpu0"); d.Error != "" || d.sh("ls /dev/gpu0 2>/dev/null || echo none") != "none" {
			t.Errorf("derive: %s", d.Error)
		}
	})
}

// A signal to all processes of a job is not for the init stage.
func TestHoldSignals(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		h := startHolder(t, w, Spec{Dir: root, Image: root})
		for _, pid := range testenv.Children(h.cmd.Process.Pid) {
			for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1} {
				if err := unix.Kill(pid, sig); err != nil {
					t.Error(err)
				}
			}
		}
		if d := h.derive("/dev/zero"); d.Error != "" {
			t.Error(d.Error)
		}
	})
}
