package containertest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestCreateAndReuse(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		w.refuse(t, 125, "no image is given", "run", "--name", "c", "--", "true")
		w.want(t, "", "run", "--name", "c", w.l.image, "--", "sh", "-c", "echo new > /etc/new; rm /etc/two; echo more >> /etc/one")
		w.want(t, "new\none\nmore\n/etc/first\n/etc/new\n/etc/one\n", "run", "--name", "c", "--", "sh", "-c", "cat /etc/new /etc/one; ls /etc/[fnot]*")
		w.want(t, "new\n", "run", "--name", "c", w.l.image, "--", "cat", "/etc/new")
		w.want(t, "one\n", "run", w.l.image, "--", "cat", "/etc/one") // the image itself is as it was
		w.refuse(t, 1, "Read-only file system", "run", "--name", "c", "--readonly", "--", "touch", "/etc/x")
		w.refuse(t, 125, "squire run --name c2 -- cat", "run", "--name", "c2", "cat")

		other := filepath.Join(w.home, "other.sqsh")
		w.want(t, "", "pack", "--quiet", w.home, other)
		w.refuse(t, 125, "was made from", "run", "--name", "c", other, "--", "true")
		w.want(t, "c\n", "container", "list", "--quiet")
		w.want(t, "", "container", "rm", "c")
		w.want(t, "", "container", "list", "--quiet")
		w.refuse(t, 1, "there is none", "container", "rm", "c")
	})
}

// TestImageReplaced: a layer is never put over another image than its own.
func TestImageReplaced(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		image, old := filepath.Join(w.home, "i.sqsh"), filepath.Join(w.home, "old.sqsh")
		w.save(t, image, w.l.image, "--", "sh", "-c", "echo 1 > /etc/version")
		if err := os.Chmod(image, 0o644); err != nil {
			t.Fatal(err)
		}
		w.want(t, "1\n", "run", "--name", "c", image, "--", "cat", "/etc/version")
		if err := os.Rename(image, old); err != nil {
			t.Fatal(err)
		}
		w.refuse(t, 125, "from which it was made", "run", "--name", "c", "--", "true")
		w.save(t, image, w.l.image, "--", "sh", "-c", "echo 2 > /etc/version")
		w.refuse(t, 125, "is another one now", "run", "--name", "c", "--", "true")
		b, err := os.ReadFile(old)
		if err == nil {
			err = os.WriteFile(image, b, 0o644) // a copy of the old one is as good
		}
		if err != nil {
			t.Fatal(err)
		}
		w.want(t, "1\n", "run", "--name", "c", "--", "cat", "/etc/version")
	})
}

// TestTogether has several runs share a container: one file system, one set of mounts. The first to come is not the last
// to leave.
func TestTogether(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		const tasks = 8
		var mu sync.Mutex
		var all sync.WaitGroup
		namespaces := map[string]bool{}
		for i := range tasks {
			all.Go(func() {
				// Each waits for all, so that they are there at the same time.
				script := fmt.Sprintf("touch /etc/task-%d; i=0; while [ $(ls /etc | wc -l) -lt 11 ] && [ $i -lt 1000 ]; do sleep 0.05; i=$((i+1)); done; [ $i -lt 1000 ] || { ls /etc; exit 9; }; readlink /proc/self/ns/mnt; sleep 0.%d", i, i)
				r := w.squire(t, "run", "--name", "c", "--tmpfs", "/mnt", w.l.image, "--", "sh", "-c", script)
				if r.status != 0 {
					t.Errorf("task %d: %+v", i, r)
				}
				mu.Lock()
				defer mu.Unlock()
				namespaces[r.stdout] = true
			})
		}
		all.Wait()
		if len(namespaces) != 1 {
			t.Errorf("mount namespaces %v, want one", namespaces)
		}
	})
}

