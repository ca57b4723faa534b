package slurmtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// says is what squire.toml of the cluster says until the test ends.
func (l *lab) says(t *testing.T, text string) {
	t.Helper()
	name := filepath.Join(l.site(), "squire.toml")
	t.Cleanup(func() { os.Remove(name) })
	if err := os.MkdirAll(l.site(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What the site forbids is refused in one line on each node, what it forces or gives as a default is so.
func TestSite(t *testing.T) {
	l := theLab(t)
	for _, tt := range []struct {
		policy  string
		options []string
		script  string
		want    string // of both tasks, or in the error after "!"
	}{
		{"[images]\ndirectories = ['" + l.dir + "']\nowners = ['root']\n", nil, "echo fine", "fine"},
		{"[images]\ndirectories = ['/no/such']\n", nil, "echo ran", "!is not in /no/such: forbidden here"},
		{"[images]\nowners = ['nobody']\n", nil, "echo ran", "!is not of nobody: forbidden here"},
		{"[containers]\nmounts = ['/usr']\n", []string{"--container-mounts=/usr:/u"}, "ls -d /u/bin", "/u/bin"},
		{"[containers]\nmounts = ['/usr']\n", []string{"--container-mounts=/usr:/u,/etc:/e"}, "echo ran", "!mount /etc: forbidden here"},
		{"[containers]\nwritable = 'default'\n", nil, "echo x >/made && cat /made", "x"},
		{"[containers]\nwritable = 'default'\n", []string{"--container-readonly"}, "(echo x >/made) 2>/dev/null || echo no", "no"},
		{"[containers]\nwritable = 'force'\n", []string{"--container-readonly"}, "echo ran", "!not a writable container: forbidden here"},
		{"[containers]\nremap-root = 'forbid'\n", []string{"--container-remap-root"}, "echo ran", "!to be root inside: forbidden here"},
		{"[containers]\nremap-root = 'force'\n", nil, "id -u", "0"},
		{"nonsense = 1\n", nil, "echo ran", `!squire.toml: line 1: unknown key "nonsense"`},
	} {
		l.says(t, tt.policy)
		argv := append([]string{"srun", "-N1", "-n2", "--container-image=" + l.image}, tt.options...)
		r := l.run(t, append(argv, "sh", "-c", tt.script)...)
		if words, refused := strings.CutPrefix(tt.want, "!"); refused {
			if r.code == 0 || r.stdout != "" || strings.Count(r.stderr, words) != 1 {
				t.Errorf("%q %q: %+v, want one line with %q", tt.policy, tt.options, r, words)
			}
			continue
		}
		if want := strings.Repeat(tt.want+"\n", 2); r.code != 0 || r.stdout != want {
			t.Errorf("%q %q: %+v, want %q", tt.policy, tt.options, r, want)
		}
	}
}

// Each node of a step tells what it used, and the job's comment has it, unless the user has one there.
func TestSiteAccounts(t *testing.T) {
	l := theLab(t)
	file := l.at("accounts")
	t.Cleanup(func() { os.Remove(file) })
	if err := os.WriteFile(file, nil, 0o622); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o622); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	l.says(t, "[accounting]\nfile = '"+file+"'\nscontrol = '"+filepath.Join(l.bin, "scontrol")+"'\n")
	var blocks int64
	for _, own := range []string{"", "mine"} {
		if err := os.Truncate(file, 0); err != nil {
			t.Fatal(err)
		}
		r := l.run(t, "srun", "-N2", "--ntasks-per-node=2", "--comment="+own, "--container-image="+l.image, "sh", "-c",
			"cat /usr/bin/* >/dev/null 2>&1; echo $SLURM_JOB_ID")
		if r.code != 0 || len(strings.Fields(r.stdout)) != 4 {
			t.Fatalf("%+v", r)
		}
		job := strings.Fields(r.stdout)[0]
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		nodes := make(map[string]bool)
		for line := range strings.Lines(string(text)) {
			var got struct {
				Job, Step, UID, Tasks, Bytes, Read, Blocks int64
				Node, Image, Service                       string
				Mount                                      float64 `json:"mount_ms"`
			}
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if strconv.FormatInt(got.Job, 10) != job || got.Step != 0 || got.UID != int64(l.user.uid) || got.Tasks != 2 ||
				got.Image != l.image || got.Bytes == 0 || got.Service != "node" || got.Mount <= 0 {
				t.Errorf("%s", line)
			}
			nodes[got.Node] = true
			blocks += got.Blocks
		}
		if blocks == 0 { // of the first step; the next one may find all of it in the page cache
			t.Errorf("nothing was counted: %s", text)
		}
		if len(nodes) != 2 {
			t.Errorf("nodes %v: %s", nodes, text)
		}
		comment := l.run(t, "scontrol", "show", "job", job).stdout
		switch {
		case own != "" && !slices.Contains(strings.Fields(comment), "Comment="+own):
			t.Errorf("the user's comment is gone: %s", comment)
		case own == "" && !strings.Contains(comment, "Comment=squire: step 0: image "+l.image+", mounted in "):
			t.Errorf("no comment: %s", comment)
		}
	}
}

// A container that is the job's alone is there for all of its steps, and goes with the job.
func TestSiteJobsContainers(t *testing.T) {
	l := theLab(t)
	data := filepath.Join(l.userDir(t), "data")
	l.says(t, "data = '"+data+"'\n")
	l.plugstack(t, "container_scope=job")
	script := filepath.Join(l.userDir(t), "job.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+
		"srun --container-image="+l.image+" --container-name=box --container-writable sh -c 'echo kept >/made' &&\n"+
		"srun --container-name=box cat /made; ls "+data+"; echo $SLURM_JOB_ID\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := l.run(t, "salloc", "-Q", "-N1", "-n1", script)
	words := strings.Fields(r.stdout)
	if r.code != 0 || len(words) != 3 || words[0] != "kept" || words[1] != words[2]+"_box" {
		t.Fatalf("%+v", r)
	}
	for range 300 {
		if left, err := os.ReadDir(data); err == nil && len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	left, err := os.ReadDir(data)
	t.Errorf("left %v, %v", left, err)
}

// The doctor finds nothing that is failed on a node that works, and the plugin and the service are what it says.
func TestSiteDoctor(t *testing.T) {
	l := theLab(t)
	for _, who := range []account{rootAccount, l.user} {
		r := l.runAs(t, who, nil, "/", l.squire, "doctor", "--json")
		var findings []struct{ Check, State, Text string }
		if err := json.Unmarshal([]byte(r.stdout), &findings); err != nil || r.code != 0 {
			t.Fatalf("%v: %+v", err, r)
		}
		state := make(map[string]string)
		for _, f := range findings {
			state[f.Check] = f.State
		}
		for _, check := range []string{"kernel", "fuse", "namespaces", "overlayfs", "service", "slurm"} {
			if state[check] != "ok" {
				t.Errorf("%s: %s is %s: %s", who.name, check, state[check], r.stdout)
			}
		}
	}
}
