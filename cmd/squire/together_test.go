package main_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestTogether drives "squire run" as the tasks of a step of Slurm's on one node, with the variables that Slurm sets.
func TestTogether(t *testing.T) {
	l := newLab(t)
	for _, who := range users {
		t.Run("shared/"+who.name, func(t *testing.T) { testTogetherShared(t, l, who) })
		t.Run("status/"+who.name, func(t *testing.T) { testTogetherStatus(t, l, who) })
		t.Run("different/"+who.name, func(t *testing.T) { testTogetherDifferent(t, l, who) })
		t.Run("failing/"+who.name, func(t *testing.T) { testTogetherFailing(t, l, who) })
		t.Run("killed/"+who.name, func(t *testing.T) { testTogetherKilled(t, l, who) })
		t.Run("late/"+who.name, func(t *testing.T) { testTogetherLate(t, l, who) })
	}
	t.Run("memory", func(t *testing.T) { testTogetherMemory(t, l, users[1]) })
	t.Run("others", func(t *testing.T) { testTogetherOthers(t, l) })
}

// nextStep is a number for a step that no other test has.
var nextStep = struct {
	sync.Mutex
	n int
}{n: int(time.Now().UnixNano() % 1e6)}

// step returns a function that makes the command line of a task of a new step with so many tasks.
func (l *lab) step(tasks int) func(task int, args ...string) []string {
	nextStep.Lock()
	nextStep.n++
	step := nextStep.n
	nextStep.Unlock()
	return func(task int, args ...string) []string {
		return slices.Concat([]string{
			"env", "SLURM_JOB_ID=1", fmt.Sprint("SLURM_STEP_ID=", step), "SLURM_NODEID=1", "SLURMD_NODENAME=n2",
			fmt.Sprintf("SLURM_STEP_TASKS_PER_NODE=1,%d", tasks), fmt.Sprint("SLURM_LOCALID=", task), fmt.Sprint("SLURM_PROCID=", task+1),
			l.squire, "run",
		}, args)
	}
}

// atOnce runs so many tasks, and returns how they ended.
func (l *lab) atOnce(t *testing.T, who user, tasks int, line func(task int) []string) []result {
	t.Helper()
	results := make([]result, tasks)
	var wg sync.WaitGroup
	for i := range tasks {
		wg.Go(func() { results[i] = l.run(t, who, line(i)...) })
	}
	wg.Wait()
	return results
}

// meet waits for the files of 4 tasks.
const meet = `touch /at$SLURM_LOCALID; for i in 0 1 2 3; do n=0; while [ ! -e /at$i ]; do sleep 0.1; n=$((n+1)); [ $n -lt 300 ] || exit 9; done; done; `

// testTogetherShared: they are in one container, whose writable layer is one.
func testTogetherShared(t *testing.T, l *lab, who user) {
	task := l.step(4)
	results := l.atOnce(t, who, 4, func(i int) []string {
		return task(i, "--writable", l.images["zstd"], "--", "sh", "-c", meet+"readlink /proc/self/ns/user /proc/self/ns/mnt; echo $0 >&2", fmt.Sprint("task", i))
	})
	for i, r := range results {
		if r.status != 0 || r.stdout != results[0].stdout || r.stderr != fmt.Sprintf("task%d\n", i) {
			t.Errorf("task %d: %+v, the first one has %q", i, r, results[0].stdout)
		}
	}
	l.wantNothingLeft(t)
}

// testTogetherStatus: each has its own status, standard input and environment.
func testTogetherStatus(t *testing.T, l *lab, who user) {
	task := l.step(3)
	results := l.atOnce(t, who, 3, func(i int) []string {
		return task(i, "--set-env", fmt.Sprint("MINE=", i), l.images["zstd"], "--", "sh", "-c", `echo $MINE $SLURM_PROCID; [ $MINE != 2 ] || kill -KILL $$; exit $((MINE+40))`)
	})
	for i, want := range []result{{"0 1\n", "", 40}, {"1 2\n", "", 41}, {"2 3\n", "", 137}} {
		if results[i] != want {
			t.Errorf("task %d: %+v, want %+v", i, results[i], want)
		}
	}
	l.wantNothingLeft(t)
}

// testTogetherDifferent: who wants something else has a container of its own.
func testTogetherDifferent(t *testing.T, l *lab, who user) {
	task := l.step(4)
	flags := [][]string{{"--writable"}, {"--writable", "--mounts", "/usr:/host"}, {"--writable", "--unshare", "ipc"}, {"--writable", "--unshare", "pid"}}
	results := l.atOnce(t, who, 4, func(i int) []string {
		return task(i, append(flags[i], l.images["zstd"], "--", "sh", "-c", "touch /at$SLURM_LOCALID; sleep 1; ls -d /at* /host")...)
	})
	for i, r := range results {
		want := fmt.Sprintf("/at%d\n", i)
		if i == 1 {
			want += "/host\n"
		}
		if r.stdout != want {
			t.Errorf("task %d: %+v, want %q", i, r, want)
		}
	}
	l.wantNothingLeft(t)
}

