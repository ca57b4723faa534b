package runtime

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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// These tests attack: an image that is not what it should be, a process beside that swaps what is looked at, a command
// that wants out. SECURITY.md lists which attacks are tried where.

// unharmed wants a directory of the host to be empty: whatever an image says, nothing was made in it.
func unharmed(t *testing.T, dir string) {
	t.Helper()
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("made on the host: %v, %v", names, err)
	}
}

// clean wants a container to have run, or to have been refused in one line.
func clean(t *testing.T, what string, r result) {
	t.Helper()
	if strings.HasSuffix(r.err, "; its configuration is not used\n") {
		r.err = ""
	}
	refused := r.status == ExitFailed && strings.Count(r.err, "\n") == 1 && strings.HasPrefix(r.err, "squire: ")
	if (r.status != 0 || r.err != "") && !refused {
		t.Errorf("%s: %+v", what, r)
	}
}

// An image may have anything in the places that squire uses itself: links that lead to the host (where /tmp is the
// host's), into /proc or to themselves, files, pipes, nothing, or directories without rights. The container then has its
// own /dev, /proc and /sys all the same, or does not start; nothing is made on the host. (CVE-2019-16884, CVE-2019-19921,
// CVE-2025-31133, CVE-2026-41579)
func TestHostilePlaces(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		trap := publicDir(t, w)
		kinds := map[string]func(name string) error{
			"trap":      func(name string) error { return os.Symlink(trap, name) },
			"into trap": func(name string) error { return os.Symlink(trap+"/made", name) },
			"procfs":    func(name string) error { return os.Symlink("/proc/1/root"+trap, name) },
			"cwd":       func(name string) error { return os.Symlink("/proc/self/cwd/"+trap, name) },
			"up":        func(name string) error { return os.Symlink("../../../../.."+trap, name) },
			"itself":    func(name string) error { return os.Symlink(filepath.Base(name), name) },
			"root":      func(name string) error { return os.Symlink("/", name) },
			"file":      func(name string) error { return os.WriteFile(name, nil, 0o644) },
			"pipe":      func(name string) error { return unix.Mkfifo(name, 0o644) },
			"missing":   func(string) error { return nil },
			"no rights": func(name string) error { return errors.Join(os.Mkdir(name, 0o755), os.Chmod(name, 0)) },
		}
		if os.Getuid() == 0 {
			kinds["device"] = func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }
		}
		script := `cat /proc/self/comm; stat -c %t,%T /dev/null; ls /sys >/dev/null && echo sys; echo x >/dev/null`
		for _, place := range []string{"dev", "proc", "sys", "tmp", "etc", "etc/hosts", "etc/resolv.conf", "dev/null", "dev/shm", "dev/pts"} {
			for kind, put := range kinds {
				name := filepath.Join(root, place)
				saved := name + ".saved"
				had := os.Rename(name, saved) == nil
				err := put(name)
				if err == nil && w.uid != os.Getuid() {
					err = os.Lchown(name, w.uid, w.uid)
					if kind == "missing" {
						err = nil
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, writable := range []bool{false, true} {
					what := fmt.Sprintf("/%s is %s, writable %v", place, kind, writable)
					r := run(t, w, Spec{Dir: root, Writable: writable, Command: []string{"/bin/sh", "-c", script}})
					clean(t, what, r)
					if r.status == 0 && r.out != "cat\n1,3\nsys\n" {
						t.Errorf("%s: %+v", what, r)
					}
				}
				unharmed(t, trap)
				if err := os.Remove(name); err != nil && kind != "missing" {
					t.Fatal(err)
				}
				if had {
					if err := os.Rename(saved, name); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	})
}

// What is read of an image outside of its configuration: whatever is in its place, the command runs. (CVE-2024-9676)
func TestHostileEnvironmentFile(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		name := filepath.Join(root, "etc/environment")
		for kind, put := range map[string]func() error{
			"directory": func() error { return os.Mkdir(name, 0o755) },
			"pipe":      func() error { return unix.Mkfifo(name, 0o644) },
			"zeros":     func() error { return os.Symlink("/dev/zero", name) },
			"itself":    func() error { return os.Symlink("environment", name) },
			"sparse":    func() error { return errors.Join(os.WriteFile(name, nil, 0o644), os.Truncate(name, 1<<40)) },
			"garbage": func() error {
				return os.WriteFile(name, []byte("A=\x00\n=x\n\xff=\n\x1b[31m\nPATH=\nLD_PRELOAD\n"), 0o644)
			},
			"one line": func() error { return os.WriteFile(name, bytes.Repeat([]byte("A"), 900_000), 0o644) },
		} {
			if err := errors.Join(os.RemoveAll(name), put()); err != nil {
				t.Fatal(err)
			}
			r := run(t, w, Spec{Dir: root, Command: []string{"/bin/pwd"}})
			if r.status != 0 || r.out != "/\n" || strings.Contains(r.err, "\x1b") {
				t.Errorf("%s: status %d, stdout %q, stderr %.200q", kind, r.status, r.out, r.err)
			}
		}
	})
}

