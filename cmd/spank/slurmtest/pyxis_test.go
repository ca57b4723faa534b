package slurmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A pyxisCase is one of pyxis's own test cases (its tests directory, version 0.24), told again for this plugin.
type pyxisCase struct {
	file, name string
	// How it ends here: empty: as there. Otherwise what differs on purpose, and why.
	differs string
	// What the case needs that a test cannot bring along. Then nothing runs.
	needs string
	// The steps, one after the other, or what else there is to do.
	steps []step
	run   func(t *testing.T, a *allocation)
}

// A step is one srun, and how it has to end. {image}, {rich}, {dir}, {home}, {uid}, {gid} and {name} stand for an image of
// Debian, one with a configuration, a directory of the user's, the user's home, ids, and a name that is the case's own.
type step struct {
	env  []string
	opts string // of srun, separated by blanks; a blank inside of one is written as \x00
	cmd  string // for sh in the container
	argv []string
	// failed is any exit status but 0.
	code   int
	out    string // all of the standard output, without blanks around it; "": whatever it is
	has    string // part of the output, standard output and error together
	hasNot string
}

// failed stands for any exit status that is not 0.
const failed = -1

// optionError is how srun ends when an option is wrong, as with pyxis.
const optionError = 255

func TestPyxisCases(t *testing.T) {
	l := theLab(t)
	a := l.allocate(t, "-N1", "-n8")
	for _, c := range pyxisCases {
		t.Run(c.file+"/"+strings.ReplaceAll(c.name, "/", "|"), func(t *testing.T) {
			if c.needs != "" {
				t.Skip("needs " + c.needs)
			}
			t.Parallel()
			a := a.forCase(t)
			if c.run != nil {
				c.run(t, a)
			}
			for _, s := range c.steps {
				a.step(t, s)
			}
		})
	}
}

// forCase is the allocation with a directory and a name for one case.
func (a *allocation) forCase(t *testing.T) *allocation {
	t.Helper()
	own := *a
	own.dir = a.l.userDir(t)
	own.name = strings.ReplaceAll(filepath.Base(own.dir), ".", "-")
	t.Cleanup(func() { a.l.run(t, a.l.squire, "container", "rm", "--force", own.name) })
	return &own
}

// fill puts in what braces stand for.
func (a *allocation) fill(text string) string {
	return strings.NewReplacer("{image}", a.l.image, "{rich}", a.l.rich(), "{dir}", a.dir, "{home}", a.l.user.home,
		"{uid}", fmt.Sprint(a.l.user.uid), "{gid}", fmt.Sprint(a.l.user.gid), "{name}", a.name).Replace(text)
}

// argv is the srun command of a step.
func (a *allocation) argv(s step) []string {
	argv := []string{"srun", "--jobid=" + a.id, "--overlap", "-N1"}
	if !strings.Contains(" "+s.opts, " -n") {
		argv = append(argv, "-n1")
	}
	for _, opt := range strings.Fields(a.fill(s.opts)) {
		argv = append(argv, strings.ReplaceAll(opt, "\x00", " "))
	}
	if s.cmd != "" {
		return append(argv, "sh", "-c", a.fill(s.cmd))
	}
	for _, word := range s.argv {
		argv = append(argv, a.fill(word))
	}
	return argv
}

// step runs one and checks how it ends.
func (a *allocation) step(t *testing.T, s step) result {
	t.Helper()
	env := make([]string, len(s.env))
	for i, kv := range s.env {
		env[i] = a.fill(kv)
	}
	r := a.l.runAs(t, a.l.user, env, a.dir, a.argv(s)...)
	a.check(t, s, r)
	return r
}

func (a *allocation) check(t *testing.T, s step, r result) {
	t.Helper()
	both := r.stdout + r.stderr
	switch out := strings.TrimSpace(r.stdout); {
	case s.code == failed && r.code == 0, s.code != failed && r.code != s.code:
		t.Errorf("%s: status %d, want %d\n%s", a.argv(s), r.code, s.code, both)
	case s.out != "" && out != a.fill(s.out):
		t.Errorf("%s: output %q, want %q\n%s", a.argv(s), out, a.fill(s.out), r.stderr)
	case !strings.Contains(both, a.fill(s.has)):
		t.Errorf("%s: no %q in\n%s", a.argv(s), a.fill(s.has), both)
	case s.hasNot != "" && strings.Contains(both, a.fill(s.hasNot)):
		t.Errorf("%s: %q in\n%s", a.argv(s), a.fill(s.hasNot), both)
	}
}

// casesDocument is where the table of all cases is kept for readers.
const casesDocument = "../CASES.md"

// TestPyxisCasesDocument wants every case in the document, as this program has it; SQUIRE_UPDATE=1 writes it.
func TestPyxisCasesDocument(t *testing.T) {
	if n := len(pyxisCases); n != 187 {
		t.Errorf("%d cases; pyxis 0.24 has 187", n)
	}
	seen := make(map[string]bool)
	for _, c := range pyxisCases {
		if key := c.file + c.name; seen[key] {
			t.Errorf("%s: %s: twice", c.file, c.name)
		} else {
			seen[key] = true
		}
		if c.needs == "" && c.run == nil && len(c.steps) == 0 {
			t.Errorf("%s: %s: nothing is done", c.file, c.name)
		}
	}
	want := casesTable()
	if os.Getenv("SQUIRE_UPDATE") != "" {
		if err := os.WriteFile(casesDocument, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(casesDocument); err != nil || string(got) != want {
		t.Errorf("%s is not what the table says (%v); SQUIRE_UPDATE=1 writes it", casesDocument, err)
	}
}

func casesTable() string {
	var text strings.Builder
	same, differ, need := 0, 0, 0
	for _, c := range pyxisCases {
		switch {
		case c.needs != "":
			need++
		case c.differs != "":
			differ++
		default:
			same++
		}
	}
	fmt.Fprintf(&text, `# pyxis's test cases

These are the %d cases of the tests of pyxis 0.24, in their order, as they end with Squire's plugin: %d as they do there,
%d otherwise, on purpose, and %d need what a test on one machine without network cannot bring along. TestPyxisCases of
cmd/spank/slurmtest runs them on a real Slurm. Where pyxis's suite installs a package to have a change in a root file
system, a file is written; where it takes an image from a registry for its configuration, an image with such a
configuration is made. pyxis's suite assumes that containers are writable and have their user as root by default; the
cases that need it say so by options here.

`, len(pyxisCases), same, differ, need)
	file := ""
	for _, c := range pyxisCases {
		if c.file != file {
			file = c.file
			fmt.Fprintf(&text, "\n## %s\n\n| case | here |\n| --- | --- |\n", file)
		}
		here := "same"
		if c.differs != "" {
			here = "differs: " + c.differs
		}
		if c.needs != "" {
			here = "not run, needs " + c.needs
		}
		fmt.Fprintf(&text, "| %s | %s |\n", strings.ReplaceAll(c.name, "|", "\\|"), strings.ReplaceAll(here, "|", "\\|"))
	}
	return strings.Replace(text.String(), "\n\n\n", "\n\n", 1)
}
