package servicetest

import (
	"bytes"
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

// stormReaders is how many compare the image while processes die.
const stormReaders = 8

// leastHarm is how often harm is done at least, however slow the machine.
const leastHarm = 3

// storm does harm again and again, which says whether it could, while readers of all users compare the whole image, whose
// pages and names are dropped all the time. They must neither see an error nor a wrong byte.
func (d *daemon) storm(t *testing.T, every time.Duration, harm func(round int) bool) {
	t.Helper()
	length := duration(t, "SQUIRE_STORM", 3*time.Second)
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	g := newGate(t)
	for i := range stormReaders {
		cmd := d.run(t, users[i%len(users)], d.image, "cold", "/", "stdin")
		out := new(bytes.Buffer)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = g.r, out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	eventually(t, "readers are at work", func() bool {
		r := d.ask()
		return r != nil && len(r.Images) == 1 && r.Images[0].Stats.Read > 10
	})
	over := make(chan struct{})
	go func() { // it takes its time, where there is much to forget
		for {
			select {
			case <-over:
				return
			case <-time.After(300 * time.Millisecond):
				forgetNames()
			}
		}
	}()
	rounds, done := 0, 0
	for end, last := time.Now().Add(length), time.Now().Add(length+2*bound); ; time.Sleep(every) {
		if now := time.Now(); now.After(end) && done >= leastHarm || now.After(last) {
			break
		}
		rounds++
		if harm(rounds) {
			done++
		}
	}
	close(over)
	g.open()
	total := 0
	for i, cmd := range cmds {
		err := cmd.Wait()
		var major, minor, compared, failed int
		_, scan := fmt.Sscanf(outs[i].String(), "device=%d:%d compared=%d failed=%d\n", &major, &minor, &compared, &failed)
		if err != nil || scan != nil || failed > 0 {
			t.Errorf("reader %d: %v\n%s", i, err, outs[i])
		}
		total += compared
	}
	if done < leastHarm {
		t.Errorf("harm was done %d times only, in %d rounds", done, rounds)
	}
	t.Logf("harm was done %d times; readers compared %d files", done, total)
	// There is a service still, and it is a good one.
	d.wantRun(t, users[0], d.image, "hash", "/", "0")
	if len(d.report(t).Images) != 1 {
		t.Error("the container ran without the service")
	}
}

func TestStormServer(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	d.storm(t, 200*time.Millisecond, d.killer(serverName))
	// The last one's death may not be counted yet.
	if r := d.report(t); r.Restarts.Server < leastHarm-1 {
		t.Errorf("the report has %d restarts", r.Restarts.Server)
	}
}

// killer returns a function that kills the process of a name. It says whether there was one that it had not killed before: a
// process that dies can still be seen.
func (d *daemon) killer(name string) func(round int) bool {
	killed := make(map[int]bool)
	return func(int) bool {
		pid := d.find(name)
		if pid == 0 || killed[pid] {
			return false
		}
		killed[pid] = true
		return syscall.Kill(pid, syscall.SIGKILL) == nil
	}
}

// Mounts are granted while mounters die, too.
func TestStormMounter(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	kill := d.killer(mounterName)
	d.storm(t, 200*time.Millisecond, func(round int) bool {
		killed := kill(round)
		if round%4 == 0 {
			d.wantRun(t, users[round%len(users)], l.image, "hash", "/", "0")
		}
		return killed
	})
}

// All processes but the keeper die at random, those of the mounter's helpers as well.
func TestStormChildren(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	d.storm(t, 200*time.Millisecond, func(round int) (killed bool) {
		for i, p := range d.processes() {
			if p.pid != d.cmd.Process.Pid && (i+round)%2 == 0 {
				killed = syscall.Kill(p.pid, syscall.SIGKILL) == nil || killed
			}
		}
		return killed
	})
}

// The keeper dies under the descriptor store, and everything else with it.
func TestStormKeeper(t *testing.T) {
	l := newLab(t)
	m := l.manage(t)
	m.storm(t, 300*time.Millisecond, func(int) bool {
		starts, ready := m.counts()
		m.killMain()
		// The next death comes once it has gone on: systemd gives up on what never becomes ready.
		return eventually(t, "the daemon is ready again", func() bool {
			s, r := m.counts()
			return s > starts && r > ready
		})
	})
	starts, ready := m.counts()
	if ready < starts || starts <= leastHarm {
		t.Errorf("%d starts, %d of them ready", starts, ready)
	}
}

// Without systemd the keeper dies, or its heir, or everything but the heir: it goes on all the same.
func TestStormHeir(t *testing.T) {
	l := newLab(t)
	d := l.newDaemon(t)
	d.startInFile(t)
	d.storm(t, 100*time.Millisecond, func(round int) bool {
		heir := d.settled(t)
		pid := d.report(t).PID
		for _, p := range d.processes() {
			if p.pid != heir && (p.pid == pid || round%3 == 0) && round%3 != 1 || p.pid == heir && round%3 == 1 {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		return eventually(t, "there is another heir", func() bool { return d.find(heirName) != heir && d.ask() != nil })
	})
	d.settled(t)
	if left := d.processes(); len(left) > 5 {
		t.Errorf("too many: %v", left)
	}
}

// settled waits until the heir has what it needs: as many devices as the keeper. It returns its process.
func (d *daemon) settled(t *testing.T) (heir int) {
	t.Helper()
	eventually(t, "the heir has what the keeper has", func() bool {
		heir = d.find(heirName)
		r := d.ask()
		return heir != 0 && r != nil && devicesOf(heir) == devicesOf(r.PID) && devicesOf(heir) == len(r.Images)
	})
	return heir
}

// An image that is gone leaves nothing in the descriptor store, nor does a keeper that has died since.
func TestStoreForgets(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.manage(t, "--idle", "1h")
	h := m.hold(t, users[0], l.image)
	if err := h.end(); err != nil {
		t.Error(err)
	}
	with := m.stores()
	if len(with) == 0 {
		t.Fatal("nothing was stored for an image")
	}
	m.mu.Lock()
	m.flags = []string{"--idle", "100ms"}
	m.mu.Unlock()
	m.killMain()
	// Clients have half a minute to come back.
	time.Sleep(30 * time.Second)
	eventually(t, "the store is empty, or as it is without images", func() bool {
		r := m.ask()
		return r != nil && len(r.Images) == 0 && len(m.stores()) <= 1
	})
	t.Logf("stored with an image: %q, without: %q", with, m.stores())
	if n := len(m.connections()); n > 0 {
		t.Errorf("%d connections are left", n)
	}
}

// The program is replaced while it serves, by itself and by another version.
func TestStormUpgrade(t *testing.T) {
	l := newLab(t)
	for _, managed := range []bool{false, true} {
		t.Run(fmt.Sprintf("managed=%t", managed), func(t *testing.T) {
			other := filepath.Join(l.dir, "squire-other")
			if err := testenv.Build(other, "-X main.version=upgraded"); err != nil {
				t.Fatal(err)
			}
			var d *daemon
			hup := func() { _ = d.cmd.Process.Signal(syscall.SIGHUP) }
			if managed {
				m := l.manage(t)
				d, hup = m.daemon, func() { m.signal(syscall.SIGHUP) }
			} else {
				d = l.start(t)
			}
			pid := d.report(t).PID
			d.storm(t, 400*time.Millisecond, func(round int) bool {
				from := []string{l.squire, other}[round%2]
				d.replace(t, from)
				hup()
				return eventually(t, "the new version answers", func() bool {
					r := d.ask()
					return r != nil && strings.Contains(r.Version, "upgraded") == (from == other)
				})
			})
			if now := d.report(t).PID; now != pid {
				t.Errorf("process %d has become %d", pid, now)
			}
		})
	}
}

// No process has the poller look for the device, whose every request would wake it, nor has one that the device was passed
// on to.
func TestDeviceIsNotPolled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	d.wantNotPolled(t)
	d.kill(serverName)
	d.wantRun(t, users[1], l.image, "hash", "/", "0")
	d.wantNotPolled(t)
	server := d.serving(t, serverName)
	_ = d.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "another server", func() bool { pid := d.find(serverName); return pid != 0 && pid != server })
	d.wantRun(t, users[1], l.image, "hash", "/", "0")
	d.wantNotPolled(t)
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

func (d *daemon) wantNotPolled(t *testing.T) {
	t.Helper()
	polls := 0
	for _, p := range d.processes() {
		names := testenv.Polled(p.pid)
		polls += len(names)
		if i := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, "/fuse") }); i >= 0 {
			t.Errorf("%s looks for %s", p.name, names[i])
		}
	}
	if polls == 0 {
		t.Error("no process has its poller look for anything")
	}
}

