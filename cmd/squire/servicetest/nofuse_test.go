package servicetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hideFUSE runs a command in a mount namespace of its own, whose /dev, made at $0, has no fuse, as user $1.
const hideFUSE = `set -e
mount -t tmpfs -o mode=755 none "$0"
for f in null zero full random urandom tty; do : >"$0/$f"; mount --bind /dev/$f "$0/$f"; done
mkdir "$0/shm" "$0/pts"
mount -t tmpfs -o mode=1777 none "$0/shm"
mount --bind /dev/pts "$0/pts"
ln -s pts/ptmx "$0/ptmx"
mount --move "$0" /dev
user=$1; shift
exec setpriv --reuid $user --regid $user --clear-groups "$@"`

// Where there is no /dev/fuse, as in a container without it, or before the module is loaded, one is told so in one line, and
// runs with the service of the node all the same.
func TestWithoutFUSE(t *testing.T) {
	l := newLab(t, "unshare", "setpriv", "mount")
	d := l.start(t)
	for _, u := range []user{root, users[0]} {
		at := l.mkdir(t, u)
		without := func(service string, args ...string) result {
			cmd := d.client(t, u, args...)
			cmd.SysProcAttr.Credential = nil
			cmd.Env = append(cmd.Env, "SQUIRE_SERVICE="+service)
			unshare := command(t, root, bound, append([]string{"unshare", "--mount", "--propagation", "slave", "sh", "-c", hideFUSE, l.mkdir(t, root), u.String()}, cmd.Args...)...)
			unshare.Env = cmd.Env
			return finish(t, unshare)
		}
		for _, args := range [][]string{{"run", l.image.path, "--", "/bin/probe", "hash", "/", "0"}, {"mount", l.image.path, at}} {
			r := without("off", args...)
			if r.status != 125 || r.stdout != "" || !strings.Contains(r.stderr, "modprobe fuse") || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("user %v, %q: %+v", u, args[0], r)
			}
		}
		if names, err := os.ReadDir(at); err != nil || len(names) > 0 || len(mountsBelow(at)) > 0 {
			t.Errorf("user %v: something is mounted: %v, %v", u, names, err)
		}
		r := without("node", "run", l.image.path, "--", "/bin/probe", "hash", "/", "0")
		if r.status != 0 || r.stderr != "" || !strings.HasPrefix(r.stdout, "device=") {
			t.Errorf("user %v, with the service: %+v", u, r)
		}
		if n := len(d.report(t).Images); n == 0 {
			t.Error("it did not run with the service")
		}
		// It mounts for the user too, on a directory that all see.
		if r = without("node", "mount", l.image.path, at); r.status != 0 || r.stderr != "" {
			t.Errorf("user %v, mount with the service: %+v", u, r)
		}
		if _, err := os.Stat(filepath.Join(at, "list")); err == nil {
			t.Error("a mount in a namespace of its own is seen outside")
		}
	}
	l.wantNoClients(t)
}
