package runtime

import (
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// An entrypoint's variables and directory are found, whatever way it executes its arguments.
func TestEntrypoint(t *testing.T) {
	spec := &Spec{
		Image: "the image", Entrypoint: true, KeepEnv: []string{"KEPT"},
		Environ: []string{"HOME=/home/u", "KEPT=host", "SECRET=1", "LANG=de"},
	}
	image := []string{"A=image", "B=image", "GONE=1"}
	for _, tt := range []struct {
		name, script string
		workdir      string
		want         []string
		dir, log     string
	}{
		{"changes nothing", `exec "$@"`, "", image, "/", ""},
		{"sets", `export A=2 NEW="x y"; exec "$@"`, "", []string{"A=2", "B=image", "GONE=1", "NEW=x y"}, "/", ""},
		{"unsets", `unset GONE; exec "$@"`, "", []string{"A=image", "B=image"}, "/", ""},
		{"another directory", `cd /usr; "$@"`, "", image, "/usr", ""},
		{"the user's directory", `cd /usr; exec "$@"`, "/", image, "/", ""},
		{"sees what it may", `echo "$KEPT,$SECRET,$HOME,$A,$LANG"; echo err >&2; exec "$@"`, "", image, "/", "host,,/home/u,image,\nerr\n"},
		{"in the background", `sleep 1 & exec "$@"`, "", image, "/", ""},
		{"line feeds", "export NL='a\nb'; exec \"$@\"", "", append(slices.Clone(image), "NL=a\nb"), "/", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir("/")
			log := tempFile(t)
			s := *spec
			s.Workdir = tt.workdir
			c := &Config{Entrypoint: []string{"/bin/sh", "-c", tt.script, "sh"}}
			got, dir, err := c.runEntrypoint(&s, image, "/", log)
			if err != nil || !reflect.DeepEqual(got, tt.want) || dir != tt.dir {
				t.Errorf("got %q in %q, %v; want %q in %q", got, dir, err, tt.want, tt.dir)
			}
			if text := readBack(t, log); text != tt.log {
				t.Errorf("it has said %q, want %q", text, tt.log)
			}
		})
	}
}

func TestEntrypointFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		entry []string
		want  string
	}{
		{"ends", []string{"/bin/sh", "-c", "exit 3"}, "it ended with status 3, and has not executed its arguments"},
		{"missing", []string{"/no/such"}, "command not found"},
		{"killed", []string{"/bin/sh", "-c", "kill -9 $$"}, "status 137"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Config{Entrypoint: tt.entry}
			_, _, err := c.runEntrypoint(&Spec{Image: "the image", Entrypoint: true}, nil, "/", tempFile(t))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "the image") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestEntrypointNotWanted(t *testing.T) {
	image := []string{"A=1"}
	for _, s := range []Spec{{}, {Entrypoint: true}} {
		c := new(Config)
		if !s.Entrypoint {
			c.Entrypoint = []string{"/no/such"}
		}
		got, dir, err := c.runEntrypoint(&s, image, "/w", nil)
		if err != nil || !slices.Equal(got, image) || dir != "/w" {
			t.Errorf("%+v: got %q in %q, %v", s, got, dir, err)
		}
	}
}

// What an entrypoint writes where its variables are expected is not believed.
func TestReadEnviron(t *testing.T) {
	for text, want := range map[string]string{
		"":                "has not executed",
		"/x\x00A=1":       "too large",
		"x\x00A=1\x00":    "no directory",
		"/x\x00A=1\x00":   "",
		"/x\x00\x00A\x00": "",
	} {
		f := tempFile(t)
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if _, err := readEnviron(f, 1); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func tempFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func readBack(t *testing.T, f *os.File) string {
	t.Helper()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