// replace installs a program in place of the daemon's, as package managers do.
func (d *daemon) replace(t *testing.T, from string) {
	t.Helper()
	next := d.exe + ".new"
	err := copyFile(from, next)
	if err == nil {
		err = os.Rename(next, d.exe)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An upgrade to what does not start leaves the old one at work, or at least its mounts.
func TestUpgradeToNothing(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	for _, bad := range []string{"#!/nonexistent\n", "", "no program\n"} {
		if err := os.WriteFile(d.exe+".new", []byte(bad), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(d.exe+".new", d.exe); err != nil {
			t.Fatal(err)
		}
		_ = d.cmd.Process.Signal(syscall.SIGHUP)
		time.Sleep(200 * time.Millisecond)
		d.wantRun(t, users[1], l.image, "hash", "/", "0")
		if r := d.report(t); len(r.Images) != 1 {
			t.Errorf("%+v", r)
		}
	}
	d.replace(t, l.squire)
	// The first server still serves: its death is noticed by nobody either.
	d.kill(serverName)
	d.wantRun(t, users[1], l.image, "cold", "/", "0")
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// A server that stands still is replaced, and readers, who can be killed meanwhile, go on.
func TestServerStandsStill(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	pid := d.serving(t, serverName)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	forgetNames()
	cmd := d.run(t, users[1], l.image, "cold", "/", "0")
	victim := d.run(t, users[2], l.image, "cold", "/", "0")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(300 * time.Millisecond)
		_ = syscall.Kill(-victim.Process.Pid, syscall.SIGKILL)
	}()
	within(t, bound, "the death of a reader", func() { _ = victim.Wait() })
	if r := finish(t, cmd); r.status != 0 {
		t.Errorf("%+v", r)
	}
	eventually(t, "the server is replaced", func() bool { now := d.find(serverName); return now != 0 && now != pid })
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// A keeper that dies while its processes stand still leaves none of them behind, and no mount that hangs: its heir goes on.
func TestKeeperDiesBesideStopped(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	d.settled(t)
	before := d.processes()
	for _, p := range before {
		if p.pid == d.cmd.Process.Pid {
			continue
		}
		if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.wait(t)
	eventually(t, "those of before have ended", func() bool {
		return !slices.ContainsFunc(d.processes(), func(p process) bool { return slices.Contains(before, p) && p.name != heirName })
	})
	if r := finish(t, d.inside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("%+v", r)
	}
	within(t, bound, "the end of a task", func() { _ = h.end() })
}

// A server that cannot live does not take the machine's time: the pauses grow. When it can again, all goes on.
func TestRestartStorm(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	seen := make(map[int]bool)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if pid := d.find(serverName); pid != 0 {
			seen[pid] = true
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	t.Logf("%d servers were started in 2 s of deaths", len(seen))
	if len(seen) > 60 {
		t.Errorf("%d servers in 2 s", len(seen))
	}
	d.wantRun(t, users[1], l.image, "cold", "/", "0")
	d.imageReport(t)
	if err := h.end(); err != nil {
		t.Error(err)
	}
}
