package slurmtest

import (
	"bufio"
	"bytes"
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

	"github.com/squirefs/squire/internal/testenv"
)

// running is a step that waits until end is called.
type running struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	first  string // the line that it said once it ran
	stderr bytes.Buffer
}

// hold starts a step in the container, whose command does what prepare says, and keeps it.
func (a *allocation) hold(t *testing.T, opts, prepare string) *running {
	t.Helper()
	if prepare != "" {
		prepare += " && "
	}
	// Its standard input is srun's.
	s := step{opts: opts, cmd: prepare + "echo ready $SLURM_JOB_ID.$SLURM_STEP_ID && cat"}
	r := &running{cmd: a.l.command(t, a.l.user, nil, a.dir, a.argv(s)...)}
	r.cmd.Stderr = &r.stderr
	stdout, err := r.cmd.StdoutPipe()
	if err == nil {
		r.stdin, err = r.cmd.StdinPipe()
	}
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	t.Cleanup(func() { once.Do(func() { r.end(t) }) })
	r.first, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(r.first, "ready ") {
		once.Do(func() { r.stdin.Close(); _ = r.cmd.Wait() })
		t.Fatalf("%q said %q, %v\n%s", r.cmd.Args, r.first, err, &r.stderr)
	}
	return r
}

// step is JOB.STEP.
func (r *running) step() string { return strings.TrimSpace(strings.TrimPrefix(r.first, "ready ")) }

func (r *running) end(t *testing.T) {
	t.Helper()
	r.stdin.Close()
	if err := r.cmd.Wait(); err != nil && r.cmd.ProcessState == nil {
		t.Error(err)
	}
}

// together runs steps at the same time.
func (a *allocation) together(t *testing.T, steps ...step) {
	t.Helper()
	var group sync.WaitGroup
	for _, s := range steps {
		group.Go(func() { a.step(t, s) })
	}
	group.Wait()
}

func (a *allocation) names(count int) (names []string) {
	for i := range count {
		names = append(names, fmt.Sprintf("%s-%d", a.name, i))
	}
	return names
}

func (a *allocation) remove(t *testing.T, names ...string) {
	for _, name := range names {
		a.l.run(t, a.l.squire, "container", "rm", "--force", name)
	}
}

func concurrentCreation(t *testing.T, a *allocation) {
	names := a.names(5)
	defer a.remove(t, names...)
	var steps []step
	for _, name := range names {
		steps = append(steps, step{opts: "--container-image={image} --container-name=" + name, argv: []string{"true"}})
	}
	a.together(t, steps...)
}

func concurrentReuse(t *testing.T, a *allocation) {
	names := a.names(3)
	defer a.remove(t, names...)
	for _, name := range names {
		a.step(t, step{opts: "--container-image={image} --container-name=" + name, argv: []string{"true"}})
	}
	var steps []step
	for i := range 12 {
		steps = append(steps, step{opts: "--container-name=" + names[i%len(names)] + ":no_exec", argv: []string{"true"}})
	}
	a.together(t, steps...)
}

func downloadOnce(t *testing.T, a *allocation) {
	r := a.step(t, step{opts: "-n2 --container-image=thisimagedoesntexist", argv: []string{"true"}, code: 1, has: "failed to import docker image: thisimagedoesntexist"})
	if n := strings.Count(r.stderr, "failed to import docker image"); n != 1 {
		t.Errorf("said %d times:\n%s", n, r.stderr)
	}
}

func namePrecedence(t *testing.T, a *allocation) {
	second := a.name + "-second"
	defer a.remove(t, second)
	env := []string{"PYXIS_CONTAINER_NAME={name}"}
	a.step(t, step{env: env, opts: "--container-image={image} --container-writable --container-remap-root --container-name=" + second, cmd: "echo kept >/kept"})
	a.step(t, step{opts: "--container-name=" + second, cmd: "cat /kept", out: "kept"})
	a.step(t, step{opts: "--container-name={name}", cmd: "cat /kept", code: failed})
}

