package slurmtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// traces are what containers leave on a node while they run: processes of the user, mounts beside the service's own,
// files of the user's store, and references to images.
func (l *lab) traces(t *testing.T) (found []string) {
	t.Helper()
	status, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, name := range status {
		text, err := os.ReadFile(name)
		if err == nil && bytes.Contains(text, fmt.Appendf(nil, "\nUid:\t%d\t", l.user.uid)) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
			found = append(found, fmt.Sprintf("process %s %q", filepath.Base(filepath.Dir(name)), line))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, l.dir) {
			found = append(found, "mount "+line)
		}
	}
	names, err := filepath.Glob(filepath.Join(l.data(), "*"))
	if err != nil {
		t.Fatal(err)
	}
	found = append(found, names...)
	for _, image := range l.images(t) {
		if image.References > 0 {
			found = append(found, fmt.Sprintf("%+v", image))
		}
	}
	return found
}

// servedImage is a line of "squire ps".
type servedImage struct {
	Name       string
	State      string
	References int
	Read       uint64
}

// images are those that the node service has.
func (l *lab) images(t *testing.T) (list []servedImage) {
	t.Helper()
	r := l.runAs(t, rootAccount, []string{"SQUIRE_SOCKET=" + l.socket}, "/", l.squire, "ps", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("squire ps: %v: %+v", err, r)
	}
	return list
}

// clean wants nothing of containers on the node, once the daemons are done with it.
func (l *lab) clean(t *testing.T) {
	t.Helper()
	var found []string
	if !within(func() bool { found = l.traces(t); return len(found) == 0 }) {
		t.Errorf("left behind: %q", found)
	}
}

// A step that is cancelled takes its container along, however deaf its tasks are.
func TestCancel(t *testing.T) {
	l := theLab(t)
	l.clean(t)
	for _, prepare := range []string{"true", "trap '' TERM INT"} {
		t.Run(prepare, func(t *testing.T) {
			a := l.allocate(t, "-N2", "-n2")
			r := a.hold(t, "-N2 -n2 --container-image={image} --container-writable", prepare)
			if got := l.run(t, "scancel", r.step()); got.code != 0 {
				t.Errorf("%+v", got)
			}
			if err := r.cmd.Wait(); err == nil {
				t.Error("srun ended well")
			}
		})
	}
	l.clean(t)
}

// A job whose time is over is told, and then killed.
func TestTimeLimit(t *testing.T) {
	l := theLab(t)
	l.clean(t)
	a := l.allocate(t, "-N1", "-n1")
	r := a.hold(t, "--container-image={image} --container-writable", "trap '' TERM")
	// Limits have minutes; this one is over at once.
	// In its first second a job cannot end.
	eventually(t, "the time limit is set", func() bool {
		return l.runAs(t, rootAccount, nil, "/", "scontrol", "update", "JobId="+a.id, "EndTime=now").code == 0
	})
	if err := r.cmd.Wait(); err == nil || !strings.Contains(r.stderr.String(), "DUE TO TIME LIMIT") {
		t.Errorf("%v\n%s", err, &r.stderr)
	}
	l.clean(t)
}

// A task that takes more memory than it may is killed by the kernel, and what else there is goes.
func TestOutOfMemory(t *testing.T) {
	l := theLab(t)
	if _, err := os.Stat(l.at("cgroup.conf")); err != nil {
		t.Skip("needs cgroups that Slurm can confine memory with")
	}
	l.clean(t)
	r := l.run(t, "srun", "-N1", "-n1", "--mem=100", "--container-image="+l.image, "python3", "-c", "print('begun', flush=True); b'x' * (300 << 20)")
	if r.code == 0 || !strings.Contains(r.stdout, "begun") || !strings.Contains(r.stderr, "ut of") && !strings.Contains(r.stderr, "oom") {
		t.Errorf("%+v", r)
	}
	l.clean(t)
}

// A writable root in memory is full before the step's memory is: what is in it does not go when tasks are killed, and so
// the kernel would kill slurmstepd too.
func TestWritableRootIsFull(t *testing.T) {
	l := theLab(t)
	if _, err := os.Stat(l.at("cgroup.conf")); err != nil {
		t.Skip("needs cgroups that Slurm can confine memory with")
	}
	l.clean(t)
	r := l.run(t, "srun", "-N1", "-n1", "--mem=100", "--container-image="+l.image, "--container-writable", "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=300")
	if r.code != 1 || !strings.Contains(r.stderr, "No space left on device") {
		t.Errorf("%+v", r)
	}
	l.clean(t)
}