// The working directory is one inside, whoever names it: no descriptor of squire's leads out of the container, and none
// does for the command later. (CVE-2024-21626)
func TestWorkdirOutside(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		trap := publicDir(t, w)
		if err := errors.Join(os.WriteFile(trap+"/on-the-host", nil, 0o644), os.Symlink("../../../../..", root+"/opt/up"),
			unix.Mkfifo(root+"/opt/pipe", 0o644), os.Symlink("/proc/self/fd/5", root+"/opt/fd"), os.Symlink("loop", root+"/opt/loop")); err != nil {
			t.Fatal(err)
		}
		dirs := []string{"/opt/pipe", "/opt/fd", "/opt/loop", "/opt/none", "/bin/busybox"}
		for fd := range 40 {
			dirs = append(dirs, fmt.Sprintf("/proc/self/fd/%d", fd))
		}
		for _, dir := range dirs {
			r := run(t, w, Spec{Dir: root, Workdir: dir, Command: []string{"/bin/sh", "-c", "pwd; ls"}})
			if r.status != ExitFailed || r.out != "" || strings.Count(r.err, "\n") != 1 {
				t.Errorf("%s: %+v", dir, r)
			}
		}
		for _, dir := range []string{"..", "/../../..", "/opt/up", "../../opt/up/opt/.."} {
			if got := sh(t, w, Spec{Dir: root, Workdir: dir}, "pwd -P; ls -d bin"); got != "/\nbin" {
				t.Errorf("%s: %q", dir, got)
			}
		}
		// What the command has of descriptors leads nowhere either.
		script := `for f in /proc/self/fd/*; do case $(readlink $f) in ""|/proc/*|pipe:*|/dev/null) ;; *) echo $f $(readlink $f);; esac; done; ls -d /proc/self/cwd/on-the-host 2>/dev/null; true`
		if got := sh(t, w, Spec{Dir: root}, script); got != "" {
			t.Errorf("descriptors: %s", got)
		}
	})
}

// A process beside exchanges a directory at the place of a mount with links that lead out, all the time. Mounts then are
// inside, or refused, and nothing is made or mounted outside. (CVE-2021-30465, CVE-2024-45310)
func TestSwappedTargets(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		trap, data := publicDir(t, w), publicDir(t, w)
		if err := errors.Join(os.WriteFile(data+"/f", []byte("data\n"), 0o644), os.Mkdir(root+"/swap", 0o755),
			os.Symlink(trap, root+"/link"), os.Lchown(root+"/swap", w.uid, w.uid)); err != nil {
			t.Fatal(err)
		}
		stop := exchanging(t, root+"/swap", root+"/link")
		ran := 0
		for i := range 60 {
			s := Spec{Dir: root, Writable: i%2 == 0, Mounts: []Mount{{Source: data, Target: "/swap/a/b"}, {Source: data + "/f", Target: "/swap/c"}}}
			s.Command = []string{"/bin/sh", "-c", "grep -c ' - ' /proc/self/mountinfo >/dev/null"}
			r := run(t, w, s)
			clean(t, "swapped", r)
			if r.status == 0 {
				ran++
			}
		}
		if n := stop(); n < 60 {
			t.Errorf("exchanged %d times only", n)
		}
		unharmed(t, trap)
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(trap)) || bytes.Contains(mounts, []byte(data)) {
			t.Errorf("mounted on the host (%v)", err)
		}
		t.Logf("%d of 60 containers ran", ran)
	})
}

