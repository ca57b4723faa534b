package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

func TestRunUnshare(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		for _, tt := range []struct {
			name, script, want string
			spec               Spec
		}{
			{"pid", "cat /proc/1/comm; [ $(ls -d /proc/[0-9]* | grep -c .) -lt 9 ] && echo few; [ $(cut -d' ' -f4 /proc/self/stat) = $$ ] && [ $$ -lt 100 ] && echo low", "squire-init\nfew\nlow", Spec{Unshare: []string{"pid"}}},
			{"pid remapped", "kill -0 1 && mount -t proc proc /proc && echo mounted", "mounted", Spec{Unshare: []string{"pid"}, RemapRoot: true}},
			{"net", "ls /sys/class/net; grep -c . /proc/net/route; cat /sys/class/net/lo/flags; ls -d /sys/fs/cgroup", "lo\n1\n0x9\n/sys/fs/cgroup", Spec{Unshare: []string{"net"}}},
			{"net's sys read-only", "touch /sys/x 2>&1 | grep -c 'Read-only'", "1", Spec{Unshare: []string{"net"}}},
			{"ipc", "ls -A /dev/shm; touch /dev/shm/x && ls /dev/shm; grep -E ' /dev/(shm|mqueue) ' /proc/self/mountinfo | grep -c -E ' - (tmpfs|mqueue) '; stat -c %a /dev/shm", "x\n" + mqueues() + "\n1777", Spec{Unshare: []string{"ipc"}}},
			{"uts", "hostname", host, Spec{Unshare: []string{"uts"}}},
			{"host name", "hostname", "some-node.cluster", Spec{Hostname: "some-node.cluster"}},
			{"cgroup", "cut -d: -f3 /proc/self/cgroup | grep -vcx /", "0", Spec{Unshare: []string{"cgroup"}}},
			{"none", "hostname; ls -d /proc/" + strconv.Itoa(os.Getpid()), host + "\n/proc/" + strconv.Itoa(os.Getpid()), Spec{}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				tt.spec.Dir = root
				if tt.name == "cgroup" {
					tt.script += "; true"
				}
				if got := sh(t, w, tt.spec, tt.script); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		}
		t.Run("other namespaces", func(t *testing.T) {
			for name, file := range map[string]string{"pid": "pid", "net": "net", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup"} {
				ours, err := os.Readlink("/proc/self/ns/" + file)
				if err != nil {
					t.Fatal(err)
				}
				s := Spec{Dir: root, Unshare: []string{name}}
				if got := sh(t, w, s, "readlink /proc/self/ns/"+file); got == ours || !strings.HasPrefix(got, file+":[") {
					t.Errorf("%s: the container's is %s, the host's %s", name, got, ours)
				}
			}
		})
	})
}

// mqueues is how many of /dev/shm and /dev/mqueue are mounts where the kernel has
// message queues or not.
func mqueues() string {
	if b, err := os.ReadFile("/proc/filesystems"); err == nil && strings.Contains(string(b), "mqueue") {
		return "2"
	}
	return "1"
}

// prepared runs a container after a script has changed a mount namespace.
func prepared(t *testing.T, w who, s Spec, prepare string) string {
	t.Helper()
	testenv.NeedRoot(t, "to mount")
	cmd := runner(t, w, s)
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	if cred := cmd.SysProcAttr.Credential; cred != nil {
		prepare += fmt.Sprintf(" && exec setpriv --reuid %d --regid %d --clear-groups", cred.Uid, cred.Gid)
		cmd.SysProcAttr.Credential = nil
	} else {
		prepare += " && exec"
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.Path, cmd.ExtraFiles = "/bin/bash", []*os.File{self}
	cmd.Args = []string{"bash", "-c", prepare + ` bash -c "exec -a ` + runnerName + ` /proc/self/fd/3"`}
	defer limited(t, cmd)()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Trim(string(out), "\n")
}

// Where something is mounted over a part of the host's /proc, the kernel makes no
// new one for an ordinary user, and the host's has to do.
func TestRunProcCovered(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		s := Spec{Dir: root, Unshare: []string{"pid"}, Command: []string{"/bin/sh", "-c", "cat /proc/self/comm /proc/sys/kernel/ostype"}}
		if got := prepared(t, w, s, "mount -t tmpfs covered /proc/fs"); got != "cat\nLinux" {
			t.Errorf("got %q", got)
		}
	})
}

