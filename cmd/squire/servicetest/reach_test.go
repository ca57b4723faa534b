package servicetest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// reach is in a container. It tries to get at squire's processes, its user's own ones above all, by way of /proc: their
// memory, programs, descriptors, environment, and what they see of the host.
func reach() error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	seen := false
	for _, dir := range dirs {
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil || !bytes.HasPrefix(comm, []byte("squire")) {
			continue
		}
		seen = true
		name := strings.TrimSpace(string(comm))
		try := func(what string, err error) {
			if err == nil {
				fmt.Println(name, what)
			}
		}
		for _, file := range []struct {
			name  string
			flags int
		}{
			{"mem", unix.O_RDWR},
			{"mem", unix.O_RDONLY},
			{"exe", unix.O_WRONLY},
			{"exe", unix.O_RDONLY},
			{"root", unix.O_RDONLY},
			{"cwd", unix.O_RDONLY},
			{"fd/3", unix.O_RDONLY},
			{"ns/mnt", unix.O_RDONLY},
			{"ns/user", unix.O_RDONLY},
		} {
			fd, err := unix.Open(dir+"/"+file.name, file.flags|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			try(fmt.Sprintf("%s, flags %#x", file.name, file.flags), err)
		}
		fds, _ := os.ReadDir(dir + "/fd") // the numbers are for their user to see
		for _, fd := range fds {
			_, err = os.Readlink(dir + "/fd/" + fd.Name())
			try("what descriptor "+fd.Name()+" is", err)
		}
		environ, err := os.ReadFile(dir + "/environ")
		if len(environ) == 0 && err == nil { // of one that has none the kernel lets everybody read nothing
			err = os.ErrInvalid
		}
		try("environ", err)
		try("oom_score_adj", os.WriteFile(dir+"/oom_score_adj", []byte("-1000"), 0))
		pid := 0
		_, _ = fmt.Sscan(filepath.Base(dir), &pid)
		err = unix.PtraceSeize(pid)
		if err == nil {
			_ = unix.PtraceDetach(pid)
		}
		try("ptrace", err)
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			_, err = unix.PidfdGetfd(fd, 3, 0)
			try("pidfd_getfd", err)
			unix.Close(fd)
		}
	}
	if seen {
		fmt.Println("seen")
	}
	return nil
}

// A command in a container gets nothing of the processes that serve and watch it, though some are its own user's: neither of
// those of the node's service, nor of a server and a service of the user's own. (CVE-2019-5736)
func TestReach(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	for _, service := range []string{"node", "own", "off"} {
		for _, flags := range [][]string{nil, {"--remap-root"}} {
			argv := append(append([]string{"run"}, flags...), l.image.path, "--", "/bin/probe", "reach")
			cmd := d.client(t, users[2], argv...)
			cmd.Env = append(cmd.Env, "SQUIRE_SERVICE="+service)
			r := finish(t, cmd)
			var got []string
			for line := range strings.Lines(r.stdout) {
				if len(flags) > 0 && strings.HasPrefix(line, "squire-init ") {
					continue // it is within reach of root inside, and leads nowhere: TestInitLeadsNowhere
				}
				got = append(got, line)
			}
			if r.status != 0 || strings.Join(got, "") != "seen\n" {
				t.Errorf("SQUIRE_SERVICE=%s %v: %+v", service, flags, r)
			}
		}
	}
}
