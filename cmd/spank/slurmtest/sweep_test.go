package slurmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// A run that is killed, or whose time is over, leaves its cluster behind: daemons, mounts, a user. The next one takes away
// what is certainly such a run's, and certainly dead: its directory has a lock, which the kernel lets go of with the process.

// prefix is how the directories of clusters begin, in os.TempDir.
const prefix = "squire-slurm"

// claim makes the directory of a cluster known as a living run's.
func claim(dir string) (lock *os.File, err error) {
	if lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600); err != nil {
		return nil, err
	}
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return lock, nil
}

// sweep takes away what dead runs have left below top, and says what that was.
func sweep(top string) (swept []string) {
	dirs, _ := filepath.Glob(filepath.Join(top, prefix+"*"))
	for _, dir := range dirs {
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != 0 {
			continue // somebody else's, by our name
		}
		if _, err := os.Lstat(filepath.Join(dir, "lock")); err != nil {
			continue // of a run that has hardly begun
		}
		lock, err := claim(dir)
		if err != nil {
			continue
		}
		l := &lab{dir: dir, lock: lock}
		l.user, _ = accountOf(l.at("home"))
		for end := time.Now().Add(bound); len(l.leftProcesses()) > 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			for _, pid := range l.leftProcesses() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		l.remove()
		swept = append(swept, dir)
	}
	// The directory goes last, so one that is gone had nothing left but the user.
	for _, a := range accounts(top) {
		if _, err := os.Lstat(filepath.Dir(a.home)); errors.Is(err, os.ErrNotExist) {
			_ = exec.Command("userdel", a.name).Run()
			swept = append(swept, a.name)
		}
	}
	return swept
}

var (
	accountName = regexp.MustCompile(`^squire\d+$`)
	accountHome = regexp.MustCompile(`^/(.*/)?` + prefix + `\d+/home$`)
)

// accounts are those that runs have made for clusters below top.
func accounts(top string) (all []account) {
	text, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(text)) {
		f := strings.Split(line, ":")
		if len(f) < 7 || !accountName.MatchString(f[0]) || !accountHome.MatchString(f[5]) || filepath.Dir(filepath.Dir(f[5])) != filepath.Clean(top) {
			continue
		}
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && uid >= 1000 {
			all = append(all, account{name: f[0], home: f[5], uid: uint32(uid)})
		}
	}
	return all
}

// accountOf is the account with that home.
func accountOf(home string) (account, bool) {
	for _, a := range accounts(filepath.Dir(filepath.Dir(home))) {
		if a.home == home {
			return a, true
		}
	}
	return account{}, false
}

// leftProcesses are those of a dead run's user, those that run programs of its directory, and those that were started for its
// cluster. slurmstepd has a title where its environment was, and a directory of the cluster's.
func (l *lab) leftProcesses() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if done(pid) {
			continue
		}
		var st unix.Stat_t
		exe, _ := os.Readlink(name + "/exe")
		cwd, _ := os.Readlink(name + "/cwd")
		environ, _ := os.ReadFile(name + "/environ")
		users := l.user.uid != 0 && unix.Stat(name, &st) == nil && st.Uid == l.user.uid
		cluster := strings.Contains("\x00"+string(environ), "\x00SLURM_CONF="+l.at("slurm.conf")+"\x00")
		stepd := filepath.Base(exe) == "slurmstepd" && strings.HasPrefix(cwd, l.dir+"/")
		if users || cluster || stepd || strings.HasPrefix(exe, l.dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// What a dead run has left goes: its directory, processes, mounts and user; that of a living one stays.
func TestSweep(t *testing.T) {
	testenv.NeedRoot(t, "to make an account")
	testenv.NeedTools(t, "useradd", "userdel")
	top := t.TempDir()
	var runs []*lab
	for i, name := range []string{"dead", "alive"} {
		dir := filepath.Join(top, fmt.Sprint(prefix, 10+i))
		l := &lab{dir: dir}
		err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(l.at("mount"), 0o755))
		if err == nil {
			l.lock, err = claim(dir)
		}
		if err == nil {
			err = unix.Mount("tmpfs", l.at("mount"), "tmpfs", 0, "size=4k")
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() { _ = unix.Unmount(l.at("mount"), unix.MNT_DETACH) })
		if name == "dead" {
			if err = l.makeUser(fmt.Sprintf("squire%d%d", os.Getpid(), i)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = exec.Command("userdel", l.user.name).Run() })
		}
		runs = append(runs, l)
	}
	dead, alive := runs[0], runs[1]
	var processes []*exec.Cmd
	for _, cmd := range []*exec.Cmd{
		dead.command(t, dead.user, nil, "/", "sleep", "60"), // the user's
		exec.Command("sleep", "60"),                         // the cluster's
	} {
		if cmd.Env == nil {
			cmd.Env = []string{"SLURM_CONF=" + dead.at("slurm.conf")}
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		processes = append(processes, cmd)
	}
	bystander := exec.Command("sleep", "60")
	bystander.Env = []string{"SLURM_CONF=" + alive.at("slurm.conf")}
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bystander.Process.Kill(); _ = bystander.Wait() })
	dead.lock.Close()

	if swept := sweep(top); len(swept) != 1 || swept[0] != dead.dir {
		t.Errorf("swept %q, want %q", swept, dead.dir)
	}
	for _, cmd := range processes {
		timer := time.AfterFunc(bound, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		_ = cmd.Wait()
		timer.Stop()
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
			t.Errorf("%q ended with %v", cmd.Args, cmd.ProcessState)
		}
	}
	if _, there := accountOf(dead.at("home")); there {
		t.Error("the dead run's user is there")
	}
	if _, err := os.Lstat(dead.dir); err == nil {
		t.Error("the dead run's directory is there")
	}
	if err := bystander.Process.Signal(syscall.Signal(0)); err != nil || done(bystander.Process.Pid) {
		t.Errorf("a process of the living run is gone: %v", err)
	}
	if len(testenv.MountsBelow(alive.dir)) != 1 {
		t.Error("the living run's mount is gone")
	}
	alive.lock.Close()
}
