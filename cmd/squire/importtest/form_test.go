package importtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// odd is an argument that a shell would make something else of.
const odd = "it's \"odd\" $HOME `id` \\ *"

// showing is a program that shows how it was started.
const showing = "#!/bin/sh\nprintf 'in %s\\n' \"$PWD\"\nfor a in \"$0\" \"$@\"; do printf '<%s>\\n' \"$a\"; done\n"

// busybox returns a layer with a shell, and with showing as /bin/show.
func busybox(t *testing.T) []entry {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox: run testdata/deps.sh")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l := []entry{dir("bin"), file("bin/busybox", string(program)).perm(0o755), dir("proc"), dir("dev"), dir("sys"), dir("tmp").perm(0o1777), dir("etc")}
	for _, name := range []string{"sh", "mkdir", "printf", "cat", "env", "id", "pwd", "ls", "true"} {
		l = append(l, symlink("bin/"+name, "busybox"))
	}
	return append(l, file("bin/show", showing).perm(0o755), file("etc/rc", "what the image had"), symlink("etc/environment", "/proc/version"))
}

// TestForm looks at the files that an import adds to an image. enroot is not in Debian; what it does with them is in
// its runtime.sh and docker.sh: it runs /etc/rc with the arguments of the command line, takes variables from
// /etc/environment and mounts from /etc/fstab.
func TestForm(t *testing.T) {
	l := newLab(t)
	lay := newLayout(t, l.mkdir(t, root))
	lay.tag(t, "all", lay.image(t, "amd64", config{
		"Env":        []string{"PATH=/bin", "SPACED=a b", "QUOTED='q'", "EMPTY="},
		"Entrypoint": []string{"/bin/show", "entry", odd}, "Cmd": []string{"one", "two words", odd},
		"WorkingDir": "/work/deep", "Volumes": map[string]any{"/data": struct{}{}, "/with space": struct{}{}},
		"Labels": map[string]string{"maker": "someone", "lines": "a\nrm -rf /"}, "User": "5:6", "ExposedPorts": map[string]any{"80/tcp": struct{}{}},
	}, archives(t, busybox(t)), "gzip"))
	lay.tag(t, "cmd", lay.image(t, "amd64", config{"Cmd": []string{"/bin/show", "only"}}, archives(t, busybox(t)), "gzip"))
	lay.tag(t, "none", lay.image(t, "amd64", nil, archives(t, busybox(t)), "gzip"))
	point := map[string]string{}
	for _, tag := range []string{"all", "cmd", "none"} {
		i := l.importer(t, root)
		i.must(t, "oci:"+lay.dir+":"+tag, "--arch", "amd64")
		point[tag] = l.mount(t, i.out)
	}
	t.Run("files", func(t *testing.T) {
		for name, want := range map[string]string{
			"etc/environment": "PATH=/bin\nSPACED=a b\nQUOTED='q'\nEMPTY=\n",
			"etc/fstab":       "${ENROOT_ROOTFS}/data /data none x-create=dir,bind,rw,nosuid,nodev\n${ENROOT_ROOTFS}/with\\040space /with\\040space none x-create=dir,bind,rw,nosuid,nodev\n",
		} {
			if got := read(t, filepath.Join(point["all"], name)); got != want {
				t.Errorf("/%s is %q, want %q", name, got, want)
			}
		}
		rc := read(t, filepath.Join(point["all"], "etc/rc"))
		if !strings.HasPrefix(rc, "# enroot-provenance: oci:") || !strings.Contains(rc, "\n# maker someone\n") {
			t.Errorf("/etc/rc does not begin as enroot's: %s", rc)
		}
		if info, err := os.Lstat(filepath.Join(point["all"], "etc/rc")); err != nil || info.Mode() != 0o755 {
			t.Errorf("/etc/rc: %v, %v", info.Mode(), err)
		}
		if info, err := os.Stat(filepath.Join(point["all"], "work/deep")); err != nil || !info.IsDir() {
			t.Errorf("the working directory: %v", err)
		}
	})
	starts := []struct {
		tag  string
		args []string
		want string
	}{
		{"all", nil, "in /work/deep\n</bin/show>\n<entry>\n<" + odd + ">\n<one>\n<two words>\n<" + odd + ">\n"},
		{"all", []string{"x", "y z"}, "in /work/deep\n</bin/show>\n<entry>\n<" + odd + ">\n<x>\n<y z>\n"},
		{"cmd", nil, "in /\n</bin/show>\n<only>\n"},
		{"cmd", []string{"/bin/show", odd}, "in /\n</bin/show>\n<" + odd + ">\n"},
		{"none", []string{"/bin/show"}, "in /\n</bin/show>\n"},
		{"none", nil, ""}, // a shell that reads nothing
	}
	for _, s := range starts {
		t.Run("rc of "+s.tag+" with "+strings.Join(s.args, " "), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"/etc/rc"}, s.args...)...)
			cmd.Dir, cmd.Env = "/", []string{"PATH=/bin"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: point[s.tag], Setpgid: true}
			out, err := cmd.Output() // there is no /dev/null, which sh says on standard error
			if err != nil || string(out) != s.want {
				t.Errorf("%v:\n%s\nwant\n%s", err, out, s.want)
			}
		})
	}
	t.Run("run", func(t *testing.T) { testRunImported(t, l, lay) })
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// testRunImported runs images by "squire run", as their configuration says.
func testRunImported(t *testing.T, l *lab, lay *layout) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs FUSE: %v", err)
	} else {
		f.Close()
	}
	for _, who := range users {
		i := l.importer(t, who)
		i.must(t, "oci:"+lay.dir+":all", "--arch", "amd64")
		for _, s := range []struct {
			args []string
			want string
		}{
			{nil, "in /work/deep\n</bin/show>\n<entry>\n<" + odd + ">\n<one>\n<two words>\n<" + odd + ">\n"},
			{[]string{"--", "/bin/sh", "-c", "pwd; echo $SPACED"}, "/work/deep\na b\n"},
			{[]string{"--entrypoint", "--", "x"}, "in /work/deep\n</bin/show>\n<entry>\n<" + odd + ">\n<x>\n"},
		} {
			argv := []string{l.squire, "run"}
			if len(s.args) > 0 && s.args[0] == "--entrypoint" {
				argv, s.args = append(argv, s.args[0]), s.args[1:]
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r := finish(t, command(ctx, who, i.home, append(append(argv, i.out), s.args...)...))
			if r.status != 0 || r.stdout != s.want {
				t.Errorf("run with %q as %s: status %d, %q, want %q: %s", s.args, who.name, r.status, r.stdout, s.want, r.stderr)
			}
		}
	}
}