// listed says whether the user's containers on the node have that name, and whether it runs.
func (a *allocation) listed(t *testing.T, name string) (there bool, line string) {
	t.Helper()
	r := a.l.run(t, a.l.squire, "container", "list")
	if r.code != 0 {
		t.Fatalf("squire container list: %+v", r)
	}
	for line := range strings.Lines(r.stdout) {
		if slices.Contains(strings.Fields(line), name) {
			return true, line
		}
	}
	return false, ""
}

func execRunning(t *testing.T, a *allocation) {
	a.step(t, step{opts: "--container-image={image} --container-name={name}", argv: []string{"true"}})
	a.hold(t, "--container-name={name}", "")
	there, line := a.listed(t, a.name)
	pid := 0
	for _, word := range strings.Fields(line) {
		if n, err := strconv.Atoi(word); err == nil && n > 1 {
			pid = n
		}
	}
	if !there || pid == 0 {
		t.Fatalf("squire container list has no process of %s: %q", a.name, line)
	}
	if r := a.l.run(t, a.l.squire, "exec", a.name, "--", "true"); r.code != 0 {
		t.Errorf("squire exec: %+v", r)
	}
}

func attachRunning(t *testing.T, a *allocation) {
	a.step(t, step{opts: "--container-image={image} --container-name={name} --container-writable --container-remap-root", argv: []string{"mkdir", "/mymnt"}})
	a.hold(t, "--container-name={name} --container-writable --container-remap-root --container-mounts=tmpfs:/mymnt", "")
	a.step(t, step{opts: "--container-name={name}", argv: []string{"findmnt", "/mymnt"}})
}

func attachUnnamed(t *testing.T, a *allocation) {
	r := a.hold(t, "--container-image={image} --container-mounts=tmpfs:/mymnt", "")
	a.step(t, step{opts: "--container-name=" + r.step(), argv: []string{"findmnt", "/mymnt"}})
}

func attachDirectory(t *testing.T, a *allocation) {
	a.hold(t, "--container-image={image} --container-name={name}", "cd /var")
	a.step(t, step{opts: "--container-name={name}", argv: []string{"pwd"}, out: "/"})
}

func attachMounts(t *testing.T, a *allocation) {
	a.hold(t, "--container-image={image} --container-name={name}", "")
	a.step(t, step{
		opts: "--container-name={name} --container-mounts=/tmp:/mnt/pyxis_test",
		cmd:  "[ ! -d /mnt/pyxis_test ]", has: "ignoring --container-mounts",
	})
}

func noExecRunning(t *testing.T, a *allocation) {
	a.step(t, step{opts: "--container-image={image} --container-name={name} --container-writable --container-remap-root", argv: []string{"mkdir", "/mymnt"}})
	a.hold(t, "--container-name={name} --container-writable --container-remap-root --container-mounts=tmpfs:/mymnt", "")
	a.step(t, step{opts: "--container-name={name}:no_exec", cmd: "! findmnt /mymnt"})
}

func unnamedCleanup(t *testing.T, a *allocation) {
	for range 2 {
		r := a.step(t, step{opts: "--container-image={image} --container-writable", cmd: "echo $SLURM_JOB_ID.$SLURM_STEP_ID"})
		name := strings.TrimSpace(r.stdout)
		if there, line := a.listed(t, name); there {
			t.Errorf("still there: %s", line)
		}
	}
}

func manualRemove(t *testing.T, a *allocation) {
	a.step(t, step{opts: "--container-image={image} --container-name={name} --container-writable --container-remap-root", cmd: install})
	a.step(t, step{opts: "--container-name={name}", argv: []string{"which", "private"}})
	if r := a.l.run(t, a.l.squire, "container", "rm", a.name); r.code != 0 {
		t.Errorf("squire container rm: %+v", r)
	}
	a.step(t, step{opts: "--container-name={name}", argv: []string{"which", "private"}, code: 1})
	a.step(t, step{opts: "--container-image={image} --container-name={name}", cmd: "! which private"})
	a.step(t, step{opts: "--container-name={name}", cmd: "! which private"})
}

