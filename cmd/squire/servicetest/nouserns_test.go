package servicetest

import (
	"strings"
	"syscall"
	"testing"
)

// noNamespaces runs in a user namespace that has all users of the host. There can be no further ones then, for the service
// neither, as on a host with user.max_user_namespaces=0. $0 is the directory of the daemon, $1 the program, $2 the image, $3
// and $4 directories of root's and of the user $5.
const noNamespaces = `mount -t proc proc /proc && echo 0 >/proc/sys/user/max_user_namespaces || exit
export SQUIRE_SOCKET="$0/socket" SQUIRE_SERVICE=node SQUIRE_TRACE=0 HOME=/nonexistent
"$1" daemon --socket "$0/socket" &
i=0; while ! [ -S "$0/socket" ] && [ $i -lt 400 ]; do sleep 0.1; i=$((i+1)); done
as() { setpriv --reuid "$user" --regid "$user" --clear-groups "$@"; }
squire=$1 image=$2 mine=$3 theirs=$4 user=$5
try() { what=$1; shift; out=$("$@" 2>&1); echo "$what: $out, $?"; }
try "root mounts" sh -c "\"$squire\" mount \"$image\" \"$mine\" && test -e \"$mine/list\" && \"$squire\" umount \"$mine\""
try "root runs" "$squire" run "$image" -- /bin/probe wait </dev/null
try "user mounts" as sh -c "\"$squire\" mount \"$image\" \"$theirs\" && test -e \"$theirs/list\" && \"$squire\" umount \"$theirs\""
try "user runs" as "$squire" run "$image" -- /bin/probe wait </dev/null
kill $!; wait $!`

// Where no user namespaces can be made, users cannot run containers, and are told what to set. The service needs none for
// anything else: root runs and mounts, users mount.
func TestWithoutUserNamespaces(t *testing.T) {
	l := newLab(t, "setpriv")
	d := l.newDaemon(t)
	cmd := command(t, root, 2*bound, "sh", "-c", noNamespaces, d.home, d.exe, l.image.path, l.mkdir(t, root), l.mkdir(t, users[0]), users[0].String())
	all := []syscall.SysProcIDMap{{Size: 1<<32 - 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true,
	}
	r := finish(t, cmd)
	want := "root mounts: , 0\nroot runs: waiting, 0\nuser mounts: , 0\nuser runs: squire: make a user namespace: no space left on device: " +
		"user namespaces are switched off (user.max_user_namespaces=0); ask the administrator to set it to 65536, 125\n"
	if r.status != 0 || r.stdout != want {
		t.Errorf("status %d, got\n%swant\n%s%s", r.status, r.stdout, want, r.stderr)
	}
	// All of it by the service: root's mount and container see other things.
	if strings.Count(r.stderr, "view=all") != 2 || strings.Count(r.stderr, "view=private") != 1 {
		t.Errorf("the service has served something else:\n%s", r.stderr)
	}
}