// A process beside exchanges the source of a mount, and a directory above one, with links to what a site does not let be
// mounted, all the time. What is mounted is what was looked at, or nothing. (CVE-2025-23359)
func TestSwappedSources(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		allowed, secret := publicDir(t, w), publicDir(t, w)
		if err := errors.Join(os.WriteFile(secret+"/what", []byte("secret\n"), 0o644), os.Mkdir(allowed+"/dir", 0o755),
			os.WriteFile(allowed+"/dir/what", []byte("data\n"), 0o644), os.Symlink(secret, allowed+"/link")); err != nil {
			t.Fatal(err)
		}
		stop := exchanging(t, allowed+"/dir", allowed+"/link")
		saw := map[string]int{}
		for i := range 60 {
			m := Mount{Source: allowed + "/dir", Target: "/opt", Within: []string{"/no/such", allowed}}
			if i%2 == 0 {
				m.Source, m.Target = allowed+"/dir/what", "/opt/what"
			}
			s := Spec{Dir: root, Mounts: []Mount{m}, Command: []string{"/bin/cat", "/opt/what"}}
			if i%3 == 0 { // the root itself likewise
				s.Mounts = append(s.Mounts, Mount{Source: root + "/bin", Target: "/bin"})
				s.Dir, s.DirWithin = allowed+"/dir", []string{allowed}
			}
			r := run(t, w, s)
			clean(t, "swapped", r)
			saw[r.out]++
			if i%3 == 0 && strings.Contains(r.err, "forbidden here: it leads to "+secret) {
				saw["refused"]++
			}
		}
		if n := stop(); n < 60 {
			t.Errorf("exchanged %d times only", n)
		}
		if saw["data\n"] == 0 || saw["secret\n"] > 0 || saw["refused"] == 0 {
			t.Errorf("containers saw %v", saw)
		}
	})
}

// exchanging exchanges two names until the function that it returns is called, which says how often it did.
func exchanging(t *testing.T, a, b string) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		n := 0
		for ctx.Err() == nil {
			if unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) == nil {
				n++
			}
		}
		done <- n
	}()
	return func() int {
		cancel()
		return <-done
	}
}