func cancelCleanup(t *testing.T, a *allocation) {
	r := a.hold(t, "--container-image={image}", "")
	a.l.run(t, "scancel", r.step())
	_ = r.cmd.Wait()
	eventually(t, "the container of a cancelled step goes", func() bool {
		there, _ := a.listed(t, r.step())
		return !there
	})
}

func pytorchRanks(t *testing.T, a *allocation) {
	a.step(t, step{opts: "--container-image={rich} --container-name={name}", argv: []string{"true"}})
	a.step(t, step{opts: "-n6 --container-name={name}", cmd: `[ "$LOCAL_RANK" -eq "$SLURM_LOCALID" ] && [ "$RANK" -eq "$SLURM_PROCID" ]`})
	r := a.step(t, step{opts: "-n6 --container-name={name}", cmd: "echo $LOCAL_RANK"})
	if got := sorted(r.stdout); !slices.Equal(got, []string{"0", "1", "2", "3", "4", "5"}) {
		t.Errorf("local ranks %q", got)
	}
}

func sorted(text string) []string {
	words := strings.Fields(text)
	slices.Sort(words)
	return words
}

func exportImport(t *testing.T, a *allocation) {
	a.step(t, step{opts: "--container-image={image} --container-name={name} --container-writable --container-remap-root", cmd: install})
	a.step(t, step{opts: "--container-name={name} --container-writable", cmd: "echo pyxis >/test"})
	saved := filepath.Join(a.dir, "modified.sqsh")
	if r := a.l.run(t, a.l.squire, "container", "save", a.name, saved); r.code != 0 {
		t.Fatalf("squire container save: %+v", r)
	}
	a.step(t, step{opts: "--container-image=./modified.sqsh", argv: []string{"which", "private"}})
	a.step(t, step{opts: "--container-image=./modified.sqsh", cmd: "cat /test", out: "pyxis"})
}

func multipleTasks(t *testing.T, a *allocation) {
	r := a.step(t, step{opts: "-n4 --container-image={image}", argv: []string{"hostname"}})
	if n := strings.Count(r.stdout, "\n"); n != 4 {
		t.Errorf("%d lines", n)
	}
}

func concurrentAccess(t *testing.T, a *allocation) {
	first := a.hold(t, "--container-image={image}", "")
	second := a.hold(t, "--container-image={image}", "")
	for _, r := range []*running{first, second} {
		r.stdin.Close()
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &r.stderr)
		}
	}
}

