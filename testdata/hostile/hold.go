package hostile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound what a reader may use for one image.
type Limits struct {
	CPU    time.Duration // of the process: on a busy machine too
	Memory int64         // bytes: the most that is resident at one time
}

// holdVar says to a test binary that it is the process in which images are read.
const holdVar = "SQUIRE_HOSTILE_CHILD"

// verdict is what that process writes about an image: first only the name, then the rest.
type verdict struct {
	Name     string
	Done     bool
	Problems []string
	CPU      time.Duration
	Memory   int64
}

// Hold calls check with every image, in a process of its own: a crash, an endless loop and
// the memory that is used concern one image and are seen. Each image becomes a subtest,
// which fails with what check returns or when a limit is exceeded. The process is this test
// binary again, running only this test.
//
// What making the image costs is not counted, but its bytes are.
func Hold(t *testing.T, limits Limits, check func(*Image, Body) []string) {
	t.Helper()
	if os.Getenv(holdVar) != "" {
		child(t, limits, check)
		return
	}
	seen := map[string]verdict{}
	for begin := ""; ; {
		last, stderr := parent(t, begin, seen)
		if last == "" {
			break
		}
		// The process ended in the middle of an image. Another one goes on behind it.
		seen[last] = verdict{Name: last, Done: true, Problems: []string{"the process died: " + stderr}}
		begin = last
	}
	for img := range Images() {
		t.Run(img.Name, func(t *testing.T) {
			v := seen[img.Name]
			if !v.Done {
				t.Fatal("was not read")
			}
			for _, p := range v.Problems {
				t.Error(p)
			}
			if v.CPU > limits.CPU {
				t.Errorf("took %v of CPU time, want at most %v", v.CPU, limits.CPU)
			}
			if v.Memory > limits.Memory {
				t.Errorf("took %d MiB of memory, want at most %d", v.Memory>>20, limits.Memory>>20)
			}
		})
	}
}

// parent runs a process that begins behind the named image, and collects its verdicts. It
// returns the image at which the process died, "" if it came to the end, and its last words.
func parent(t *testing.T, begin string, seen map[string]verdict) (last, stderr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	cmd := exec.Command(self, "-test.run", "^"+t.Name()+"$", "-test.count", "1", "-test.timeout", "4m")
	cmd.Env = append(os.Environ(), holdVar+"="+begin+"/", "GOGC=50")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var v verdict
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		last = v.Name
		if v.Done {
			seen[v.Name], last = v, ""
		}
	}
	if err := cmd.Wait(); err != nil && last == "" {
		t.Fatalf("%v: %s", err, tail(out.String()))
	}
	return last, tail(out.String())
}

// tail returns the end of s.
func tail(s string) string { return s[max(0, len(s)-6000):] }

// child reads the images and writes verdicts to descriptor 3.
func child(t *testing.T, limits Limits, check func(*Image, Body) []string) {
	out := json.NewEncoder(os.NewFile(3, "verdicts"))
	begin := strings.TrimSuffix(os.Getenv(holdVar), "/")
	skip := begin != ""
	for img := range Images() {
		if skip {
			skip = img.Name != begin
			continue
		}
		if err := out.Encode(verdict{Name: img.Name}); err != nil {
			t.Fatal(err)
		}
		v := measure(img, limits, check)
		if err := out.Encode(v); err != nil {
			t.Fatal(err)
		}
	}
}

// measure reads one image.
func measure(img *Image, limits Limits, check func(*Image, Body) []string) verdict {
	body := img.Body()
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // VmHWM begins anew
	begin := cpuTime()
	stop := watch(begin, limits)
	problems := check(img, body)
	stop()
	return verdict{Name: img.Name, Done: true, Problems: problems, CPU: cpuTime() - begin, Memory: peak()}
}

// watch ends the process when it is far beyond the limits, with a trace of all goroutines.
func watch(begin time.Duration, limits Limits) (stop func()) {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			if used := cpuTime() - begin; used > 4*limits.CPU || peak() > 4*limits.Memory {
				fmt.Fprintf(os.Stderr, "%v of CPU time, %d MiB of memory\n", used, peak()>>20)
				_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			}
		}
	}()
	return func() { close(done) }
}

// cpuTime returns what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peak returns the most memory that was resident, since it was reset.
func peak() int64 {
	status, _ := os.ReadFile("/proc/self/status")
	return Peak(status)
}

// Peak returns VmHWM in bytes from the contents of /proc/PID/status, 0 if it is not there.
func Peak(status []byte) int64 {
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, _ := strconv.ParseInt(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]), 10, 64)
	return kib << 10
}
