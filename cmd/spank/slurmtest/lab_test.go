// Package slurmtest runs squire's plugin on a real Slurm, as those on a cluster meet it: several nodes on this machine, a
// node service, ordinary users.
//
// The Slurm is the one whose programs come first in PATH, with its headers beside them (PREFIX/bin, PREFIX/include).
//
// SQUIRE_STORM, a number of jobs, makes the test that starts many of them longer than the suite has time for.
package slurmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/testenv"
)

func TestMain(m *testing.M) {
	status := m.Run()
	if shared.lab != nil {
		shared.lab.stop()
	}
	os.Exit(status)
}

// lab is a cluster, and a directory that every user can read, with what all tests share.
type lab struct {
	dir    string
	squire string
	plugin string
	bin    string // the directory of Slurm's programs for users
	image  string // Debian
	socket string // of the node service
	daemon *exec.Cmd
	user   account
	lock   *os.File // see sweep

	richOnce  sync.Once
	richImage string
	richErr   error
}

// account is somebody who can log in: Slurm runs nothing for others.
type account struct {
	name, home string
	uid, gid   uint32
}

var rootAccount = account{name: "root", home: "/root"}

var shared struct {
	once sync.Once
	lab  *lab
	err  error
}

const (
	labNodes = 4
	labCPUs  = 96
	labGPUs  = 8
	// MiB a node: more than there is, as a job gets its share for each of its CPUs.
	labMemory = 96000
	script    = "../../../testdata/slurm.sh"
	// What a test's cluster says in plugstack.conf beside the program's path. The suite of pyxis assumes no defaults.
	noArguments = ""
)

// theLab starts the cluster at its first use, and skips the test without the rights and the tools that it needs.
func theLab(t *testing.T) *lab {
	t.Helper()
	testenv.NeedTime(t, "runs a Slurm cluster")
	testenv.NeedRoot(t, "to start Slurm")
	testenv.NeedFUSE(t)
	testenv.NeedTools(t, "slurmctld", "slurmd", "srun", "munge", "cc", "mksquashfs")
	if _, err := os.Stat(debian()); err != nil {
		t.Skipf("needs an image of Debian: run testdata/rootfs.sh: %v", err)
	}
	shared.once.Do(func() { shared.lab, shared.err = startLab() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.lab
}

// debian is the image that testdata/rootfs.sh makes.
func debian() string { return filepath.Join(os.Getenv("SQUIRE_TESTDIR"), "rootfs-zstd.sqsh") }

func startLab() (*lab, error) {
	// Not t.TempDir: its parent is closed to other users, and it ends with the first test.
	for _, what := range sweep(os.TempDir()) {
		fmt.Fprintln(os.Stderr, "taken away, of a run that is dead:", what)
	}
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir}
	if l.lock, err = claim(dir); err != nil {
		return l, err
	}
	l.squire, l.plugin = l.at("squire"), l.at("spank_squire.so")
	l.image, l.socket = l.at("debian.sqsh"), l.at("service")
	for _, step := range []func() error{l.open, l.findSlurm, l.addUser, l.build, l.copyImage, l.startService, l.startCluster} {
		if err = step(); err != nil {
			return l, err
		}
	}
	return l, nil
}

func (l *lab) at(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) open() error { return os.Chmod(l.dir, 0o755) }

// findSlurm finds the Slurm that is to be tried. Its users have no other one in their PATH.
func (l *lab) findSlurm() error {
	srun, err := exec.LookPath("srun")
	l.bin = filepath.Dir(srun)
	return err
}

// path is the PATH of users.
func (l *lab) path() string {
	if slices.Contains(filepath.SplitList(strings.TrimPrefix(testenv.Path, "PATH=")), l.bin) {
		return testenv.Path
	}
	return "PATH=" + l.bin + ":" + strings.TrimPrefix(testenv.Path, "PATH=")
}

// build makes the program and the plugin from this tree's sources.
func (l *lab) build() error {
	// Whatever a cluster that was killed, or the machine, has in the places of the default is not this one's.
	if err := errors.Join(os.Mkdir(l.at("data"), 0o755), os.Chmod(l.at("data"), 0o777|os.ModeSticky)); err != nil {
		return err
	}
	places := "-X main.siteDir=" + l.site() + " -X main.dataTop=" + l.at("data")
	if err := testenv.Build(l.squire, places); err != nil {
		return err
	}
	out, err := exec.Command("cc", "-std=gnu99", "-O2", "-Wall", "-fPIC", "-shared",
		"-I", filepath.Join(l.bin, "../include"), "-o", l.plugin, "../spank_squire.c").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the plugin: %w\n%s", err, out)
	}
	return l.writePlugstack(noArguments)
}

// site is the cluster's /etc/squire.
func (l *lab) site() string { return l.at("site") }

func (l *lab) copyImage() error { return testenv.CopyFile(debian(), l.image, 0o644) }

// addUser makes an account for this cluster alone.
func (l *lab) addUser() error { return l.makeUser(fmt.Sprintf("squire%d", os.Getpid())) }

func (l *lab) makeUser(name string) error {
	home := l.at("home")
	out, err := exec.Command("useradd", "--no-log-init", "--create-home", "--home-dir", home, "--shell", "/bin/sh", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("useradd: %w: %s", err, out)
	}
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	l.user = account{name: name, home: home, uid: uint32(uid), gid: uint32(gid)}
	return nil
}

// data is where the user's named containers are.
func (l *lab) data() string { return l.at(fmt.Sprint("data/squire-", l.user.uid)) }

