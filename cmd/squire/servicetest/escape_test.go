package servicetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// small makes an image with the probe, directories for what containers mount, and files by mksquashfs's definitions.
func (l *lab) small(t *testing.T, name string, pseudo ...string) *image {
	t.Helper()
	img := &image{path: filepath.Join(l.dir, name+".sqsh")}
	argv := []string{l.probe, img.path, "-noappend", "-no-progress", "-quiet", "-all-root", "-noD", "-noF"}
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "etc", "run"} {
		pseudo = append(pseudo, dir+" d 755 0 0")
	}
	for _, p := range pseudo {
		argv = append(argv, "-p", p)
	}
	if out, err := exec.Command("mksquashfs", argv...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	t.Cleanup(func() { os.Remove(img.path) })
	if err := os.Chmod(img.path, 0o644); err != nil {
		t.Fatal(err)
	}
	return img
}

// show is in a container. It prints the files that there are of some.
func show(names []string) error {
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		fmt.Print(string(b))
	}
	return nil
}

// nodes is in a container whose image has devices and a set-id program, and where /run is a file system of the container's.
// It prints which of them are there, and which devices can be opened, as they are, when they are copied into a layer, and
// when they are made anew.
func nodes() error {
	for _, dir := range []string{"/", "/run/"} {
		made := dir + "made"
		_ = unix.Mknod(made, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))
		for _, name := range []string{dir + "block", dir + "char", dir + "suid", made} {
			look(name)
			_ = os.Chmod(name, 0o622) // copied into the layer, where there is one
			look(name)
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if (f[4] == "/" || f[4] == "/run") && !strings.Contains(f[5], "nosuid,nodev") {
			fmt.Print("a mount ", line)
		}
	}
	fmt.Println("looked")
	return err
}

func look(name string) {
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil {
		return
	}
	kind := st.Mode & unix.S_IFMT
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		fmt.Println("a set-id bit of", name)
	}
	if kind != unix.S_IFBLK && kind != unix.S_IFCHR {
		return
	}
	if !strings.HasSuffix(name, "/made") { // who may make one may see it
		fmt.Println("a device in the image,", name)
	}
	if fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(fd)
		fmt.Println("opened", name)
	}
}

// Device nodes and set-id programs of an image that the service serves are not there for a container, of a user or of root,
// and none that root makes there works.
func TestHostileNodes(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	img := l.small(t, "nodes", "block b 666 0 0 7 0", "char c 666 0 0 1 5", "suid f 6755 0 0 echo program")
	for _, u := range []user{root, users[1]} {
		for _, flags := range [][]string{nil, {"--writable"}, {"--remap-root"}, {"--remap-root", "--writable"}} {
			if u == root && slices.Contains(flags, "--remap-root") {
				continue
			}
			argv := append(append([]string{"run", "--tmpfs", "/run"}, flags...), img.path, "--", "/probe", "nodes")
			if r := finish(t, d.client(t, u, argv...)); r.status != 0 || r.stdout != "looked\n" || r.stderr != "" {
				t.Errorf("user %v, %q: %+v", u, flags, r)
			}
		}
	}
	if n := len(d.report(t).Images); n == 0 {
		t.Error("the service has served nothing")
	}
}

// While a process exchanges an image, and the source of a mount, with links to what the site forbids, all the time, nothing
// of that is in a container, and the service has not served it.
func TestSwappedSources(t *testing.T) {
	l := newLab(t)
	dir := l.mkdir(t, root)
	l = siteLab(t, fmt.Sprintf("[images]\ndirectories = [%q]\n[containers]\nmounts = [%q]\n", dir+"/images", dir+"/sources"))
	d := l.start(t)
	allowed, forbidden := l.small(t, "allowed"), l.small(t, "forbidden", "what f 644 0 0 echo secret image")
	secret := l.mkdir(t, root)
	for _, err := range []error{
		os.Mkdir(dir+"/images", 0o755), os.MkdirAll(dir+"/sources/fixed", 0o755), os.Mkdir(dir+"/sources/swap", 0o755),
		os.WriteFile(secret+"/what", []byte("secret\n"), 0o644),
		os.WriteFile(dir+"/sources/fixed/what", []byte("data\n"), 0o644), os.WriteFile(dir+"/sources/swap/what", []byte("data\n"), 0o644),
		copyFile(allowed.path, dir+"/images/fixed"), os.Link(dir+"/images/fixed", dir+"/images/swap"),
		os.Symlink(forbidden.path, dir+"/images/link"), os.Symlink(secret, dir+"/sources/link"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stop := exchanging(dir+"/images", dir+"/sources")
	what := [2]string{"the image", "the source"}
	var saw [2]struct{ data, refused int }
	all := func() bool { return saw[0].data*saw[0].refused*saw[1].data*saw[1].refused > 0 }
	began, i := time.Now(), 0
	for ; time.Since(began) < 3*time.Second && i < 100 || !all() && time.Since(began) < bound; i++ {
		names := [2]string{"fixed", "fixed"}
		names[i%2] = "swap"
		r := finish(t, d.client(t, users[1], "run", "--mounts", filepath.Join(dir, "sources", names[1])+":/run",
			filepath.Join(dir, "images", names[0]), "--", "/probe", "show", "/what", "/run/what"))
		// The source's name is looked at before it is opened: what was a link and is none when it is read is EINVAL.
		refused := strings.Contains(r.stderr, "forbidden here") || i%2 == 1 && strings.Contains(r.stderr, "invalid argument")
		switch {
		case r.status == 0 && r.stdout == "data\n" && r.stderr == "":
			saw[i%2].data++
		case r.status == 125 && r.stdout == "" && refused && strings.Count(r.stderr, "\n") == 1:
			saw[i%2].refused++
		default:
			t.Errorf("with %s exchanged: %+v", what[i%2], r)
		}
	}
	if n := stop(); n < i || !all() {
		t.Errorf("%d containers, exchanged %d times, saw %+v", i, n, saw)
	}
	d.imageReport(t)
}

// exchanging exchanges "swap" with "link" in each of dirs until the function that it returns is called, which says how often
// it did.
func exchanging(dirs ...string) (stop func() int) {
	end, done := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-end:
				done <- n
				return
			default:
			}
			for _, dir := range dirs {
				_ = unix.Renameat2(unix.AT_FDCWD, dir+"/swap", unix.AT_FDCWD, dir+"/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	return func() int {
		close(end)
		return <-done
	}
}
