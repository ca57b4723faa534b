// Package hosttest runs squire's plugin for Slurm in a small stand-in for srun and slurmstepd, with a stand-in for squire,
// for what neither of the real ones does: answers that are broken, processes that end or hang at the wrong time.
package hosttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain is the stand-in for squire, when the plugin starts it, as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "slurm" {
		os.Exit(squire(os.Args[2]))
	}
	status := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(status)
}

var built struct {
	dir string
	err error
}

// bed is a directory that everybody can read with the plugin, its host, and a squire.
type bed struct {
	host, plugin, squire string
	uid                  int // who the tasks are
}

// newBed makes them at the first call.
func newBed(t *testing.T) *bed {
	t.Helper()
	if built.dir == "" && built.err == nil {
		built.dir, built.err = build()
	}
	var skip *skipError
	if errors.As(built.err, &skip) {
		t.Skip(skip)
	}
	if built.err != nil {
		t.Fatal(built.err)
	}
	b := &bed{filepath.Join(built.dir, "host"), filepath.Join(built.dir, "plugin.so"), filepath.Join(built.dir, "squire"), os.Getuid()}
	if b.uid == 0 {
		b.uid = 65534
	}
	return b
}

// skipError says what the machine lacks.
type skipError struct{ text string }

func (e *skipError) Error() string { return e.text }

