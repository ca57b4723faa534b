package servicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/squirefs/squire/fusefs/noded"
)

// usage is what the processes of a service take.
type usage struct {
	processes, files, threads int
	open                      map[string]int // the files, by process and what they are
	memory                    map[string]int // resident KiB by name
	mounts                    int            // in the namespaces of all of them
}

func (d *daemon) usage() usage {
	u := usage{open: make(map[string]int), memory: make(map[string]int)}
	// What is mounted on the host may be other tests'.
	host, _ := os.Readlink("/proc/self/ns/mnt")
	namespaces := map[string]bool{host: true}
	for _, p := range d.processes() {
		proc := fmt.Sprintf("/proc/%d/", p.pid)
		u.processes++
		fds, _ := os.ReadDir(proc + "fd")
		u.files += len(fds)
		for _, fd := range fds {
			to, _ := os.Readlink(proc + "fd/" + fd.Name())
			kind, _, _ := strings.Cut(to, ":[") // pipes and sockets have numbers
			u.open[filepath.Base(p.name)+" "+kind]++
		}
		b, _ := os.ReadFile(proc + "status")
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			switch key {
			case "Threads":
				u.threads += n
			case "VmRSS":
				u.memory[p.name] += n
			}
		}
		ns, _ := os.Readlink(proc + "ns/mnt")
		if ns != "" && !namespaces[ns] {
			namespaces[ns] = true
			b, _ := os.ReadFile(proc + "mountinfo")
			u.mounts += strings.Count(string(b), "fuse.squire")
		}
	}
	return u
}

// spareFiles is how many more files may be open after many have come and gone: pipes and timers are kept for the next, as many
// as were once needed at the same time. One that each leaves behind is more.
const spareFiles = 16

// Mounts are made, used and unmounted, and containers run, eight at a time, by all users. When they are gone there is not
// one mount, process or descriptor more than before, and memory is what it was.
func TestCycles(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "100ms", "--cache", "16M", "--metadata", "32M") // full before the first look
	cycles := 96
	if s := os.Getenv("SQUIRE_CYCLES"); s != "" {
		var err error
		if cycles, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	var others []*image
	for i := range 3 {
		img := l.own(t, users[i])
		others = append(others, img)
	}
	dirs := make([]string, 8)
	for i := range dirs {
		dirs[i] = l.mkdir(t, users[i%len(users)])
	}
	cycle := func(worker, n int) bool {
		u, dir := users[worker%len(users)], dirs[worker]
		img := l.image
		if n%4 == 0 {
			img = others[n/4%len(others)]
		}
		if n%2 == 0 {
			r := finish(t, d.run(t, u, img, "cold", "/", "0"))
			if r.status != 0 {
				t.Errorf("run: %+v", r)
			}
			return r.status == 0
		}
		for _, args := range [][]string{{"mount", img.path, dir}, {"umount", dir}} {
			if r := finish(t, d.client(t, u, args...)); r.status != 0 {
				t.Errorf("%q: %+v", args, r)
				return false
			}
			if args[0] == "mount" {
				if r := finish(t, command(t, u, bound, "ls", "-l", filepath.Join(dir, "data"))); r.status != 0 {
					t.Errorf("ls: %+v", r)
					return false
				}
			}
		}
		return true
	}
	rounds := func(count int) {
		var next atomic.Int64
		var crowd sync.WaitGroup
		for worker := range dirs {
			crowd.Go(func() {
				for n := next.Add(1); int(n) <= count && cycle(worker, int(n)); n = next.Add(1) {
				}
			})
		}
		crowd.Wait()
	}
	settle := func(limit *usage) (u usage) {
		var r *noded.Report
		if !eventually(t, "nothing is left of the cycles", func() bool {
			u = d.usage()
			r = d.report(t)
			// The connection that reports is one.
			return len(r.Images) == 0 && r.Clients <= 1 && len(d.connections()) == 0 && u.mounts == 0 &&
				(limit == nil || u.processes <= limit.processes && u.files <= limit.files+spareFiles)
		}) {
			t.Errorf("%d clients, images %+v, connections %v, %+v\n%s", r.Clients, r.Images, d.connections(), u, d.mountHolders())
		}
		return u
	}
	rounds(32)
	before := settle(nil)
	for done := 0; done < cycles; { // in parts, to see how memory grows if it does
		part := min(cycles-done, 1000)
		rounds(part)
		if done += part; done < cycles {
			t.Logf("after %d cycles %+v", done, settle(&before))
		}
	}
	after := settle(&before)
	t.Logf("before %+v, after %d cycles %+v", before, cycles, after)
	if cycles < 4*spareFiles {
		t.Errorf("%d cycles say nothing of files", cycles)
	}
	if after.threads > before.threads+16 {
		t.Errorf("%d threads have become %d", before.threads, after.threads)
	}
	for name, kb := range after.memory {
		// The garbage collector may take as much again before it begins; a leak of a kilobyte a cycle shows in long runs.
		if was := before.memory[name]; kb > 2*was+32<<10 {
			t.Errorf("%s: %d KiB have become %d", name, was, kb)
		}
	}
	if m := mountsBelow(l.dir); len(m) > 0 {
		t.Errorf("something is mounted still: %v", m)
	}
	l.wantNoClients(t)
}

// Idle images are unmounted while clients come: whoever comes gets a mount that works.
func TestIdleRace(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "1ms")
	var crowd sync.WaitGroup
	for worker := range 4 {
		crowd.Go(func() {
			for range 12 {
				r := finish(t, d.run(t, users[worker], l.image, "hash", "/", "0"))
				if r.status != 0 {
					t.Errorf("%+v", r)
					return
				}
			}
		})
	}
	crowd.Wait()
	d.wantUnmounted(t)
}