// What an ordinary user's command tries to get out, or to get at what is locked, alone and in user namespaces of its own.
func TestEscapes(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if w.uid == 0 {
			t.Skip("root's container is no sandbox")
		}
		trap := publicDir(t, w)
		data := publicDir(t, w)
		// Each prints "out" if it gets what it wants. The first are things that root of the container's own user namespace
		// may do to the container, which --remap-root is for.
		inside := map[string]string{
			"unmount /proc":  `$B umount /proc && echo out`,
			"unmount /dev":   `$B umount -l /dev && echo out`,
			"write to root":  `$B mount -o remount,rw,bind / && touch /x && echo out`,
			"write to /sys":  `$B mount -o remount,rw /sys && echo out; $B mount -o remount,bind,rw /sys && echo out`,
			"write to mount": `$B mount -o remount,bind,rw /data && touch /data/x && echo out`,
			"see below":      `$B umount /data && echo out`,
			"pivot":          `cd / && $B pivot_root . tmp && echo out`,
			"another user":   `$B su -c "echo out" root </dev/null; $B chroot --userspec=0:0 / true && echo out`,
		}
		// Root of the container's user namespace may trace the init stage, which is in it: there is nothing to be had, see
		// TestInitLeadsNowhere.
		tracing := map[string]string{
			"the parent's root":  `ls /proc/$INIT/root/ >/dev/null && echo out`,
			"the parent's files": `ls /proc/$INIT/fd >/dev/null && echo out`,
			"its environment":    `cat /proc/$INIT/environ >/dev/null && echo out`,
			"its memory":         `(exec 3<>/proc/$INIT/mem) && echo out`,
			"its namespaces":     `$B nsenter -t $INIT -m true && echo out; $B nsenter -t 1 -m true && echo out`,
		}
		const runner = `R=$(awk '/^PPid/ {print $2}' /proc/$INIT/status); [ $R -gt 1 ] && cd /proc/$R && `
		outside := map[string]string{
			"the runner's memory":  runner + `(exec 3<>mem) && echo out; cat environ >/dev/null && echo out; for f in fd/*; do readlink $f && echo out; done`,
			"the runner's root":    runner + `ls root/ >/dev/null && echo out; ls cwd/ >/dev/null && echo out; $B nsenter -m -t $R true && echo out`,
			"the runner's program": runner + `(exec 3>>exe) && echo out; echo -1000 >oom_score_adj && echo out`,
			"another's root":       `ls /proc/1/root/etc >/dev/null && echo out`,
			"its program":          `(exec 3>>/proc/$INIT/exe) && echo out`,
			"its score":            `(echo -1000 >/proc/$INIT/oom_score_adj) && echo out`,
			"a device node":        `$B mknod /tmp/disk$$ b 8 0 && echo out; $B mknod /dev/disk b 8 0 && echo out`,
			"settings":             `(echo x >/proc/sys/kernel/hostname) && echo out; (echo b >/proc/sysrq-trigger) && echo out`,
			"host name":            `hostname evil && echo out`,
			"cgroups":              `d=/sys/fs/cgroup/squire-$$; mkdir $d && echo out && rmdir $d`,
			"set-user-ID":          `[ "$(/bin/suid id -u)" = 0 ] && [ "$(id -u)" != 0 ] && echo out`,
		}
		if os.Getuid() == 0 {
			program, err := os.ReadFile(root + "/bin/busybox")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(root+"/bin/suid", program, 0o755), os.Chown(root+"/bin/suid", 0, 0), os.Chmod(root+"/bin/suid", 0o755|os.ModeSetuid)); err != nil {
				t.Fatal(err)
			}
		}
		spec := Spec{Dir: root, Mounts: []Mount{{Source: data, Target: "/data", Flags: []string{"ro"}}}}
		attempt := func(remap bool, nested, name, try string) {
			s := spec
			s.RemapRoot, s.SetEnv = remap, []string{"B=/bin/busybox", "TRY=" + try}
			s.Command = []string{"/bin/sh", "-c", `export INIT=$PPID; ` + nested + ` /bin/sh -c "$TRY" 2>/dev/null; true`}
			if r := run(t, w, s); r.status != 0 || r.out != "" {
				t.Errorf("%s, remapped %v, with %q: %+v", name, remap, nested, r)
			}
		}
		s := spec
		s.Command = []string{"/bin/sh", "-c", `/bin/busybox unshare -U -r -m /bin/sh -c "touch /data/x || echo out" 2>/dev/null`}
		if r := run(t, w, s); r.out != "out\n" {
			t.Skipf("needs user namespaces in user namespaces: %+v", r)
		}
		for name, try := range inside {
			attempt(false, "", name, try)
			if name != "another user" && name != "pivot" {
				attempt(false, "/bin/busybox unshare -U -r -m", name, try)
				attempt(true, "/bin/busybox unshare -U -r -m", name, try)
			}
		}
		for name, try := range tracing {
			attempt(false, "", name, try)
			attempt(false, "/bin/busybox unshare -U -r -m", name, try)
		}
		for name, try := range outside {
			for _, remap := range []bool{false, true} {
				attempt(remap, "", name, try)
				attempt(remap, "/bin/busybox unshare -U -r -m", name, try)
			}
		}
		unharmed(t, trap)
		unharmed(t, data)
	})
}

// Device nodes and set-user-ID programs of a root file system are none, whoever made them: not in the directory itself,
// not in a layer that has a copy, and not in file systems that the container makes, though root could make some there.
func TestHostileNodes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to make device nodes")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		zero := int(unix.Mkdev(1, 5))
		if err := errors.Join(unix.Mknod(root+"/opt/zero", unix.S_IFCHR|0o666, zero), os.Chmod(root+"/opt/zero", 0o666)); err != nil {
			t.Fatal(err)
		}
		// All places are there, so that a container that is not writable has the directory itself as its root.
		if err := errors.Join(os.Mkdir(root+"/tmpfs", 0o755), os.WriteFile(root+"/etc/resolv.conf", nil, 0o644), os.WriteFile(root+"/etc/hosts", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		// Each prints what it could do.
		script := `for dir in /opt /x /tmpfs; do
				if [ $dir != /opt ]; then mknod $dir/zero c 1 5 || cp -a /opt/zero $dir/zero; chmod 666 $dir/zero; fi 2>/dev/null
				head -c 1 $dir/zero >/dev/null 2>&1 && echo opened $dir/zero
				chmod 622 $dir/zero 2>/dev/null # copied into the layer, where there is one
				head -c 1 $dir/zero >/dev/null 2>&1 && echo opened the copy of $dir/zero
			done
			awk '($5 == "/" || $5 == "/tmpfs") && $6 !~ /nosuid,nodev/ {print "the mount", $5, $6}' /proc/self/mountinfo`
		for _, writable := range []bool{false, true} {
			for _, remap := range []bool{false, w.uid != 0} {
				s := Spec{Dir: root, Writable: writable, RemapRoot: remap, Mounts: []Mount{{Source: "tmpfs", Target: "/tmpfs"}}}
				if got := sh(t, w, s, "mkdir /x 2>/dev/null; "+script); got != "" {
					t.Errorf("writable %v, remapped %v: %s", writable, remap, got)
				}
				if got := sh(t, w, s, `grep -c ' / / [^-]* - overlay ' /proc/self/mountinfo || true`); (got != "0") != writable {
					t.Errorf("writable %v: %s overlays", writable, got)
				}
			}
		}
	})
}

