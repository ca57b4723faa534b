package hostile

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"
)

// TestImages checks the tables: every class has images, names are unique and can be file
// names, images are small, and making one twice gives the same.
func TestImages(t *testing.T) {
	perClass := make([]int, len(Classes))
	names := map[string]bool{}
	valid := regexp.MustCompile(`^[a-z0-9-]+$`)
	for img := range Images() {
		if names[img.Name] || !valid.MatchString(img.Name) {
			t.Errorf("name %q", img.Name)
		}
		names[img.Name] = true
		if img.Class < 1 || img.Class >= len(Classes) || img.Wrong == "" {
			t.Errorf("%s: class %d, wrong %q", img.Name, img.Class, img.Wrong)
			continue
		}
		perClass[img.Class]++
		if (img.Want == Partly) != (len(img.Bad) > 0) && img.Want != Either {
			t.Errorf("%s: %v with bad paths %q", img.Name, img.Want, img.Bad)
		}
		if body := img.Body(); body.Size > 8<<20 {
			t.Errorf("%s has %d bytes", img.Name, body.Size)
		}
	}
	for class, n := range perClass {
		if class > 0 && n == 0 {
			t.Errorf("no image of class %d, %s", class, Classes[class])
		}
	}
	t.Logf("%d images, of each class %v", len(names), perClass[1:])
}

// right is an image with nothing wrong.
func right(t *testing.T) (*Image, Body, string) {
	t.Helper()
	img := (&spec{name: "right", want: Fine}).image()
	body := img.Body()
	b := make([]byte, body.Size)
	if _, err := body.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "right.sqfs")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return img, body, path
}

// TestUnsquashfs checks that unsquashfs finds in the base image what was put in.
func TestUnsquashfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for devices and owners")
	}
	if _, err := exec.LookPath("unsquashfs"); err != nil {
		t.Skip("needs unsquashfs")
	}
	img, body, path := right(t)
	dir := filepath.Join(t.TempDir(), "x")
	if out, err := exec.Command("unsquashfs", "-no-progress", "-dest", dir, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, p := range img.Check(DirView(dir), body) {
		t.Error(p)
	}
}

// TestKernel does the same with the kernel's squashfs.
func TestKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	img, body, path := right(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "squashfs", "-o", "loop,ro", path, dir).CombinedOutput(); err != nil {
		t.Skipf("needs a kernel with squashfs and loop devices: %v: %s", err, out)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, p := range img.Check(DirView(dir), body) {
		t.Error(p)
	}
}
