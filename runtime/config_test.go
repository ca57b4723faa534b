package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// testConfigFile is the configuration of the tests' root file systems: lines of a word
// and a value, "\\n" in which is a line break.
const testConfigFile = "/etc/test-config"

func testConfig(read func(string) ([]byte, error)) (*Config, error) {
	text, err := read(testConfigFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var c Config
	for line := range strings.Lines(string(text)) {
		word, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		value = strings.NewReplacer(`\n`, "\n", `\0`, "\x00").Replace(value)
		switch word {
		case "env":
			c.Env = append(c.Env, value)
		case "entrypoint":
			c.Entrypoint = append(c.Entrypoint, value)
		case "cmd":
			c.Cmd = append(c.Cmd, value)
		case "dir":
			c.WorkingDir = value
		default:
			return nil, errors.New("no such word: " + word)
		}
	}
	return &c, nil
}

func TestConfigDecides(t *testing.T) {
	full := &Config{Entrypoint: []string{"/e", "-x"}, Cmd: []string{"c"}, WorkingDir: "srv/x/"}
	for _, tt := range []struct {
		name   string
		config *Config
		spec   Spec
		argv   string
		dir    string
	}{
		{"nothing", &Config{}, Spec{}, "/bin/sh", "/"},
		{"all of it", full, Spec{}, "/e -x c", "/srv/x"},
		{"entrypoint and own arguments", full, Spec{Command: []string{"a", "b"}, Entrypoint: true}, "/e -x a b", "/srv/x"},
		{"entrypoint without arguments", full, Spec{Entrypoint: true}, "/e -x c", "/srv/x"},
		{"own command and directory", full, Spec{Command: []string{"a"}, Workdir: "/w"}, "a", "/w"},
		{"root is named", full, Spec{Workdir: "/"}, "/e -x c", "/"},
		{"no entrypoint", &Config{Cmd: []string{"c", "d"}}, Spec{}, "c d", "/"},
		{"no entrypoint, asked for", &Config{Cmd: []string{"c"}}, Spec{Command: []string{"a"}, Entrypoint: true}, "a", "/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if argv := strings.Join(tt.config.command(execOp(&tt.spec)), " "); argv != tt.argv {
				t.Errorf("command %q, want %q", argv, tt.argv)
			}
			if dir := tt.config.chdir(chdirOp(&tt.spec)).Target; dir != tt.dir {
				t.Errorf("directory %q, want %q", dir, tt.dir)
			}
		})
	}
}

func TestConfigEnviron(t *testing.T) {
	c := &Config{Env: []string{"A=1", "B=two\nlines", `Q="quoted"`, "A=2", "odd", "=x", "dotted.name="}}
	want := []string{"A=2", "B=two\nlines", `Q="quoted"`, "dotted.name="}
	if got := c.environ(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A container starts as its image says, and as its user says where both do.
func TestRunConfig(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		write := func(name, text string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("etc/environment", "B=file\nC=file\n")
		write(testConfigFile, `env A=two\nlines
env B=image
entrypoint /bin/sh
entrypoint -c
entrypoint echo "$A,$B,$C,$PWD,$0,$1"; pwd
cmd x
cmd y
dir /opt
`)
		want := func(s Spec, out string) {
			t.Helper()
			s.Dir, s.Image = root, "the image"
			if got := run(t, w, s); got != (result{out: out}) {
				t.Errorf("%+v, want %q", got, out)
			}
		}
		want(Spec{}, "two\nlines,image,,/opt,x,y\n/opt\n")
		want(Spec{Entrypoint: true, Command: []string{"z"}, Workdir: "/"}, "two\nlines,image,,/,z,\n/\n")
		want(Spec{Command: []string{"sh", "-c", "echo $B; pwd"}}, "image\n/opt\n")

		write(testConfigFile, "dir /no/such\n")
		got := run(t, w, Spec{Dir: root, Image: "the image", Command: []string{"true"}})
		if got.status != ExitFailed || got.err != "squire: working directory /no/such: not in the image, whose configuration names it; --workdir chooses another\n" {
			t.Errorf("no such directory: %+v", got)
		}
		want(Spec{Workdir: "/", Command: []string{"sh", "-c", "echo $B"}}, "file\n")
		got = run(t, w, Spec{Dir: root, Image: "the image", Workdir: "/other", Command: []string{"true"}})
		if got.status != ExitFailed || got.err != "squire: working directory /other: no such file or directory; it is not in the image\n" {
			t.Errorf("no such directory of the user's: %+v", got)
		}
	})
}

// Whatever an image has in place of its configuration, it is run as one without.
func TestRunConfigHostile(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		name := filepath.Join(root, testConfigFile)
		for kind, put := range map[string]func() error{
			"directory": func() error { return os.Mkdir(name, 0o755) },
			"fifo":      func() error { return unix.Mkfifo(name, 0o644) },
			"device":    func() error { return os.Symlink("/dev/zero", name) },
			"sparse": func() error {
				return errors.Join(os.WriteFile(name, nil, 0o644), os.Truncate(name, 1<<40))
			},
			"unknown":  func() error { return os.WriteFile(name, []byte("\x1b[31mword x\n"), 0o644) },
			"NUL byte": func() error { return os.WriteFile(name, []byte("dir /\\0\n"), 0o644) },
		} {
			if err := errors.Join(os.RemoveAll(name), put()); err != nil {
				t.Fatal(err)
			}
			got := run(t, w, Spec{Dir: root, Image: "the image", Command: []string{"pwd"}})
			if got.status != 0 || got.out != "/\n" || !strings.HasSuffix(got.err, "; its configuration is not used\n") || strings.Contains(got.err, "\x1b") {
				t.Errorf("%s: %+v", kind, got)
			}
		}
	})
}
