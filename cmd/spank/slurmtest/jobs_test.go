package slurmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An allocation is a job without a script, whose steps a test starts.
type allocation struct {
	l  *lab
	id string
	// A directory of the user's, and a name that nobody else uses.
	dir, name string
}

var granted = regexp.MustCompile(`Granted job allocation (\d+)`)

// allocate asks for a job, which ends with the test.
func (l *lab) allocate(t *testing.T, args ...string) *allocation {
	t.Helper()
	r := l.run(t, append([]string{"salloc", "--no-shell", "--time=10"}, args...)...)
	m := granted.FindStringSubmatch(r.stderr)
	if m == nil {
		t.Fatalf("salloc: %+v", r)
	}
	t.Cleanup(func() { l.run(t, "scancel", m[1]) })
	return &allocation{l: l, id: m[1], dir: l.userDir(t)}
}

// batch runs a script to its end, and returns what it and its steps have said.
func (l *lab) batch(t *testing.T, dir, script string, options ...string) (output string, code int) {
	t.Helper()
	file, err := os.CreateTemp(dir, "*.sh")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err = file.WriteString(script); err == nil {
		err = file.Chmod(0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	log := file.Name() + ".log"
	r := l.runAs(t, l.user, nil, dir, append(append([]string{"sbatch", "--wait", "--output=" + log}, options...), file.Name())...)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Errorf("%v: %+v", err, r)
	}
	return string(text), r.code
}

// richFiles is what the image "rich" has beside Debian: a configuration, as enroot writes it, and programs.
var richFiles = map[string]string{
	"etc/image-marker": "rich\n",
	"etc/environment": "PATH=/opt/private/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nCUDA_VERSION=11.8.0\n" +
		"LD_LIBRARY_PATH=/usr/local/nvidia/lib\nPYTORCH_VERSION=2.1.0\nIMAGE_VARIABLE=of the image\n",
	"etc/rc": `mkdir -p "/workspace" 2> /dev/null
cd "/workspace" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/entrypoint' "$@"
else
    exec '/entrypoint' '/bin/sh'
fi
`,
	"entrypoint": `#!/bin/sh
echo "== ENTRY =="
(echo entered >/entered) 2>/dev/null
export ENTRY_HOST=tcp://entry:237$([ -z "$ENTRY_TLS" ] && echo 5 || echo 6)
exec "$@"
`,
	"opt/private/bin/private-tool": "#!/bin/sh\necho private 1\n",
}

// rich makes the image once: Debian with richFiles, and the test programs in its working directory.
func (l *lab) rich() string {
	l.richOnce.Do(func() { l.richImage, l.richErr = l.makeRich() })
	if l.richErr != nil {
		panic(l.richErr)
	}
	return l.richImage
}

func (l *lab) makeRich() (image string, err error) {
	dir, err := os.MkdirTemp(l.dir, "rich")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	// On a tmpfs, as an overlay's upper directory cannot be on every file system.
	if err = unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return "", err
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"lower", "work", "root", "upper/workspace", "upper/usr/bin"} {
		if err = os.MkdirAll(at(name), 0o755); err != nil {
			return "", err
		}
	}
	for name, content := range richFiles {
		if err = writeFile(at("upper/"+name), content); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"train.py", "pmi2.py"} {
		content, err := os.ReadFile(filepath.Join("testdata", name))
		if err == nil {
			err = writeFile(at("upper/workspace/"+name), string(content))
		}
		if err != nil {
			return "", err
		}
	}
	if err = os.Symlink("python3", at("upper/usr/bin/python")); err != nil {
		return "", err
	}
	// Ends with its mount, and this with the directory.
	if out, err := exec.Command(l.squire, "mount", l.image, at("lower")).CombinedOutput(); err != nil {
		return "", fmt.Errorf("squire mount: %w: %s", err, out)
	}
	defer unix.Unmount(at("lower"), unix.MNT_DETACH)
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))
	if err = unix.Mount("overlay", at("root"), "overlay", 0, options); err != nil {
		return "", err
	}
	defer unix.Unmount(at("root"), unix.MNT_DETACH)
	image = filepath.Join(l.dir, "pytorch-23.10.sqsh")
	out, err := exec.Command("mksquashfs", at("root"), image, "-comp", "zstd", "-Xcompression-level", "1", "-no-progress", "-quiet",
		"-e", "odd", "dev").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mksquashfs: %w: %s", err, out)
	}
	return image, os.Chmod(image, 0o644)
}

func writeFile(name, content string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if strings.HasPrefix(content, "#!") {
		mode = 0o755
	}
	return os.WriteFile(name, []byte(content), mode)
}