// testTogetherFailing: what is wrong for all is said once.
func testTogetherFailing(t *testing.T, l *lab, who user) {
	bad := l.file(t, "bad.sqsh", []byte("hsqs, and no more"))
	for _, args := range [][]string{{bad}, {"--mounts", "/usr:/proc/self/x", l.images["zstd"]}} {
		task := l.step(4)
		results := l.atOnce(t, who, 4, func(i int) []string { return task(i, append(args, "--", "true")...) })
		said := 0
		for i, r := range results {
			if r.status != 125 {
				t.Errorf("task %d: %+v", i, r)
			}
			said += strings.Count(r.stderr, "\n")
		}
		if said != 1 {
			t.Errorf("%q: said %d times: %+v", args, said, results)
		}
	}
	l.wantNothingLeft(t)
}

// testTogetherKilled: no task depends on another one's squire.
func testTogetherKilled(t *testing.T, l *lab, who user) {
	task := l.step(2)
	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	word := fmt.Sprintf("50.%06d", time.Now().UnixNano()%1e6)
	first := l.command(ctx, who, task(0, l.images["gzip"], "--", "sleep", word)...)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(bound, func() bool { return l.sleeps(word) }) {
		t.Fatal("the first task did not start")
	}
	done := make(chan result)
	go func() {
		done <- l.run(t, who, task(1, l.images["gzip"], "--", "sh", "-c", "while kill -0 "+fmt.Sprint(first.Process.Pid)+" 2>/dev/null || [ -d /proc/"+fmt.Sprint(first.Process.Pid)+
			" ]; do sleep 0.1; done; sleep 1; cat /usr/bin/* /usr/lib/x86_64-linux-gnu/*.so* >/dev/null && echo read")...)
	}()
	time.Sleep(time.Second)
	if err := syscall.Kill(first.Process.Pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = first.Wait()
	if r := <-done; r.status != 0 || r.stdout != "read\n" {
		t.Errorf("the second task: %+v", r)
	}
	l.wantNothingLeft(t, word)
}

// testTogetherLate: a task that comes when the others have ended finds nobody, and a container all the same.
func testTogetherLate(t *testing.T, l *lab, who user) {
	task := l.step(2)
	for i := range 2 {
		for range 10 {
			if r := l.run(t, who, task(i, l.images["zstd"], "--", "true")...); r.status != 0 || r.stderr != "" {
				t.Fatalf("task %d: %+v", i, r)
			}
		}
	}
	l.wantNothingLeft(t)
}

// testTogetherMemory: tasks reach each other's memory and descriptors, as MPI libraries do (process_vm_readv(2), and
// UCX through /proc/PID/fd). For that they have to be in one user namespace.
func testTogetherMemory(t *testing.T, l *lab, who user) {
	task := l.step(4)
	const read = `
import ctypes, os, sys, time
def put(name, text):
    open(name + ".tmp", "w").write(text); os.rename(name + ".tmp", name)
local = int(os.environ["SLURM_LOCALID"])
mine = ctypes.create_string_buffer(b"memory of %d" % local)
r, w = os.pipe(); fd = os.memfd_create("x"); os.write(fd, b"file of %d" % local)
put("/at%d" % local, "%d %d %d" % (os.getpid(), ctypes.addressof(mine), fd))
other = (local + 1) % 4
for i in range(300):
    if os.path.exists("/at%d" % other): break
    time.sleep(0.1)
pid, address, theirs = map(int, open("/at%d" % other).read().split())
class iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
into = ctypes.create_string_buffer(11)
a, b = iovec(ctypes.addressof(into), 11), iovec(address, 11)
libc = ctypes.CDLL(None, use_errno=True)
n = libc.process_vm_readv(pid, ctypes.byref(a), 1, ctypes.byref(b), 1, 0)
print(n, into.raw.decode(), open("/proc/%d/fd/%d" % (pid, theirs)).read())
put("/done%d" % local, "")
for i in range(300):
    if all(os.path.exists("/done%d" % i) for i in range(4)): break
    time.sleep(0.1)
`
	results := l.atOnce(t, who, 4, func(i int) []string { return task(i, "--writable", l.images["zstd"], "--", "python3", "-c", read) })
	for i, r := range results {
		if want := fmt.Sprintf("11 memory of %d file of %[1]d\n", (i+1)%4); r.stdout != want || r.status != 0 {
			t.Errorf("task %d: %+v, want %q", i, r, want)
		}
	}
	l.wantNothingLeft(t)
}

// testTogetherOthers: another user's tasks of what claims to be the same step are not let in, and not harmed.
func testTogetherOthers(t *testing.T, l *lab) {
	task := l.step(4)
	var wg sync.WaitGroup
	for _, who := range users {
		wg.Go(func() {
			r := l.run(t, who, task(0, "--writable", l.images["zstd"], "--", "sh", "-c", "touch /at$(id -u); sleep 1; ls -d /at*")...)
			if strings.Count(r.stdout, "\n") != 1 || r.status != 0 {
				t.Errorf("%s: %+v", who.name, r)
			}
		})
	}
	wg.Wait()
	l.wantNothingLeft(t)
}
