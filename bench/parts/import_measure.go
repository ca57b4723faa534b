package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sampling is how often memory and disk are looked at.
const sampling = 100 * time.Millisecond

// measure runs one import.
func (b *importBench) measure(ctx context.Context, c importer) (*importRun, error) {
	dir := filepath.Join(b.work, "run")
	if !c.warm {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	work, out := filepath.Join(dir, "work"), filepath.Join(dir, "out.sqsh")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	unix.Sync() // what others have written is not to be written at this one's cost
	cmd, stderr := b.command(ctx, c, work, out)
	s := &sampler{dir: dir}
	before, err := used(dir)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err = cmd.Start(); err != nil {
		return nil, err
	}
	stop := s.watch(cmd.Process.Pid)
	err = cmd.Wait()
	seconds := time.Since(start).Seconds()
	stop()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, lastLines(stderr.Bytes(), 5))
	}
	info, err := os.Stat(out)
	if err != nil {
		return nil, err
	}
	state := cmd.ProcessState
	return &importRun{
		Name: c.name, Seconds: seconds, CPU: (state.UserTime() + state.SystemTime()).Seconds(),
		Memory: max(s.memory, state.SysUsage().(*syscall.Rusage).Maxrss<<10),
		Disk:   max(0, s.disk-before-info.Size()), Output: info.Size(),
	}, nil
}

// command prepares an import, whose processes end with it.
func (b *importBench) command(ctx context.Context, c importer, work, out string) (*exec.Cmd, *bytes.Buffer) {
	words := map[string]string{"URL": "docker://" + b.address + "/image:1", "OUT": out, "WORK": work}
	var argv []string
	for _, word := range c.argv {
		if w, ok := words[word]; ok {
			word = w
		}
		argv = append(argv, word)
	}
	ctx, cancel := context.WithTimeout(ctx, b.limit)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "TMPDIR="+work)
	stderr := new(bytes.Buffer)
	cmd.Stderr, cmd.Stdout = stderr, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error {
		cancel()
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd, stderr
}

func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// sampler notes the worst moments of a run.
type sampler struct {
	dir          string
	memory, disk int64
}

// watch samples until the function that it returns is called.
func (s *sampler) watch(pid int) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			s.memory = max(s.memory, familyMemory(pid))
			if n, err := used(s.dir); err == nil {
				s.disk = max(s.disk, n)
			}
			select {
			case <-end:
				return
			case <-time.After(sampling):
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// used returns how many bytes of the file system are in use. Adding up the files of a directory would take longer than
// some of them live.
func used(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// familyMemory adds up the resident memory of a process and its descendants, what they share counted once for each.
func familyMemory(pid int) int64 {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	parent, resident := map[int]int{}, map[int]int64{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		// The name of the program is in parentheses and may have any characters: proc_pid_stat(5).
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		id, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if len(f) < 22 {
			continue
		}
		parent[id], _ = strconv.Atoi(f[1])
		pages, _ := strconv.ParseInt(f[21], 10, 64)
		resident[id] = pages * int64(os.Getpagesize())
	}
	var sum int64
	for id, bytes := range resident {
		for p, depth := id, 0; p > 1 && depth < 100; p, depth = parent[p], depth+1 {
			if p == pid {
				sum += bytes
				break
			}
		}
	}
	return sum
}