// What a user may not see on the host is not mounted for them either, by whatever way.
func TestClosedSources(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to have something that users may not see")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		if w.uid == 0 {
			t.Skip("root sees everything")
		}
		closed, own := publicDir(t, who{}), publicDir(t, w)
		deep := closed + "/closed/deep"
		if err := errors.Join(os.MkdirAll(deep, 0o777), os.WriteFile(deep+"/secret", []byte("secret\n"), 0o600), os.Chmod(deep, 0o777),
			os.Chmod(closed+"/closed", 0o700), os.Symlink(deep, own+"/link"), os.Symlink(deep+"/secret", own+"/file"),
			os.Symlink("/proc/1/root", own+"/host"), os.Symlink("/proc/self/fd/3", own+"/descriptor")); err != nil {
			t.Fatal(err)
		}
		for _, source := range []string{deep, deep + "/secret", closed + "/closed", own + "/link", own + "/link/secret", own + "/file", own + "/host", own + "/host/etc", own + "/descriptor"} {
			for _, remap := range []bool{false, true} {
				s := Spec{Dir: root, RemapRoot: remap, Mounts: []Mount{{Source: source, Target: "/opt/x"}}}
				s.Command = []string{"/bin/sh", "-c", "cat /opt/x /opt/x/*"}
				if r := run(t, w, s); r.out != "" || r.status == 0 {
					t.Errorf("%s, remapped %v: %+v", source, remap, r)
				}
			}
		}
	})
}

// Whoever gets at the init stage has gained nothing: it has no descriptor, directory or right that leads out.
func TestInitLeadsNowhere(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if w.uid == 0 {
			t.Skip("root's container is no sandbox")
		}
		if _, err := os.Stat("/etc/passwd"); err != nil {
			t.Skip("tells the host's root from the container's by /etc/passwd")
		}
		script := `cd /proc/$PPID || exit
			for f in fd/* cwd root task/*/root; do
				if [ -e $f/etc/passwd ] || [ -e $f/../etc/passwd ] || [ -e $f/../../etc/passwd ]; then echo $f $(readlink $f); fi
			done
			for n in user mnt; do [ "$(readlink ns/$n)" = "$(readlink /proc/self/ns/$n)" ] || echo $n; done
			[ -e fd/0 ] && [ -e root/bin ] && echo seen`
		for _, writable := range []bool{false, true} {
			r := run(t, w, Spec{Dir: root, RemapRoot: true, Writable: writable, Command: []string{"/bin/sh", "-c", script}})
			if r.status != 0 || r.err != "" || r.out != "seen\n" {
				t.Errorf("%+v", r)
			}
		}
	})
}

