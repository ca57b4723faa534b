package slurmtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Users with a group of their own have a umask of 002, and a cache that the group may write to. That is as good as one
// that only they may write to, unless there are others in the group, or in an access control list.
func TestImportPrivateGroup(t *testing.T) {
	l := theLab(t)
	r := newRegistry(t, l)
	env := r.environ(t, l)
	cache := filepath.Dir(strings.TrimPrefix(env[0], "SQUIRE_CACHE_DIR="))
	if err := os.Chmod(cache, 0o775); err != nil {
		t.Fatal(err)
	}
	run := func() result {
		return l.runAs(t, l.user, env, l.user.home, "sh", "-c", "umask 002 && "+l.squire+" run 'docker://"+r.name+":1' -- guest IMAGE")
	}
	for range 2 {
		if got := run(); got.code != 0 || got.stdout != "/bin image\n" {
			t.Errorf("got %+v", got)
		}
	}
	if n := r.given(); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	srun := []string{"srun", "--container-image=" + r.name + ":1", "guest", "IMAGE"}
	if got := l.runAs(t, l.user, env, l.user.home, srun...); got.code != 0 || !strings.Contains(got.stderr, "was there already") {
		t.Errorf("got %+v", got)
	}
	setfacl, err := exec.LookPath("setfacl")
	for name, share := range map[string]func() error{
		"a group of others": func() error { return os.Chown(cache, int(l.user.uid), 100) },
		"a list": func() error {
			if err != nil {
				return nil
			}
			return errors.Join(os.Chown(cache, int(l.user.uid), int(l.user.gid)), exec.Command(setfacl, "-m", "u:daemon:rwx", cache).Run())
		},
	} {
		if name == "a list" && err != nil {
			continue
		}
		if err := share(); err != nil {
			t.Fatal(err)
		}
		if got := l.runAs(t, l.user, env, l.user.home, srun...); got.code != 1 || !strings.Contains(got.stderr, "others may write to "+cache) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}