// namespace is that of the machine, as its link says.
func namespace(t *testing.T, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func unshareAll(t *testing.T, a *allocation) {
	a.step(t, step{
		opts: "--container-unshare=net,ipc,uts --container-image={image}",
		cmd: fmt.Sprintf("cd /proc/self/ns && [ $(readlink net) != %s ] && [ $(readlink ipc) != %s ] && [ $(readlink uts) != %s ]",
			quote(namespace(t, "net")), quote(namespace(t, "ipc")), quote(namespace(t, "uts"))),
	})
}

func quote(text string) string { return "'" + text + "'" }

func unshareVariable(t *testing.T, a *allocation) {
	a.step(t, step{
		env: []string{"PYXIS_CONTAINER_UNSHARE=net"}, opts: "--container-image={image}",
		argv: []string{"readlink", "/proc/self/ns/net"}, hasNot: namespace(t, "net"),
	})
}

func unshareNew(kind string) func(t *testing.T, a *allocation) {
	return func(t *testing.T, a *allocation) {
		a.step(t, step{
			opts: "--container-image={image} --container-unshare=" + kind,
			argv: []string{"readlink", "/proc/self/ns/" + kind}, has: kind + ":[", hasNot: namespace(t, kind),
		})
	}
}

func unshareTasks(kind string) func(t *testing.T, a *allocation) {
	return func(t *testing.T, a *allocation) {
		r := a.step(t, step{
			opts: "-n4 --container-image={image} --container-unshare=" + kind,
			argv: []string{"readlink", "/proc/self/ns/" + kind}, hasNot: namespace(t, kind),
		})
		if links := sorted(r.stdout); len(links) != 4 || len(slices.Compact(links)) != 1 {
			t.Errorf("four tasks are in %q", links)
		}
	}
}

func unshareNone(kind string) func(t *testing.T, a *allocation) {
	return func(t *testing.T, a *allocation) {
		a.step(t, step{opts: "--container-image={image}", argv: []string{"readlink", "/proc/self/ns/" + kind}, out: namespace(t, kind)})
	}
}

func unshareJoin(kind string) func(t *testing.T, a *allocation) {
	return func(t *testing.T, a *allocation) {
		a.hold(t, "--container-image={image} --container-name={name} --container-unshare="+kind, "")
		a.step(t, step{
			opts: "--container-name={name}",
			argv: []string{"readlink", "/proc/self/ns/" + kind}, has: kind + ":[", hasNot: namespace(t, kind),
		})
	}
}

func unshareRefused(kind, title string) func(t *testing.T, a *allocation) {
	return func(t *testing.T, a *allocation) {
		a.hold(t, "--container-image={image} --container-name={name}", "")
		a.step(t, step{
			opts: "--container-name={name} --container-unshare=" + kind,
			argv: []string{"true"}, code: 1, has: "not in a separate " + title + " namespace",
		})
	}
}

func isolatesMemory(t *testing.T, a *allocation) {
	const segments = "/proc/sysvipc/shm"
	before, err := os.ReadFile(segments)
	if err != nil {
		t.Skipf("needs SysV shared memory: %v", err)
	}
	a.step(t, step{
		opts: "--container-unshare=ipc --container-image={image}",
		cmd:  "ipcmk -M 1234567 >/dev/null && ipcs -m | grep -c 1234567", out: "1",
	})
	after, err := os.ReadFile(segments)
	if err != nil || bytes.Count(before, []byte(" 1234567 ")) != bytes.Count(after, []byte(" 1234567 ")) {
		t.Errorf("the host has the segment of a container: %v\n%s", err, after)
	}
}

// privateDevices asks for directories of its own where the host's could be used to talk to other processes.
func privateDevices(t *testing.T, a *allocation) {
	r := a.l.run(t, "stat", "-c", "%d", "/dev", "/dev/shm")
	host := strings.Fields(r.stdout)
	if len(host) != 2 {
		t.Fatalf("%+v", r)
	}
	a.step(t, step{
		opts: "--container-unshare=ipc --container-image={image}",
		cmd: fmt.Sprintf("[ $(stat -c %%d /dev) != %s ] && [ $(stat -c %%d /dev/shm) != %s ] && findmnt -n -o FSTYPE /dev/mqueue",
			host[0], host[1]), out: "mqueue",
	})
}

func isolatesHostname(t *testing.T, a *allocation) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	a.step(t, step{opts: "--container-unshare=uts --container-image={image}", argv: []string{"hostname"}, out: name})
	a.step(t, step{
		opts: "--container-unshare=uts --container-remap-root --container-image={image}",
		cmd:  "hostname container-test && hostname", out: "container-test",
	})
	if now, err := os.Hostname(); err != nil || now != name {
		t.Errorf("the host is %s now, %v", now, err)
	}
}

// batchOption gives a batch script its container on the command line, and by a line of its own.
func batchOption(t *testing.T, a *allocation) {
	line := "#SBATCH --container-image=" + a.l.rich() + "\n"
	for _, s := range []struct {
		option, line string
	}{{"--container-image=" + a.l.rich(), ""}, {"--export=ALL", line}} {
		script := "#!/bin/sh\n" + s.line + "cat /etc/image-marker\n"
		out, code := a.l.batch(t, a.dir, script, s.option)
		if code != 0 || strings.TrimSpace(out) != "rich" {
			t.Errorf("%s: status %d\n%s", script, code, out)
		}
	}
}

// eventually wants what takes no time to speak of.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	if !within(is) {
		t.Errorf("not in time: %s", what)
	}
}

// within waits until something is so, for as long as only a failure takes.
func within(is func() bool) bool { return testenv.Eventually(bound/2, is) }