// Prolog and epilog of a job run on the host around its containers, and when the epilog runs nothing is left of them.
func TestPrologEpilog(t *testing.T) {
	l := theLab(t)
	r := l.run(t, "srun", "-N1", "-n2", "--container-image="+l.image, "--container-writable", "sh", "-c", "echo $SLURM_JOB_ID; echo x >/file")
	job, _, _ := strings.Cut(r.stdout, "\n")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	var lines []string
	eventually(t, "the epilog of job "+job+" has run", func() bool {
		lines = nil
		text, _ := os.ReadFile(l.at("prologs"))
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == job {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return len(lines) > 1
	})
	if want := []string{"prolog " + job + " 0", "epilog " + job + " 0"}; !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
}

// TestKill kills the tasks, slurmstepd and the step process.
func TestKill(t *testing.T) {
	l := theLab(t)
	l.clean(t)
	for _, victim := range []string{"task", "slurmstepd", "step process"} {
		t.Run(victim, func(t *testing.T) {
			a := l.allocate(t, "-N1", "-n1")
			r := a.hold(t, "--container-image={image} --container-writable", "")
			pids := l.victims(t, victim, r.step())
			if len(pids) == 0 {
				t.Fatalf("no %s of %s", victim, r.step())
			}
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			switch victim {
			case "step process": // its task has its namespaces, and goes on
				r.stdin.Close()
			case "slurmstepd": // srun does not learn of it
				l.run(t, "scancel", a.id)
			}
			_ = r.cmd.Wait()
		})
	}
	l.clean(t)
}

// victims finds the processes of a step.
func (l *lab) victims(t *testing.T, kind, step string) (pids []int) {
	t.Helper()
	want := map[string]string{"task": "cat\x00", "slurmstepd": "slurmstepd: [" + step + "]", "step process": "slurm\x00step\x00"}[kind]
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		text, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(text, []byte(want)) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		var st syscall.Stat_t
		if kind != "slurmstepd" && (syscall.Stat(filepath.Dir(name), &st) != nil || st.Uid != l.user.uid) {
			continue
		}
		pids = append(pids, pid)
	}
	return pids
}

// A step survives its node's slurmd, and so does its container.
func TestSlurmdRestart(t *testing.T) {
	l := theLab(t)
	l.clean(t)
	for _, how := range []string{"", "kill"} {
		t.Run("slurmd "+how, func(t *testing.T) {
			a := l.allocate(t, "-N1", "-n1", "--nodelist=n2")
			r := a.hold(t, "--container-image={image} --container-writable", "echo there >/file")
			l.restart(t, "n2", how)
			a.step(t, step{opts: "--container-name=" + r.step(), cmd: "cat /file", out: "there"})
			r.stdin.Close()
			if err := r.cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, &r.stderr)
			}
		})
	}
	l.clean(t)
}

// A node that is drained goes on with the job that it has, and with its next steps, and nothing of that is left.
func TestDrain(t *testing.T) {
	l := theLab(t)
	l.clean(t)
	update := func(state string) {
		t.Helper()
		argv := []string{"scontrol", "update", "nodename=n2", "state=" + state}
		if r := l.runAs(t, rootAccount, nil, "/", append(argv, "reason=test")...); r.code != 0 {
			t.Fatalf("%q: %+v", argv, r)
		}
	}
	a := l.allocate(t, "-N1", "-n1", "--nodelist=n2")
	r := a.hold(t, "--container-image={image} --container-writable", "echo there >/file")
	update("drain")
	defer update("resume")
	a.step(t, step{opts: "--container-name=" + r.step(), cmd: "cat /file", out: "there"})
	a.step(t, step{opts: "--container-image={image}", cmd: "echo new", out: "new"})
	r.stdin.Close()
	if err := r.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &r.stderr)
	}
}

