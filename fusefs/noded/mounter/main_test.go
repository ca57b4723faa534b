package mounter

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
)

// Stages of the tests. Who serves must not look at mounts, and rights are those of a process.
const (
	serveName = "squire-test-serve" // serves the image at descriptor 3 to the device at 4
	userName  = "squire-test-user"  // receives a grant as descriptor 3, see attack
	idleName  = "squire-test-idle"  // does nothing until its input ends
	ownName   = "squire-test-own"   // has a mounter of its own

	keeperName = "squire-test-keeper" // has a mounter, and is killed
)

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case serveName:
		exit(serveTest())
	case userName:
		exit(attack(os.Args[1]))
	case idleName:
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	case keeperName:
		exit(keeperTest())
	case ownName:
		exit(ownTest(os.Args[1]))
	}
	if strings.HasPrefix(os.Args[0], Name) {
		os.Exit(Main())
	}
	// Containers of other tests bind the host's /tmp, with the mounts in it.
	if fi, err := os.Stat("/var/tmp"); os.Getenv("TMPDIR") == "" && err == nil && fi.IsDir() {
		os.Setenv("TMPDIR", "/var/tmp")
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// the user of the tests.
const testUID, testGID = 1500, 1501

var testUser = fusefs.Owner{UID: testUID, GID: testGID}

func needRoot(t testing.TB) {
	t.Helper()
	testenv.NeedRoot(t, "to mount")
	testenv.NeedFUSE(t)
	testenv.NeedTools(t, "mksquashfs")
}

// needLocker skips tests of locked clones where no process starts in a namespace without files.
func needLocker(t testing.TB) {
	t.Helper()
	needRoot(t)
	testenv.NeedStatic(t)
}

// hostileImage makes an image with a device node that everybody may open, and a set-id program. Paths of it are
// readable by all.
func hostileImage(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(filepath.Join(src, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"file": 0o644, "etc/conf": 0o644, "secret": 0o600, "suid": 0o755 | os.ModeSetuid} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(src, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "image.sqsh")
	out, err := exec.Command("mksquashfs", src, image, "-quiet", "-no-progress", "-all-root", "-p", "null c 666 0 0 1 3",
		"-p", "suid m 4755 0 0").CombinedOutput()
	if err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	return image
}

func serveTest() error {
	file, dev := os.NewFile(3, "image"), os.NewFile(4, "device")
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	img, err := sqfs.New(file, fi.Size(), nil)
	if err != nil {
		return err
	}
	f := fusefs.New(img, fusefs.Options{IDMap: os.Args[1] == "idmap", Owner: &fusefs.Owner{}})
	if os.Args[1] != "idmap" {
		f = fusefs.New(img, fusefs.Options{Owner: &fusefs.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}})
	}
	return f.Serve(fusefs.Serving{Device: dev, Ready: func([]byte) { fmt.Println("ready") }})
}

// startServing starts a server of a mount, and waits until it answers. end ends it.
func startServing(image, how string, device *os.File) (end func(), err error) {
	end, _, err = startServer(image, how, device)
	return end, err
}

func startServer(image, how string, device *os.File) (end func(), proc *os.Process, err error) {
	file, err := os.Open(image)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	proc, err = os.StartProcess("/proc/self/exe", []string{serveName, how}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, w, os.Stderr, file, device},
	})
	w.Close()
	if err != nil {
		return nil, nil, err
	}
	end = func() {
		_ = proc.Kill()
		_, _ = proc.Wait()
	}
	if _, err = r.Read(make([]byte, 16)); err != nil {
		end()
		return nil, nil, fmt.Errorf("the server did not begin: %w", err)
	}
	return end, proc, nil
}

// served mounts an image and serves it, for as long as the test runs.
func served(t testing.TB, c *Client, image, how string, o Options) *Mounted {
	t.Helper()
	m, err := c.Mount(o)
	if err != nil {
		t.Fatal(err)
	}
	end, err := startServing(image, how, m.Device)
	m.Device.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end()
		m.Mount.Close()
	})
	return m
}

func startMounter(t testing.TB, s setup) *Client {
	t.Helper()
	c, err := start(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		<-c.Done()
	})
	return c
}

// results is what each attempt of a user came to: "" or an error.
type results map[string]string

// attempt runs the user stage with a grant, in a user namespace that maps the user to inside, and returns what came of
// its attempts.
func attempt(t *testing.T, grant *os.File, inside int, how string) results {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	proc, err := os.StartProcess("/proc/self/exe", []string{userName, how}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, w, os.Stderr, grant},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: inside, HostID: testUID, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: inside, HostID: testGID, Size: 1}},
			Credential:  &syscall.Credential{Uid: uint32(inside), Gid: uint32(inside), NoSetGroups: true},
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_DAC_OVERRIDE},
		},
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = proc.Wait() }()
	_ = r.SetReadDeadline(deadline())
	var got results
	if err = json.NewDecoder(r).Decode(&got); err != nil {
		_ = proc.Kill()
		t.Fatal("the user said nothing: ", err)
	}
	return got
}