func (l *lab) startService() error {
	l.daemon = exec.Command(l.squire, "daemon", "--socket", l.socket, "--idle", "1s", "--drain", "1s", "--log-level", "error",
		// Blocks of images that have left stay until others need the room: little of it shows sooner whether memory grows.
		"--cache", "16M", "--metadata", "8M")
	l.daemon.Stdout, l.daemon.Stderr = os.Stdout, os.Stderr
	if err := l.daemon.Start(); err != nil {
		return err
	}
	if !within(func() bool { _, err := os.Lstat(l.socket); return err == nil || done(l.daemon.Process.Pid) }) || done(l.daemon.Process.Pid) {
		return errors.New("the node service does not start")
	}
	return nil
}

func (l *lab) startCluster() error {
	port, err := freePorts()
	if err != nil {
		return err
	}
	settings := []string{
		"start", l.dir, fmt.Sprint("nodes=", labNodes), fmt.Sprint("cpus=", labCPUs), fmt.Sprint("gpus=", labGPUs),
		fmt.Sprint("memory=", labMemory), fmt.Sprint("port=", port),
	}
	for _, name := range []string{"prolog", "epilog"} {
		if err = writeFile(l.at(name), fmt.Sprintf(loggedScript, name, l.at("prologs"))); err != nil {
			return err
		}
		settings = append(settings, name+"="+l.at(name))
	}
	return l.slurm(settings...)
}

// loggedScript writes down a job, and how many step processes it has.
const loggedScript = `#!/bin/sh
echo %s $SLURM_JOB_ID $(ps -C squire -o cgroup= | grep -c "job_$SLURM_JOB_ID/") >>%s
`

func (l *lab) slurm(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*bound)
	defer cancel()
	if out, err := exec.CommandContext(ctx, script, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("slurm.sh %q: %w: %s", args, err, out)
	}
	return nil
}

// freePorts finds the first of as many TCP ports as the cluster needs, below those that the kernel gives away.
func freePorts() (first int, err error) {
	for first = 20000 + os.Getpid()%50*100; first < 32000; first += 100 {
		free := 0
		for port := first; port <= first+labNodes; port++ {
			if s, e := net.Listen("tcp", fmt.Sprint(":", port)); e == nil {
				s.Close()
				free++
			}
		}
		if free == labNodes+1 {
			return first, nil
		}
	}
	return 0, errors.New("no free ports")
}

// stop ends the cluster, then the service, and takes away all of it.
func (l *lab) stop() {
	if _, err := os.Stat(l.at("slurm.conf")); err == nil {
		if err = l.slurm("stop", l.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if l.daemon != nil && l.daemon.Process != nil {
		_ = l.daemon.Process.Signal(syscall.SIGTERM)
		_ = l.daemon.Wait()
	}
	l.remove()
}

// remove takes away what is no process.
func (l *lab) remove() {
	testenv.UnmountBelow(l.dir)
	if l.user.name != "" {
		// Not for a process of theirs that is dying: it is not what ends it.
		if out, err := exec.Command("userdel", "--force", l.user.name).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "userdel: %v: %s\n", err, out)
		}
	}
	if os.Getenv("SQUIRE_KEEP") == "" {
		os.RemoveAll(l.dir)
	} else {
		os.Remove(l.at("lock")) // so that nobody takes it for left over
	}
	if l.lock != nil {
		l.lock.Close()
	}
}

// restart restarts a node's slurmd or slurmctld, after a SIGKILL if how is "kill".
func (l *lab) restart(t *testing.T, daemon, how string) {
	t.Helper()
	args := []string{"restart", l.dir, daemon}
	if how != "" {
		args = append(args, how)
	}
	if err := l.slurm(args...); err != nil {
		t.Error(err)
	}
}

// plugstack gives the plugin other arguments until the test ends. Those that run beside it have them too.
func (l *lab) plugstack(t *testing.T, arguments string) {
	t.Helper()
	t.Cleanup(func() { _ = l.writePlugstack(noArguments) })
	if err := l.writePlugstack(arguments); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) writePlugstack(arguments string) error {
	line := fmt.Sprintf("required %s squire=%s %s\n", l.plugin, l.squire, arguments)
	if other := os.Getenv("SQUIRE_PLUGSTACK"); other != "" { // to see the tests fail, or pass, with another plugin
		line = other + "\n"
	}
	return os.WriteFile(l.at("plugstack.conf"), []byte(line), 0o644)
}

// userDir is a directory of the user's that goes with the test.
func (l *lab) userDir(t *testing.T) string {
	t.Helper()
	return testenv.Dir(t, l.dir, int(l.user.uid), int(l.user.gid))
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int // as a shell shows it: 128+N after a signal
}

// bound is how long commands may take that should take no time: not a measure, but the end of a test that hangs.
const bound = 3 * time.Minute

// command prepares a command of somebody's, in a directory, with their environment and more variables.
func (l *lab) command(t *testing.T, who account, env []string, dir string, argv ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	cmd := testenv.Command(ctx, testenv.Credential(who.uid, who.gid), argv...)
	cmd.Dir = dir
	cmd.Env = slices.Concat([]string{
		l.path(), "HOME=" + who.home, "USER=" + who.name, "PWD=" + dir,
		"LC_ALL=C.UTF-8", "SLURM_CONF=" + l.at("slurm.conf"), "SQUIRE_SOCKET=" + l.socket,
	}, env)
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Setsid = false, true
	return cmd
}

// runAs runs a command of somebody's to its end.
func (l *lab) runAs(t *testing.T, who account, env []string, dir string, argv ...string) (r result) {
	t.Helper()
	if r.stdout, r.stderr, r.code = testenv.Finish(l.command(t, who, env, dir, argv...)); r.code < 0 {
		t.Errorf("%q: %s", argv, r.stderr)
	}
	return r
}

// run runs a command of the user's at home.
func (l *lab) run(t *testing.T, argv ...string) result {
	t.Helper()
	return l.runAs(t, l.user, nil, l.user.home, argv...)
}