// TestKilled: the one who made the container is killed, and the others go on, and others join them.
func TestKilled(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		first := w.hold(t, []string{"run", "--name", "c", w.l.image, "--", "ls", "/etc/first-runs"},
			"run", "--name", "c", w.l.image, "--", "sh", "-c", "touch /etc/first-runs; sleep 1000")
		second := w.hold(t, []string{"run", "--name", "c", "--", "ls", "/etc/second-runs"},
			"run", "--name", "c", "--", "sh", "-c", "touch /etc/second-runs; while [ ! -e /etc/end ]; do sleep 0.05; done; [ $(cat /usr/share/large | wc -c) = 3072000 ]")
		first.kill()
		w.want(t, "", "run", "--name", "c", "--", "touch", "/etc/end")
		second.end(t)
		w.want(t, "/etc/end\n", "run", "--name", "c", "--", "ls", "/etc/end")
	})
}

// TestStorm starts and ends runs of few containers all the time.
func TestStorm(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for k := range 6 {
					name := fmt.Sprint("c", (i+k)%3)
					r := w.squire(t, "run", "--name", name, w.l.image, "--", "sh", "-c", fmt.Sprintf("echo x > /etc/storm-%d-%d", i, k))
					if r.status != 0 || r.stderr != "" {
						t.Errorf("%+v", r)
					}
				}
			})
		}
		all.Wait()
		total := 0
		for i := range 3 {
			r := w.squire(t, "run", "--name", fmt.Sprint("c", i), "--", "sh", "-c", "ls /etc")
			total += strings.Count(r.stdout, "storm-")
		}
		if total != 48 {
			t.Errorf("%d files were written, want 48", total)
		}
	})
}

// TestRights: who joins has no more rights than who was there.
func TestRights(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		script := "while read a b; do case $a in Cap*|NoNewPrivs:|Seccomp:|Uid:|Gid:) echo $a $b;; esac; done < /proc/self/status"
		for _, flags := range [][]string{nil, {"--remap-root"}} {
			w.want(t, "", "run", "--name", "c", w.l.image, "--", "true")
			plain := w.squire(t, append(append([]string{"run"}, flags...), w.l.image, "--", "sh", "-c", script)...)
			named := w.squire(t, append(append([]string{"run", "--name", "c"}, flags...), "--", "sh", "-c", script)...)
			if plain != named {
				t.Errorf("%q: got %+v, want %+v", flags, named, plain)
			}
		}
		// A joiner is what the container is, whatever it asks for.
		hold := w.hold(t, []string{"run", "--name", "c", "--remap-root", "--", "ls", "/etc/there"},
			"run", "--name", "c", "--remap-root", "--", "sh", "-c", "touch /etc/there; while [ ! -e /etc/end ]; do sleep 0.05; done")
		w.want(t, "0\n", "run", "--name", "c", "--", "id", "-u")
		w.want(t, "", "run", "--name", "c", "--", "touch", "/etc/end")
		hold.end(t)
	})
}

// TestSave compares an image with the container that it was saved from.
func TestSave(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		image := filepath.Join(w.home, "saved.sqsh")
		change := `rm -r /usr/share/many; mkdir /usr/share/many; echo 1 > /usr/share/many/only; rm /etc/two; echo changed > /etc/one; ` +
			`mkdir /closed; echo s > /closed/secret; chmod 0 /closed/secret /closed; ln -s one /etc/three; echo y > /home/somebody/new; chmod 600 /home/somebody/file`
		w.want(t, "", "run", "--name", "c", "--mounts", w.home+":/not/in/the/image", w.l.image, "--", "sh", "-c", change)
		r := w.squire(t, "container", "save", "--json", "c", image)
		var sum struct {
			Bytes, Copied, Expanded int64
		}
		if err := json.Unmarshal([]byte(r.stdout), &sum); err != nil || r.status != 0 || r.stderr != "" || sum.Bytes == 0 || sum.Copied == 0 {
			t.Fatalf("save: %+v, %v", r, err)
		}
		w.refuse(t, 125, "already exists", "container", "save", "c", image)
		w.want(t, "", "container", "save", "--quiet", "--force", "--comp", "gzip", "c", image)
		w.want(t, "changed\none\n", "run", image, "--", "sh", "-c", "cat /etc/one /etc/first")
		w.want(t, "only\n", "run", image, "--", "ls", "/usr/share/many")
		w.want(t, "3072000\n", "run", image, "--", "sh", "-c", "cat /usr/share/large | wc -c")
		w.want(t, "s\n", "cat", image, "/closed/secret") // whatever its mode says
		w.refuse(t, 1, "/etc/two", "ls", image, "/etc/two")
		w.refuse(t, 1, "/not", "ls", image, "/not")
		owners := w.squire(t, "ls", "-l", image, "/home/somebody", "/etc", "/bin/suid").stdout
		for _, want := range []string{"1234/1234", "new", "-rwsr-xr-x", "three -> one"} {
			if !strings.Contains(owners, want) {
				t.Errorf("the image's list has no %q:\n%s", want, owners)
			}
		}
		if strings.Contains(owners, "24000") {
			t.Errorf("files of the image belong to who made it:\n%s", owners)
		}
	})
}