// An image that cannot be run ends the step, with one message a node.
func TestFailingImage(t *testing.T) {
	l := theLab(t)
	l.clean(t)
	dir := l.userDir(t)
	for name, content := range map[string]string{
		"empty.sqsh": "", "text.sqsh": "not an image\n", "truncated.sqsh": l.beginning(t, 1<<20),
		"closed.sqsh": "closed",
	} {
		mode := os.FileMode(0o644)
		if name == "closed.sqsh" {
			mode = 0
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"missing.sqsh", "empty.sqsh", "text.sqsh", "truncated.sqsh", "closed.sqsh"} {
		t.Run(name, func(t *testing.T) {
			r := l.runAs(t, l.user, nil, dir, "srun", "-N2", "--ntasks-per-node=8", "--container-image=./"+name, "true")
			if r.code != 1 {
				t.Errorf("status %d, want 1", r.code)
			}
			if n := strings.Count(r.stderr, name); n != 2 {
				t.Errorf("%s is named %d times, want once for each of 2 nodes:\n%s", name, n, r.stderr)
			}
		})
	}
	l.clean(t)
}

func (l *lab) beginning(t *testing.T, length int) string {
	t.Helper()
	f, err := os.Open(l.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, length)
	if _, err = f.Read(b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Exit statuses are the command's, as without a container.
func TestExitStatus(t *testing.T) {
	l := theLab(t)
	a := l.allocate(t, "-N1", "-n2")
	for _, s := range []step{
		{opts: "--container-image={image}", cmd: "exit 7", code: 7},
		{opts: "--container-image={image}", cmd: "kill -TERM $$", code: 143},
		{opts: "--container-image={image}", cmd: "kill -KILL $$", code: 137},
		{opts: "--container-image={image}", argv: []string{"no-such-command"}, code: 2, has: "No such file or directory"},
		{opts: "-n2 --container-image={image}", cmd: "exit $SLURM_PROCID", code: 1},
	} {
		a.step(t, s)
	}
}

// storm are jobs one after the other and at the same time, some of which are cancelled at a random moment. SQUIRE_STORM
// says how many; a release is tried with 200.
func TestStorm(t *testing.T) {
	l := theLab(t)
	count := 30
	if text := os.Getenv("SQUIRE_STORM"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("SQUIRE_STORM: %v", err)
		}
		count = n
	}
	l.clean(t)
	l.wave(t, count/2, 1)
	l.clean(t)
	memory := l.memory(t)
	l.wave(t, count/2, 1)
	l.wave(t, count, 20)
	l.clean(t)
	now := l.memory(t)
	t.Logf("the service's processes had %d KiB, and have %d KiB", memory>>10, now>>10)
	if now > memory+memory/4+8<<20 {
		t.Errorf("the node service has grown from %d to %d bytes", memory, now)
	}
}

// wave starts that many jobs, so many at a time; of four one is cancelled.
func (l *lab) wave(t *testing.T, count, together int) {
	t.Helper()
	dir := l.userDir(t)
	var group sync.WaitGroup
	slots := make(chan struct{}, together)
	for i := range count {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			l.job(t, dir, fmt.Sprintf("storm-%s-%d", filepath.Base(dir), i), rand.IntN(4) == 0)
		})
	}
	group.Wait()
}

// job is one of a wave.
func (l *lab) job(t *testing.T, dir, name string, cancel bool) {
	command := "true"
	if cancel {
		command = "sleep 30"
	}
	cmd := l.command(t, l.user, nil, dir, "srun", "-Q", "-N1", "-n2", "--job-name="+name, "--container-image="+l.image, "--container-writable", "sh", "-c",
		"echo x >/file && "+command)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	if cancel {
		time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
		// Until then the job may not have been there.
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && cmd.Process.Signal(syscall.Signal(0)) == nil; time.Sleep(100 * time.Millisecond) {
			l.run(t, "scancel", "--quiet", "--name="+name)
			if done(cmd.Process.Pid) {
				break
			}
		}
	}
	// srun ends well when its job was cancelled before there was a step.
	if err := cmd.Wait(); err != nil && !cancel {
		t.Errorf("%s: %v\n%s", name, err, &out)
	}
}

// done says whether a process has ended, and only waits for its parent.
func done(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

// memory is what the processes of the node service have for themselves, in bytes.
func (l *lab) memory(t *testing.T) (sum int64) {
	t.Helper()
	for _, pid := range l.servicePIDs() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) > 1 && (f[0] == "Private_Dirty:" || f[0] == "Private_Clean:") {
				n, _ := strconv.ParseInt(f[1], 10, 64)
				sum += n << 10
			}
		}
	}
	if sum == 0 {
		t.Error("the node service has no memory")
	}
	return sum
}

// servicePIDs are the daemon's processes: it and its descendants.
func (l *lab) servicePIDs() []int {
	parents := make(map[int]int)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		_, rest, found := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); err == nil && found && len(f) > 1 {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			parents[pid], _ = strconv.Atoi(f[1])
		}
	}
	pids := []int{l.daemon.Process.Pid}
	for i := 0; i < len(pids); i++ {
		for pid, parent := range parents {
			if parent == pids[i] {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// A job whose output has no directory ends, and its node waits for no step process: there never was one.
func TestOutputNowhere(t *testing.T) {
	l := theLab(t)
	r := l.run(t, "sbatch", "--parsable", "--wait", "-n1", "--container-image="+l.image, "--output="+l.at("none/out"), "--wrap=true")
	job := strings.TrimSpace(r.stdout)
	if r.code == 0 || job == "" {
		t.Fatalf("%+v", r)
	}
	logs, err := filepath.Glob(l.at("log/n*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "["+job+".batch]") && strings.Contains(line, "squire: ") {
				t.Error(line)
			}
		}
	}
	l.clean(t)
}