// build compiles with what finds mistakes where they are made, if the compiler has it.
func build() (dir string, err error) {
	dir, err = os.MkdirTemp("", "squire-host")
	if err != nil {
		return "", err
	}
	if err = os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	probe := exec.Command("cc", "-E", "-x", "c", "-", "-o", os.DevNull)
	probe.Stdin = strings.NewReader("#include <slurm/spank.h>\n")
	if probe.Run() != nil {
		return dir, &skipError{"needs a C compiler and Slurm's headers: run testdata/deps.sh cc slurm/spank.h"}
	}
	flags := []string{"-std=c99", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-DEND_SECONDS=1", "-fsanitize=undefined", "-fno-sanitize-recover=all"}
	for _, args := range [][]string{
		{"-fPIC", "-shared", "-o", filepath.Join(dir, "plugin.so"), "../spank_squire.c"},
		{"-rdynamic", "-o", filepath.Join(dir, "host"), "testdata/host.c", "-ldl"},
	} {
		if out, err := exec.Command("cc", append(slices.Clone(flags), args...)...).CombinedOutput(); err != nil {
			return dir, fmt.Errorf("cc: %w\n%s", err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return dir, err
	}
	content, err := os.ReadFile(self)
	if err != nil {
		return dir, err
	}
	return dir, os.WriteFile(filepath.Join(dir, "squire"), content, 0o755)
}

// result is how the host ended.
type result struct {
	stdout, stderr string
	code           int
}

// run runs the host; env has what the stand-in for squire is to do. No run takes long, unless something hangs.
func (b *bed) run(t *testing.T, where string, tasks int, options, env []string, command ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := append([]string{b.plugin, where, strconv.Itoa(tasks), strconv.Itoa(b.uid), "squire=" + b.squire}, options...)
	cmd := exec.CommandContext(ctx, b.host, append(append(args, "--"), command...)...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("host: %v, %v\n%s%s", err, ctx.Err(), stdout.String(), stderr.String())
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

var image = []string{"container-image=/i"}

// ended counts the tasks that ended with a status.
func (r result) ended(status int) (n int) {
	return len(regexp.MustCompile(fmt.Sprintf(`(?m)^task \d+: %d$`, status)).FindAllString(r.stdout, -1))
}

// hidden are the signals that are ignored here and that no program can undo through libc, which keeps 32 and 33 to itself
// (signal(7)): whoever started the tests may ignore them.
func hidden(t *testing.T) (mask uint64) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "SigIgn:\t%x", &mask)
	}
	return mask & (3 << 31)
}

// Tasks do what the answer says, and have no descriptors of the plugin's.
func TestTasks(t *testing.T) {
	b := newBed(t)
	open := strings.Split(b.run(t, "remote", 1, nil, nil, "sh", "-c", "ls /proc/self/fd | tr '\n' ' '").stdout, "task")[0]
	for _, where := range []string{"remote", "vm"} {
		r := b.run(t, where, 3, image, []string{"FAKE=good", "GONE=1"},
			"sh", "-c", `echo "$SET|$GONE|$(pwd)|$(ls /proc/self/fd | tr '\n' ' ')|$(grep SigIgn /proc/self/status)"`)
		want := fmt.Sprintf("a=b c||/usr|%s|SigIgn:\t%016x\n", open, 0x1000|hidden(t)) // the host's SIGPIPE
		if r.code != 0 || r.ended(0) != 3 || strings.Count(r.stdout, want) != 3 || r.stderr != "" {
			t.Errorf("%s: got %+v, want three times %s", where, r, want)
		}
	}
}

// Root's tasks, which need no user namespace, show that rights are given up.
func TestLimits(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	b := newBed(t)
	b.uid = 0
	r := b.run(t, "remote", 1, image, []string{"FAKE=limits"}, "grep", "-E", "^(Cap|NoNewPrivs|Seccomp:)", "/proc/self/status")
	none := "\t0000000000000000\n"
	want := "CapInh:" + none + "CapPrm:" + none + "CapEff:" + none + "CapBnd:" + none + "CapAmb:" + none + "NoNewPrivs:\t1\nSeccomp:\t2\n"
	if r.ended(0) != 1 || !strings.Contains(r.stdout, want) {
		t.Errorf("got %+v, want %s", r, want)
	}
	if r = b.run(t, "remote", 1, image, []string{"FAKE=program"}, "true"); r.ended(1) != 1 || !strings.Contains(r.stderr, "cannot filter system calls: Invalid argument") {
		t.Errorf("got %+v", r)
	}
}

// Without options and variables nothing happens.
func TestNothingWanted(t *testing.T) {
	r := newBed(t).run(t, "remote", 1, nil, []string{"FAKE=silent"}, "true")
	if r.ended(0) != 1 || r.stderr != "" {
		t.Errorf("got %+v", r)
	}
}

// Whatever comes back, a task ends with 1 and one line, and nothing hangs.
func TestBrokenAnswers(t *testing.T) {
	b := newBed(t)
	for fake, want := range map[string]string{
		"dies":      "squire slurm step ended before it answered",
		"dies-late": "squire slurm step ended before it answered",
		"short":     "ended before it answered",
		"length":    "answer is broken",
		"endless":   "answer is broken",
		"truncated": "answer is broken",
		"many":      "answer is broken",
		"unknown":   "what this plugin does not know: z",
		"namespace": "what this plugin does not know: nuser",
		"not-ns":    "cannot join the container's namespace user: Invalid argument",
		"nameless":  "cannot set novalue",
		"directory": "couldn't chdir to /no/such: No such file or directory",
		"filter":    "cannot filter system calls: Protocol error",
		"refuses":   "squire: no such image",
		"no-order":  "ended before it answered",
	} {
		r := b.run(t, "remote", 1, image, []string{"FAKE=" + fake}, "true")
		if r.ended(1) != 1 || !strings.Contains(r.stderr, want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: got %+v, want one line with %q", fake, r, want)
		}
	}
}

// An error without a text is one that another task tells.
func TestRefusedSilently(t *testing.T) {
	r := newBed(t).run(t, "remote", 2, image, []string{"FAKE=refuses-silently"}, "true")
	if r.ended(1) != 2 || r.stderr != "" {
		t.Errorf("got %+v", r)
	}
}

// Text of the step process's goes to slurmd's log as well.
func TestControlCharacters(t *testing.T) {
	r := newBed(t).run(t, "remote", 1, image, []string{"FAKE=colours"}, "true")
	if want := "error: squire: ?[31mred?\nerror: squire: two\n"; r.stderr != want {
		t.Errorf("got %q, want %q", r.stderr, want)
	}
}

// A squire that cannot be executed is told once on a node, by the first task.
func TestNoSquire(t *testing.T) {
	b := newBed(t)
	for path, want := range map[string]string{
		"/no/such/squire": "cannot start /no/such/squire: No such file or directory",
		"/proc/version":   "cannot start /proc/version: Permission denied",
	} {
		b.squire = path
		r := b.run(t, "remote", 4, image, nil, "true")
		if r.ended(1) != 4 || r.stderr != "error: squire: "+want+"\n" {
			t.Errorf("%s: got %+v", path, r)
		}
	}
}

// A step process that does not end is not waited for for ever, and one that complains is heard.
func TestEnd(t *testing.T) {
	b := newBed(t)
	for fake, want := range map[string]string{
		"good":       "",
		"stays":      "error: squire: squire slurm step does not end\n",
		"chatters":   "error: squire: squire slurm step does not end\n",
		"complains":  "error: squire: it went wrong\n",
		"dies-later": "",
	} {
		for _, where := range []string{"remote", "vm"} {
			if r := b.run(t, where, 1, image, []string{"FAKE=" + fake}, "true"); r.ended(0) != 1 || r.stderr != want {
				t.Errorf("%s, %s: got %+v, want %q", fake, where, r, want)
			}
		}
	}
}

// A step that Slurm gives up before there is a step process does not wait for one.
func TestEndBefore(t *testing.T) {
	b := newBed(t)
	if r := b.run(t, "remote", 0, image, nil, "true"); r.code != 0 || r.stdout != "" || r.stderr != "" {
		t.Errorf("got %+v", r)
	}
}

// An epilog does not hold a node for ever, nor make it drain.
func TestEpilog(t *testing.T) {
	b := newBed(t)
	began := time.Now()
	r := b.run(t, "epilog", 1, nil, nil)
	if took := time.Since(began); r.code != 0 || r.stderr != "error: squire: squire slurm cleanup does not end\n" || took < time.Second || took > 20*time.Second {
		t.Errorf("got %+v after %s", r, took)
	}
}

// Supervised tasks end as their commands do, unless squire says otherwise.
func TestSupervised(t *testing.T) {
	b := newBed(t)
	for command, status := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137, `[ "$SLURM_TASK_PID" = $$ ] || exit 9`: 0} {
		if r := b.run(t, "remote", 2, image, []string{"FAKE=supervises"}, "sh", "-c", command); r.ended(status) != 2 || r.stderr != "" {
			t.Errorf("%s: got %+v, want %d", command, r, status)
		}
	}
	r := b.run(t, "remote", 1, image, []string{"FAKE=objects"}, "true")
	if r.ended(1) != 1 || r.stderr != "slurmstepd: error: squire: not saved\n" {
		t.Errorf("got %+v", r)
	}
	r = b.run(t, "remote", 1, image, []string{"FAKE=supervises-not"}, "sh", "-c", "sleep 0.3")
	if r.ended(1) != 1 || !strings.Contains(r.stderr, "squire slurm step ended before the task") {
		t.Errorf("got %+v", r)
	}
}

// The step process is the user for good, and has nothing of slurmstepd's.
func TestStepProcess(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	b.run(t, "remote", 1, []string{"container-image=/\xff\x01\"", "container-writable="}, []string{"FAKE=report", "REPORT=" + dir + "/report", "BYTES=\xfe\x7f"}, "true")
	text, err := os.ReadFile(dir + "/report")
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err = json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprint(b.uid)
	ids := strings.Join([]string{id, id, id, id}, "\t")
	if s := got.Status; s["Uid"] != ids || s["Gid"] != ids || os.Getuid() == 0 && s["Groups"] != id || s["SigIgn"] != fmt.Sprintf("%016x", hidden(t)) || s["CapPrm"] != "0000000000000000" {
		t.Errorf("status: %v", s)
	}
	if want := []string{"0", "1", "2", "3"}; !slices.Equal(got.Files, want) {
		t.Errorf("descriptors %v, want %v", got.Files, want)
	}
	if len(got.Env) != 1 || !strings.HasPrefix(got.Env[0], "PATH=/usr/local/sbin:") {
		t.Errorf("environment %v", got.Env)
	}
	if got.Score != "0" || !slices.Equal(got.Args, []string{"slurm", "step", "7.1"}) {
		t.Errorf("score %s, arguments %v", got.Score, got.Args)
	}
	var order struct {
		Given    []struct{ Name, Value string }
		Plugin   []string
		Job, UID int
		Env      []string
	}
	if err = json.Unmarshal(got.Order, &order); err != nil {
		t.Fatalf("%v in %s", err, got.Order)
	}
	if len(order.Given) != 2 || order.Given[0].Value != "/\u00ff\u0001\"" || order.Given[1].Name != "container-writable" || order.Given[1].Value != "" {
		t.Errorf("given %q", order.Given)
	}
	if order.Job != 7 || order.UID != b.uid || !slices.Equal(order.Plugin, []string{"squire=" + b.squire}) || !slices.Contains(order.Env, "BYTES=\u00fe\u007f") {
		t.Errorf("order %+v", order)
	}
}

// In srun squire says whether the options are right.
func TestCheck(t *testing.T) {
	b := newBed(t)
	for _, tt := range []struct {
		fake, stdout, stderr string
		code                 int
	}{
		{"good", "\n", "", 0},
		{"meant", "{\"a\":\"b\"}\n", "", 0},
		{"warns", "\n", "squire: careful\n", 0},
		{"refuses", "", "error: squire: one\nerror: squire: two\n", 255},
		{"dies", "", "", 255},
	} {
		for _, where := range []string{"local", "allocator"} {
			r := b.run(t, where, 0, image, []string{"FAKE=" + tt.fake, "SLURM_SQUIRE_OPTIONS=old"})
			if r.stdout != tt.stdout || tt.fake != "dies" && r.stderr != tt.stderr || r.code != tt.code {
				t.Errorf("%s, %s: got %+v, want %+v", tt.fake, where, r, tt)
			}
		}
	}
	if r := b.run(t, "local", 0, nil, []string{"FAKE=refuses"}); r.code != 0 || r.stderr != "" {
		t.Errorf("without options: got %+v", r)
	}
	if r := b.run(t, "local", 0, nil, []string{"FAKE=refuses", "PYXIS_CONTAINER_IMAGE=x"}); r.code != 255 {
		t.Errorf("with a variable: got %+v", r)
	}
	b.squire = "/no/such/squire"
	if r := b.run(t, "local", 0, image, nil); r.code != 255 || !strings.Contains(r.stderr, "/no/such/squire: No such file") {
		t.Errorf("without squire: got %+v", r)
	}
}

// Nobody's options overflow anything.
func TestManyOptions(t *testing.T) {
	b := newBed(t)
	many := slices.Repeat([]string{"container-mounts=/a"}, 200)
	if r := b.run(t, "local", 0, many, []string{"FAKE=good"}); r.code != 3 || !strings.Contains(r.stderr, "too many options") {
		t.Errorf("got %+v", r)
	}
	long := []string{"container-mounts=" + strings.Repeat("/aaaaaaa,", 10000)}
	if r := b.run(t, "remote", 1, long, []string{"FAKE=good"}, "true"); r.ended(0) != 1 {
		t.Errorf("got %+v", r)
	}
}