// TestRunSave saves what a command has made, also if it fails, and not if it cannot be.
func TestRunSave(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		image := filepath.Join(w.home, "saved.sqsh")
		r := w.squire(t, "run", "--writable", "--save", "saved.sqsh", w.l.image, "--", "sh", "-c", "echo 1 > /etc/saved; exit 3")
		if r.status != 3 {
			t.Errorf("%+v", r)
		}
		w.want(t, "1\n", "run", image, "--", "cat", "/etc/saved")
		// Over itself, many times.
		for i := range 3 {
			if r := w.squire(t, "run", "--writable", "--save", image, image, "--", "sh", "-c", fmt.Sprintf("rm /etc/saved; echo %d > /etc/again", i)); r.status != 0 {
				t.Errorf("%+v", r)
			}
			w.want(t, fmt.Sprintln(i), "run", image, "--", "cat", "/etc/again")
		}
		w.refuse(t, 125, "name the file", "run", "--save", w.home+"/", w.l.image, "--", "true")
		w.refuse(t, 125, "no such file", "run", "--save", "/no/such/dir/x", w.l.image, "--", "true")
		if r := w.squire(t, "run", "--save", "gone/x", "--mounts", w.home+":/mnt", w.l.image, "--", "true"); r.status != 125 {
			t.Errorf("%+v", r)
		}
		if err := os.Mkdir(filepath.Join(w.home, "going"), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(w.home, "going"), 0o777); err != nil {
			t.Fatal(err)
		}
		r = w.squire(t, "run", "--save", "going/x", "--mounts", w.home+":/mnt", w.l.image, "--", "rm", "-r", "/mnt/going")
		if r.status != 125 || !strings.Contains(r.stderr, "no such file") {
			t.Errorf("the directory went: %+v", r)
		}
		if left, _ := os.ReadDir(w.data); len(left) > 0 {
			t.Errorf("layers are left: %v", left)
		}
		if left, _ := filepath.Glob(w.home + "/.*"); len(left) > 0 {
			t.Errorf("files are left: %v", left)
		}
	})
}

// TestSaveKilled: nothing of an image that was not finished is left, nor of the process that made it, also if only the one
// that waits for it was killed.
func TestSaveKilled(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		w.want(t, "", "run", "--name", "c", w.l.image, "--", "sh", "-c", "dd if=/dev/urandom of=/etc/big bs=1M count=40 2>/dev/null")
		cmd := w.command(t, "container", "save", "--comp", "zstd", "--level", "19", "c", "killed.sqsh")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		saves := func() bool { return len(w.stages("squire-save")) > 0 }
		if !eventually(saves) {
			t.Error("it does not begin")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if !eventually(func() bool { return !saves() }) {
			t.Errorf("left: %q", w.stages("squire-save"))
		}
		if entries, err := os.ReadDir(w.home); err != nil {
			t.Error(err)
		} else {
			for _, e := range entries {
				if strings.Contains(e.Name(), "killed") {
					t.Errorf("%s is left", e.Name())
				}
			}
		}
		w.want(t, "", "container", "rm", "c")
	})
}

// TestDirectory: what is below a layer may be a directory as well.
func TestDirectory(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		w.want(t, "", "extract", "--quiet", "-d", "tree", w.l.image)
		w.want(t, "", "run", "--name", "c", "tree", "--", "sh", "-c", "rm -r /usr/share/many; echo 1 > /etc/one")
		w.want(t, "1\n", "run", "--name", "c", "--", "cat", "/etc/one")
		w.want(t, "", "container", "save", "--quiet", "c", "saved.sqsh")
		w.want(t, "1\n", "run", "saved.sqsh", "--", "cat", "/etc/one")
		w.refuse(t, 1, "/usr/share/many", "ls", "saved.sqsh", "/usr/share/many")
	})
}