func TestRunCgroup2(t *testing.T) {
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "cgroup2") {
		t.Skip("needs a kernel with cgroup2")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		for _, unshare := range [][]string{{"cgroup"}, {"cgroup", "net"}, {"net"}, nil} {
			s := Spec{Dir: root, Unshare: unshare, Command: []string{"/bin/sh", "-c", "ls /sys/fs/cgroup/cgroup.controllers; d=/sys/fs/cgroup/squire-$$; mkdir $d 2>&1 | grep -c Read-only; rmdir $d 2>/dev/null; grep ^0: /proc/self/cgroup"}}
			want := "/sys/fs/cgroup/cgroup.controllers\n1\n0::/"
			if got := prepared(t, w, s, "mount -t cgroup2 cgroup2 /sys/fs/cgroup"); !strings.HasPrefix(got, want) {
				t.Errorf("%v: got %q, want %q", unshare, got, want)
			}
		}
	})
}

// The first process of a PID namespace reaps what is left to it, passes signals
// on, and ends everything when the command ends.
func TestRunPIDNamespace(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		pid := []string{"pid"}
		t.Run("orphans", func(t *testing.T) {
			got := sh(t, w, Spec{Dir: root, Unshare: pid}, `
				i=0; while [ $i -lt 500 ]; do (sleep 0 &) ; i=$((i+1)); done
				n=1; while [ $n != 0 ]; do sleep 0.05; n=$(grep -l "^State:.Z" /proc/[0-9]*/status 2>/dev/null | grep -c .); done; echo none`)
			if got != "none" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("status", func(t *testing.T) {
			for script, want := range map[string]int{"exit 3": 3, "kill -TERM $$": 143, "kill -KILL $$": 137, "no-such-program": 127} {
				if r := run(t, w, Spec{Dir: root, Unshare: pid, Command: []string{"/bin/sh", "-c", script}}); r.status != want {
					t.Errorf("%s: exit status %d, want %d", script, r.status, want)
				}
			}
		})
		t.Run("init is out of reach", func(t *testing.T) {
			got := sh(t, w, Spec{Dir: root, Unshare: pid}, "kill -KILL 1; kill -STOP 1; kill -TERM 1; sleep 0.1; echo alive")
			if got != "alive" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("signals", func(t *testing.T) {
			cmd := runner(t, w, Spec{Dir: root, Unshare: pid, Command: []string{"/bin/sh", "-c", `
				trap "echo got USR1" USR1; trap "echo got TERM; exit 7" TERM; echo started; while :; do sleep 0.05; done`}})
			cmd.SysProcAttr.Setsid = true
			lines := begin(t, cmd)
			defer limited(t, cmd)()
			_ = cmd.Process.Signal(syscall.SIGUSR1)
			lines.want(t, "got USR1")
			_ = cmd.Process.Signal(syscall.SIGTERM)
			lines.want(t, "got TERM")
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != 7 {
				t.Errorf("exit status %d, want 7", got)
			}
		})
		for i, how := range []string{"normally", "runner killed", "group killed"} {
			t.Run("ends "+how, func(t *testing.T) {
				mark := 970000 + os.Getpid()%10000*10 + i*2 + min(w.uid, 1)
				end := map[bool]string{true: "sleep 0.2", false: "sleep 600"}[how == "normally"]
				cmd := runner(t, w, Spec{Dir: root, Unshare: pid, Command: []string{"/bin/sh", "-c", fmt.Sprintf("(setsid sleep %d &); sleep 0.1; echo started; %s", mark, end)}})
				cmd.SysProcAttr.Setpgid = true
				begin(t, cmd)
				defer limited(t, cmd)()
				switch how {
				case "runner killed":
					_ = cmd.Process.Kill()
				case "group killed":
					_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
				}
				_ = cmd.Wait()
				waitFor(t, "every process to end", func() bool { return len(withArgument(strconv.Itoa(mark))) == 0 })
				if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), filepath.Base(root)) {
					t.Errorf("something is still mounted (%v)", err)
				}
			})
		}
	})
}