// The init stage and its helpers take nothing from the caller's environment, which the command has to the byte.
// (CVE-2025-23266)
func TestHostileEnvironment(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		testenv.NeedRoot(t, "to look at the init stage")
		hostile := []string{
			"LD_PRELOAD=/no/such.so", "LD_AUDIT=/no/such.so", "GLIBC_TUNABLES=glibc.malloc.check=3", "GODEBUG=madvdontneed=1,inittrace=1",
			"GOTRACEBACK=crash", "GOMAXPROCS=1000", "BASH_ENV=/no/such", "ENV=/no/such", "IFS=/", "GCONV_PATH=/no/such", "LD_LIBRARY_PATH=/no/such", "NVIDIA_VISIBLE_DEVICES=../../../etc", "TMPDIR=/no/such",
			"LINES=a\nb=c", "NAME WITH BLANK=x", "EQUALS==", "=EMPTY",
		}
		cmd := runner(t, w, Spec{Dir: root, Environ: hostile, Command: []string{"/bin/sh", "-c", `/bin/env; echo started; exec sleep 600`}})
		cmd.Env = append(cmd.Env, hostile...)
		begin(t, cmd)
		pids := testenv.Children(cmd.Process.Pid)
		if len(pids) == 0 {
			t.Fatal("the runner has no children")
		}
		for _, pid := range pids {
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, kv := range hostile {
				if name, _, _ := strings.Cut(kv, "="); name != "" && name != "GOMAXPROCS" && bytes.Contains(env, []byte(name+"=")) {
					t.Errorf("the init stage has %q", kv)
				}
			}
		}
		s := Spec{Dir: root, Environ: hostile, Command: []string{"/bin/sh", "-c", `echo "$LD_PRELOAD$EQUALS$LINES"`}}
		if r := run(t, w, s); r.out != "/no/such.so=a\nb=c\n" || r.status != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// Where a caller has little, a container runs, or is refused in one line: few descriptors, processes and memory, no
// standard streams, no environment, a directory that is gone.
func TestPoorCaller(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		for name, change := range map[string]string{
			"no new privileges":  "exec setpriv --no-new-privs",
			"few descriptors":    "ulimit -n 16; exec",
			"fewer descriptors":  "ulimit -n 8; exec",
			"few processes":      "ulimit -u 30; exec",
			"one process":        "ulimit -u 1; exec",
			"little memory":      "ulimit -v 2097152; exec",
			"less memory":        "ulimit -v 65536; exec",
			"no files":           "ulimit -f 0; exec",
			"no input":           "exec <&-; exec",
			"no errors":          "exec 2>&-; exec",
			"no streams":         "exec <&- >&- 2>&-; exec",
			"no directory":       "cd $(mktemp -d) && rmdir $PWD; exec",
			"no variables":       "exec env -i " + specEnv + "=$" + specEnv,
			"signals are masked": "trap '' TERM INT HUP CHLD PIPE; exec",
		} {
			cmd := runner(t, w, Spec{Dir: root, Command: []string{"/bin/sh", "-c", "echo ran; true"}})
			self, err := os.Open("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			cmd.Path, cmd.ExtraFiles = "/bin/bash", []*os.File{self}
			cmd.Args = []string{"bash", "-c", change + ` bash -c 'exec -a ` + runnerName + ` /proc/self/fd/3'`}
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, limit
			stop := limited(t, cmd)
			err = cmd.Run()
			stop()
			self.Close()
			status, words := cmd.ProcessState.ExitCode(), stderr.String()
			ran := status == 0 && (stdout.String() == "ran\n" || strings.Contains(change, ">&-"))
			refused := status == ExitFailed && stdout.Len() == 0
			// Limits that bash or the Go runtime themselves cannot live with are not ours to tell.
			theirs := status > 0 && (strings.HasPrefix(words, "bash: ") || strings.Contains(words, "runtime: ") || strings.Contains(words, "fatal error: ") || status == 127 || status == 126)
			if !ran && !refused && !theirs {
				t.Errorf("%s: status %d (%v), stdout %q, stderr %.500q", name, status, err, stdout.String(), words)
			}
			t.Logf("%s: ran %v, refused %v %.80s", name, ran, refused, strings.TrimSpace(words))
		}
	})
}

// A container whose runner, or whose init stage, is killed at any moment of the start leaves no process and no mount.
func TestKilledAtAnyTime(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		mark := strconv.Itoa(880000 + os.Getpid()%10000*2 + min(w.uid, 1))
		for i := range 60 {
			s := Spec{Dir: root, Writable: i%3 == 0, Mounts: []Mount{{Source: "/usr", Target: "/usr"}}, Command: []string{"/bin/sleep", mark}}
			if i%4 < 2 {
				s.Unshare = []string{"ipc", "pid"}
			}
			cmd := runner(t, w, s)
			cmd.SysProcAttr.Setpgid = true
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(i/2) * time.Millisecond)
			if i%2 == 0 {
				_ = cmd.Process.Kill()
			} else {
				for _, pid := range testenv.Children(cmd.Process.Pid) {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
				timer := time.AfterFunc(200*time.Millisecond, func() { _ = cmd.Process.Kill() }) // there was no child yet
				defer timer.Stop()
			}
			_ = cmd.Wait()
		}
		waitFor(t, "every process to end", func() bool { return len(withArgument(mark)) == 0 && len(mountedIn(root)) == 0 })
	})
}

// mountedIn lists processes in whose mount namespace there is something of a root file system.
func mountedIn(root string) (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(filepath.Base(root)+" ")) {
			pids = append(pids, f)
		}
	}
	return pids
}
