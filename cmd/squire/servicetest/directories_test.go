package servicetest

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/squirefs/squire/fusefs/noded"
)

// The service serves to users what lies in the directories of the site, and nothing else, by a client that knows no rules
// neither, and whatever name a file has in a mount namespace of the user's own.
func TestDirectories(t *testing.T) {
	dir := newLab(t).mkdir(t, users[0])
	link := filepath.Join(newLab(t).mkdir(t, root), "images")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	l := siteLab(t, fmt.Sprintf("[images]\ndirectories = [%q]\n", link), "unshare")
	d := l.start(t)
	in, out := &image{dir + "/in.sqsh", l.image.size, l.image.data}, l.own(t, users[0])
	if err := copyFile(l.image.path, in.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(out.path, dir+"/link.sqsh"); err != nil {
		t.Fatal(err)
	}
	d.wantRun(t, users[0], in, "hash", "/", "0")
	d.imageReport(t)
	for _, service := range []string{"node", "off"} {
		cmd := d.run(t, users[0], out, "hash", "/", "0")
		cmd.Env = append(cmd.Env, "SQUIRE_SERVICE="+service)
		if r := finish(t, cmd); r.status != 125 || !strings.Contains(r.stderr, "forbidden here") {
			t.Errorf("SQUIRE_SERVICE=%s: %+v", service, r)
		}
	}

	c := d.greet(t, users[0])
	c.wantRefused(t, "elsewhere", squashed(), openAs(t, users[0], out.path, os.O_RDONLY))
	c.wantRefused(t, "by a link", squashed(), openAs(t, users[0], dir+"/link.sqsh", os.O_RDONLY))
	c.wantRefused(t, "by another name", squashed(), renamed(t, users[0], out.path, in.path))
	reply, files, err := c.ask(squashed(), openAs(t, users[0], in.path, os.O_RDONLY))
	if err != nil || reply.Code != noded.OK || len(files) != 1 {
		t.Errorf("in the directory: %+v, %v", reply, err)
	}
	for _, f := range files {
		f.Close()
	}
	// A container in a mount namespace of the user's own, as Slurm may give to jobs, has a server of its own.
	cmd := d.run(t, users[0], in, "hash", "/", "0")
	cmd.Args = append([]string{"unshare", "-m", "setpriv", fmt.Sprintf("--reuid=%d", users[0].uid), fmt.Sprintf("--regid=%d", users[0].gid), "--clear-groups"}, cmd.Args...)
	cmd.Path, cmd.SysProcAttr.Credential = "/usr/bin/unshare", nil
	cmd.Env = append(cmd.Env, "SQUIRE_SERVICE=auto")
	if r := finish(t, cmd); r.status != 0 || r.stderr != "" {
		t.Errorf("in another mount namespace: %+v", r)
	}
}

// renamed opens a file that has the name as in a mount namespace of the user's own.
func renamed(t *testing.T, u user, path, as string) *os.File {
	t.Helper()
	cmd := command(t, u, 4*bound, "unshare", "-Urm", "sh", "-c", "mount --bind "+path+" "+as+" && echo ready && exec sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Skipf("needs user namespaces: %q", line)
	}
	f := openAs(t, root, fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, as), os.O_RDONLY)
	if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); name != as {
		t.Fatalf("the file is called %q (%v)", name, err)
	}
	return f
}