// TestOthersCannot: containers of one user are nobody else's, whatever they try.
func TestOthersCannot(t *testing.T) {
	l := newLab(t)
	w := &who{l: l, name: "user", uid: 24000, service: "off", socket: "/nonexistent"}
	w.dirs(t)
	hold := w.hold(t, []string{"run", "--name", "c", "--", "ls", "/etc/there"},
		"run", "--name", "c", l.image, "--", "sh", "-c", "touch /etc/there; while [ ! -e /etc/end ]; do sleep 0.05; done")
	other := &who{l: l, name: "other", uid: 24001, service: "off", socket: "/nonexistent", home: "/", data: w.data}
	other.refuse(t, 125, "permission denied", "run", "--name", "c", "--", "true")
	other.refuse(t, 125, "permission denied", "container", "list")
	// Even where the directories let them in.
	for _, dir := range []string{w.data, w.data + "/c", w.data + "/c/run"} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	sockets, _ := filepath.Glob(w.data + "/c/run/*")
	for _, s := range sockets {
		if err := os.Chmod(s, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	other.refuse(t, 125, "belongs to user 24000", "run", "--name", "c", "--", "true")
	w.refuse(t, 125, "open to others", "run", "--name", "c", "--", "true")
	if len(sockets) == 0 {
		t.Error("it has no sockets")
	}
	if err := os.Chmod(w.data, 0o700); err != nil {
		t.Fatal(err)
	}
	// A directory that somebody else has made in its place is not used.
	theirs := filepath.Join(l.dir, "theirs")
	if err := os.Mkdir(theirs, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 24001, 24001); err != nil {
		t.Fatal(err)
	}
	again := *w
	again.data = theirs
	again.refuse(t, 125, "belongs to user 24001", "run", "--name", "c", l.image, "--", "true")
	link := filepath.Join(l.dir, "link")
	if err := os.Symlink(w.data, link); err != nil {
		t.Fatal(err)
	}
	again.data = link
	again.refuse(t, 125, "a link", "run", "--name", "c", l.image, "--", "true")
	w.want(t, "", "run", "--name", "c", "--", "touch", "/etc/end")
	hold.end(t)
}

// TestFromInside: a command in a container that sees the socket gets nothing.
func TestFromInside(t *testing.T) {
	l := newLab(t)
	w := &who{l: l, name: "user", uid: 24000, service: "off", socket: "/nonexistent"}
	w.dirs(t)
	r := w.squire(t, "run", "--name", "c", "--mounts", l.dir+","+w.home, l.image, "--", "sh", "-c",
		fmt.Sprintf("SQUIRE_DATA=%s %s run --name c -- true", w.data, l.squire))
	if r.status != 125 || !strings.Contains(r.stderr, "lets nobody join") {
		t.Errorf("%+v", r)
	}
}

// TestExec runs commands in a container by its name.
func TestExec(t *testing.T) {
	each(t, func(t *testing.T, w *who) {
		w.refuse(t, 125, "not the name of a container", "exec", "c", "--", "true")
		w.want(t, "", "run", "--name", "c", w.l.image, "--", "true")
		w.refuse(t, 125, "is not running", "exec", "c", "--", "true")
		hold := w.hold(t, []string{"exec", "c", "--", "ls", "/mnt/there"},
			"run", "--name", "c", "--tmpfs", "/mnt", "--", "sh", "-c", "touch /mnt/there; while [ ! -e /mnt/end ]; do sleep 0.05; done")
		w.want(t, "/etc\nx\n", "exec", "--workdir", "/etc", "--set-env", "V=x", "c", "--", "sh", "-c", "pwd; echo $V")
		if r := w.squire(t, "exec", "c", "sh", "-c", "kill -TERM $$"); r.status != 128+15 {
			t.Errorf("%+v", r)
		}
		w.want(t, "", "exec", "c", "touch", "/mnt/end")
		hold.end(t)
	})
}
