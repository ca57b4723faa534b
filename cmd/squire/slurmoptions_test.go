package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
)

// document makes a document of options, as the plugin sends it: NAME=VALUE, and no-NAME or NAME for those without a value.
func document(t *testing.T, options []string, env ...string) *slurmDocument {
	t.Helper()
	d := &slurmDocument{Version: slurmVersion, Options: map[string]slurmRaw{}, Env: env, Cwd: "/cwd", Context: contextLocal, Program: "srun"}
	for _, o := range options {
		name, value, ok := strings.Cut(o, "=")
		if !ok {
			value = "true"
			if no, is := strings.CutPrefix(name, "no-"); is {
				name, value = no, "false"
			}
		}
		d.Options[name] = append(d.Options[name], value)
	}
	return d
}

func TestSlurmOptions(t *testing.T) {
	yes, no := true, false
	plain := slurmOptions{Image: "/i.sqsh", Path: "/i.sqsh", Batch: batchContainer, Scope: scopeGlobal}
	with := func(change func(o *slurmOptions)) *slurmOptions {
		o := plain
		change(&o)
		return &o
	}
	for _, tt := range []struct {
		name    string
		options []string
		env     []string
		want    *slurmOptions
	}{
		{"path", []string{"image=/i.sqsh"}, nil, &plain},
		{"path from the directory", []string{"image=./a/../i.sqsh"}, nil, with(func(o *slurmOptions) { o.Image, o.Path = "./a/../i.sqsh", "/cwd/i.sqsh" })},
		{"path above", []string{"image=../i.sqsh"}, nil, with(func(o *slurmOptions) { o.Image, o.Path = "../i.sqsh", "/i.sqsh" })},
		{"path from home", []string{"image=~/i.sqsh"}, []string{"HOME=/home/u"}, with(func(o *slurmOptions) { o.Image, o.Path = "~/i.sqsh", "/home/u/i.sqsh" })},
		{"registry", []string{"image=ubuntu:24.04"}, nil, with(func(o *slurmOptions) { o.Image, o.Path, o.Source = "ubuntu:24.04", "", "docker://ubuntu:24.04" })},
		{"enroot's form", []string{"image=me@nvcr.io#nvidia/pytorch:23.10-py3"}, nil, with(func(o *slurmOptions) {
			o.Image, o.Path, o.Source = "me@nvcr.io#nvidia/pytorch:23.10-py3", "", "docker://me@nvcr.io#nvidia/pytorch:23.10-py3"
		})},
		{"scheme", []string{"image=dockerd://x"}, nil, with(func(o *slurmOptions) { o.Image, o.Path, o.Source = "dockerd://x", "", "dockerd://x" })},
		{"given twice alike", []string{"image=/i.sqsh", "image=/i.sqsh"}, nil, &plain},
		{"from squire's variable", nil, []string{"PYXIS_CONTAINER_IMAGE=/p.sqsh", "SQUIRE_CONTAINER_IMAGE=/i.sqsh"}, &plain},
		{"from pyxis's variable", nil, []string{"PYXIS_CONTAINER_IMAGE=/i.sqsh"}, &plain},
		{"option before variables", []string{"image=/i.sqsh"}, []string{"SQUIRE_CONTAINER_IMAGE=/s.sqsh", "PYXIS_CONTAINER_IMAGE=/p.sqsh"}, &plain},
		{"empty variable", []string{"image=/i.sqsh"}, []string{"PYXIS_CONTAINER_WORKDIR=", "PYXIS_CONTAINER_MOUNTS="}, &plain},
		{"everything", []string{
			"image=/i.sqsh", "mounts=/a,/b:/c:ro+nosuid", "mounts=/a,./d", "workdir=w", "name=n:create", "save=s.sqsh", "mount-home", "remap-root",
			"entrypoint", "entrypoint-log", "writable", "env=A,B", "env=B,C", "unshare=net,ipc", "unshare=uts", "gpus=0,1", "trace", "batch=host",
		}, []string{"PWD=/pwd"}, &slurmOptions{
			Image: "/i.sqsh", Path: "/i.sqsh", Mounts: []string{"/a", "/b:/c:ro+nosuid", "./d"}, Workdir: "w", Name: "n", NameMode: nameCreate, Save: "/pwd/s.sqsh",
			MountHome: true, RemapRoot: true, Entrypoint: true, EntrypointLog: true, Writable: true, KeepEnv: []string{"A", "B", "C"},
			Unshare: []string{"net", "ipc", "uts"}, GPUs: "0,1", Trace: &yes, Batch: batchHost, Scope: scopeGlobal,
		}},
		{
			"nothing of it",
			[]string{"image=/i.sqsh", "no-mount-home", "no-remap-root", "no-entrypoint", "no-writable", "no-trace"},
			[]string{"PYXIS_CONTAINER_MOUNT_HOME=1", "PYXIS_CONTAINER_REMAP_ROOT=yes", "PYXIS_CONTAINER_ENTRYPOINT=y", "PYXIS_CONTAINER_WRITABLE=true"},
			with(func(o *slurmOptions) { o.Trace = &no }),
		},
		{"variables", []string{"image=/i.sqsh"}, []string{
			"PYXIS_CONTAINER_MOUNTS=/a", "PYXIS_CONTAINER_WORKDIR=/w", "PYXIS_CONTAINER_SAVE=/s", "PYXIS_CONTAINER_NAME=n", "PYXIS_CONTAINER_MOUNT_HOME=1",
			"PYXIS_CONTAINER_REMAP_ROOT=true", "PYXIS_CONTAINER_ENTRYPOINT=yes", "PYXIS_CONTAINER_ENTRYPOINT_LOG=y", "PYXIS_CONTAINER_WRITABLE=1",
			"PYXIS_CONTAINER_ENV=A", "PYXIS_CONTAINER_UNSHARE=net", "SQUIRE_CONTAINER_GPUS=none", "SQUIRE_CONTAINER_TRACE=no", "SQUIRE_CONTAINER_BATCH=host",
		}, &slurmOptions{
			Image: "/i.sqsh", Path: "/i.sqsh", Mounts: []string{"/a"}, Workdir: "/w", Save: "/s", Name: "n", NameMode: nameAuto, MountHome: true, RemapRoot: true,
			Entrypoint: true, EntrypointLog: true, Writable: true, KeepEnv: []string{"A"}, Unshare: []string{"net"}, GPUs: "none", Trace: &no, Batch: batchHost, Scope: scopeGlobal,
		}},
		{"readonly variable", []string{"image=/i.sqsh"}, []string{"PYXIS_CONTAINER_READONLY=yes", "ENROOT_ROOTFS_WRITABLE=yes"}, &plain},
		{"not readonly", []string{"image=/i.sqsh"}, []string{"PYXIS_CONTAINER_READONLY=no"}, with(func(o *slurmOptions) { o.Writable = true })},
		{"writable before readonly", []string{"image=/i.sqsh"}, []string{"PYXIS_CONTAINER_READONLY=yes", "PYXIS_CONTAINER_WRITABLE=yes"}, with(func(o *slurmOptions) { o.Writable = true })},
		{"squire's before pyxis's", []string{"image=/i.sqsh"}, []string{"PYXIS_CONTAINER_WRITABLE=yes", "SQUIRE_CONTAINER_READONLY=yes"}, &plain},
		{"enroot's", []string{"image=/i.sqsh"}, []string{"ENROOT_MOUNT_HOME=Y", "ENROOT_REMAP_ROOT=maybe", "ENROOT_UNSHARE_IPC=y"}, with(func(o *slurmOptions) { o.MountHome, o.Unshare = true, []string{"ipc"} })},
		{"name alone", []string{"name=n"}, nil, &slurmOptions{Name: "n", NameMode: nameAuto, Batch: batchContainer, Scope: scopeGlobal}},
		{"another step", []string{"name=12.0:exec"}, nil, &slurmOptions{Name: "12.0", NameMode: nameExec, Batch: batchContainer, Scope: scopeGlobal}},
		{"no container", nil, []string{"PYXIS_CONTAINER_MOUNTS=bad", "PYXIS_CONTAINER_UNSHARE=bad"}, &slurmOptions{Batch: batchContainer, Scope: scopeGlobal}},
		{"last variable", []string{"image=/i.sqsh"}, []string{"SQUIRE_CONTAINER_WORKDIR=/a", "SQUIRE_CONTAINER_WORKDIR=/b"}, with(func(o *slurmOptions) { o.Workdir = "/b" })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := document(t, tt.options, tt.env...).resolve()
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

// What pyxis refuses is refused, and what it lets pass or ignores; each with one line that names the option.
func TestSlurmOptionErrors(t *testing.T) {
	const image = "image=/i.sqsh"
	for _, tt := range []struct {
		name    string
		options []string
		want    string // of the line behind the option
	}{
		{"empty image", []string{"image="}, "--container-image: is empty"},
		{"two images", []string{"image=/a", "image=/b"}, "--container-image: given twice: /a and /b"},
		{"long image", []string{"image=" + strings.Repeat("a", 2048)}, "--container-image: "},
		{"file without a path", []string{"image=foo.sqsh"}, "--container-image: foo.sqsh: looks like a file, and is a name in a registry; write ./foo.sqsh"},
		{"unknown scheme", []string{"image=ftp://x"}, "--container-image: ftp://x: want the path"},
		{"https", []string{"image=https://x/y.sqsh"}, "--container-image: https://x/y.sqsh: images are not read over https"},
		{"bad reference", []string{"image=UPPER"}, `--container-image: "UPPER": names of images are in lower case`},
		{"password", []string{"image=me:secret@nvcr.io#x"}, "--container-image: a password has no place"},
		{"name with a slash", []string{"name=a/b"}, "--container-name: a/b: a name has no /"},
		{"empty name", []string{"name=:exec"}, "--container-name: the name is empty"},
		{"long name", []string{"name=" + strings.Repeat("n", 300)}, "--container-name: the name has more than"},
		{"unknown mode", []string{"name=n:x"}, "--container-name: n:x: want NAME:auto"},
		{"empty mode", []string{"name=n:"}, "--container-name: n:: want NAME:auto"},
		{"hidden name", []string{"name=.."}, "--container-name: ..: a name starts with neither"},
		{"empty mounts", []string{image, "mounts="}, "--container-mounts: "},
		{"colon", []string{image, "mounts=:"}, "--container-mounts: "},
		{"empty destination", []string{image, "mounts=/tmp:"}, "--container-mounts: "},
		{"destination without a path", []string{image, "mounts=/tmp:mnt"}, "--container-mounts: "},
		{"unknown flag", []string{image, "mounts=/tmp:/mnt:r0"}, `--container-mounts: mount "/tmp:/mnt:r0": unknown flag "r0"`},
		{"comma at the end", []string{image, "mounts=/tmp,"}, "--container-mounts: "},
		{"root", []string{image, "mounts=/"}, "--container-mounts: "},
		{"above the root", []string{image, "mounts=/tmp:/../x"}, `--container-mounts: mount "/tmp:/../x": the destination is outside of the container: invalid cross-device link`},
		{"above the root after all", []string{image, "mounts=/tmp:./a/../../x:ro"}, "--container-mounts: "},
		{"save to what is a directory", []string{image, "save=/"}, "--container-save: /: is a directory"},
		{"save to a directory without a slash", []string{image, "save=/etc"}, "--container-save: /etc: is a directory"},
		{"empty workdir", []string{image, "workdir="}, "--container-workdir: is empty"},
		{"read-only and writable", []string{image, "writable", "no-writable"}, "--container-writable: excludes --container-readonly"},
		{"home and no home", []string{image, "no-mount-home", "mount-home"}, "--container-mount-home: excludes --no-container-mount-home"},
		{"empty env", []string{image, "env="}, "--container-env: "},
		{"comma at the end of env", []string{image, "env=A,"}, `--container-env: "A,": a part between the commas is empty`},
		{"env with a value", []string{image, "env=A=1"}, "--container-env: A=1: want the name of a variable; it is set with export"},
		{"env with a blank", []string{image, "env=A B"}, "--container-env: A B: not the name"},
		{"unknown namespace", []string{image, "unshare=net,foo"}, "--container-unshare: foo: unknown namespace"},
		{"empty namespace", []string{image, "unshare="}, "--container-unshare: "},
		{"processes", []string{image, "unshare=pid"}, "--container-unshare: pid: tasks of Slurm"},
		{"save to a directory", []string{image, "save=/tmp/"}, "--container-save: /tmp/: is a directory"},
		{"save here", []string{image, "save=."}, "--container-save: .: is a directory"},
		{"save above", []string{image, "save=x/.."}, "--container-save: x/..: is a directory"},
		{"batch", []string{image, "batch=node"}, "--container-batch: node: want container or host"},
		{"empty gpus", []string{image, "gpus="}, "--container-gpus: is empty"},
		{"no image", []string{"mounts=/tmp", "writable"}, "--container-mounts, --container-writable: neither --container-image nor --container-name is given"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := document(t, tt.options).resolve()
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line that starts with %q", err, tt.want)
			}
		})
	}
}

// A variable that is wrong is named, and so is an argument of the plugin.
func TestSlurmOptionErrorsElsewhere(t *testing.T) {
	d := document(t, []string{"image=/i.sqsh", "name=a/b"}, "PYXIS_CONTAINER_WRITABLE=maybe", "SQUIRE_CONTAINER_UNSHARE=x")
	d.Arguments = map[string]string{"container_scope": "node", "importer": "imp", "no_such": "1", "execute_entrypoint": "2"}
	_, err := d.resolve()
	want := []string{
		"plugstack.conf: no_such=1: no such argument",
		"plugstack.conf: container_scope: node: want global or job",
		"plugstack.conf: importer: imp: want an absolute path",
		"--container-name: a/b: a name has no /",
		"PYXIS_CONTAINER_WRITABLE: maybe: want yes or no",
		"plugstack.conf: execute_entrypoint: 2: want yes or no",
		"SQUIRE_CONTAINER_UNSHARE: x: unknown namespace; known are net, ipc, uts and cgroup",
	}
	if err == nil || !slices.Equal(strings.Split(err.Error(), "\n"), want) {
		t.Errorf("got %v\nwant %s", err, strings.Join(want, "\n"))
	}
}

// Arguments of the plugin are what a site decides; those of pyxis are all taken.
func TestSlurmArguments(t *testing.T) {
	d := document(t, []string{"image=/i.sqsh"}, "ENROOT_REMAP_ROOT=no", "PYXIS_CONTAINER_ENTRYPOINT=no")
	d.Arguments = map[string]string{
		"runtime_path": "/run/pyxis", "execute_entrypoint": "1", "container_scope": "job", "sbatch_support": "1", "use_enroot_load": "0",
		"importer": "/opt/importer", "use_squashfuse": "1", "mount_home": "yes", "remap_root": "yes", "writable": "yes", "batch": "host",
	}
	o, err := d.resolve()
	want := &slurmOptions{Image: "/i.sqsh", Path: "/i.sqsh", MountHome: true, Writable: true, Batch: batchHost, Scope: scopeJob, Importer: &importer{"/opt/importer", []string{"PYXIS_RUNTIME_PATH=/run/pyxis"}}}
	if err != nil || !reflect.DeepEqual(o, want) {
		t.Errorf("got %+v, %v", o, err)
	}
}

// The site of the node has the last word, and says what is so by default; the one of the login node is not asked.
func TestSlurmSite(t *testing.T) {
	needRoot(t)
	site := filepath.Join(useSite(t, map[string]string{policyName: "[containers]\nwritable = 'default'\nremap-root = 'forbid'\n"}), policyName)
	for _, tt := range []struct {
		context string
		options []string
		want    string // of the error
		write   bool
	}{
		{"", []string{"image=/i"}, "", true},
		{"", []string{"image=/i", "no-writable"}, "", false},
		{"", []string{"image=/i", "remap-root"}, "to be root inside: forbidden here (" + site + ")", false},
		{contextLocal, []string{"image=/i", "remap-root"}, "", false},
	} {
		d := document(t, tt.options)
		d.Context = tt.context
		switch o, err := d.resolve(); {
		case err != nil && err.Error() != tt.want, err == nil && (tt.want != "" || o.Writable != tt.write):
			t.Errorf("%+v: got %+v, %v", tt, o, err)
		}
	}
}

// In an allocation options without an image are for the steps to come, but not those of a batch script in a container.
func TestSlurmOptionsInAllocations(t *testing.T) {
	for _, tt := range []struct {
		program string // "": it is the order of a batch step
		options []string
		ok      bool
	}{
		{"", []string{"mounts=/tmp"}, false},
		{"", []string{"mounts=/tmp", "batch=host"}, true},
		{"salloc", []string{"mounts=/tmp"}, true},
		{"sbatch", []string{"mounts=/tmp"}, false},
		{"sbatch", []string{"mounts=/tmp", "batch=host"}, true},
		{"sbatch", []string{"batch=host"}, true},
		{"salloc", []string{"mounts=tmp"}, false},
	} {
		d := document(t, tt.options)
		if d.Context, d.Program = contextAllocator, tt.program; tt.program == "" {
			d.Context, d.Batch = "", true
		}
		if _, err := d.resolve(); (err == nil) != tt.ok {
			t.Errorf("%+v: got %v", tt, err)
		}
	}
}

func TestSlurmDocument(t *testing.T) {
	for text, want := range map[string]string{
		`{"version":2}`: "",
		`{"version":2,"given":[{"name":"container-image","value":"/i"},{"name":"container-writable"},{"name":"container-mounts","value":"/a"},
			{"name":"container-remap-root"},{"name":"no-container-remap-root"}],"job":1,"context":"local"}`: "--container-remap-root: excludes --no-container-remap-root",
		`{"version":2,"given":[{"name":"container-writable"},{"name":"container-readonly"},{"name":"container-image","value":"/i"}],"context":"local"}`: "--container-writable: excludes --container-readonly",
		`{"version":9}`: "for another squire: its version is 9",
		`{"version":2,"given":[{"name":"container-what","value":"x"}]}`:         "there is no --container-what",
		`{"version":2,"given":[{"name":"container-image","value":"/a\u0000"}]}`: "NUL",
		`{"version":2`: "what the Slurm plugin says: unexpected end",
		``:             "what the Slurm plugin says: unexpected end",
	} {
		var d slurmDocument
		err := readSlurmDocument(strings.NewReader(text), &d)
		if err == nil {
			_, err = d.resolve()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// The plugin writes bytes, and gets them back.
func TestSlurmDocumentBytes(t *testing.T) {
	text := `{"version":2,"given":[{"name":"container-image","value":"/\u00c3\u00a9"}],"plugin":["squire=/\u00ff"],"env":["A=\u00e9\u007f","B=plain"],"cwd":"/\u0080"}`
	var d slurmDocument
	if err := readSlurmDocument(strings.NewReader(text), &d); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(d.Options, map[string]slurmRaw{"image": {"/é"}}) || !reflect.DeepEqual(d.Arguments, map[string]string{"squire": "/\xff"}) ||
		!slices.Equal(d.Env, []string{"A=\xe9\x7f", "B=plain"}) || d.Cwd != "/\x80" {
		t.Errorf("got %+v", d)
	}
	if got := slurmByte("é\u0100"); got != "é\u0100" {
		t.Errorf("what the plugin cannot have written became %q", got)
	}
}

// The options of a batch script on the host become the defaults of its steps, which resolve to the same.
func TestSlurmStepDefaults(t *testing.T) {
	options := []string{
		"image=./i.sqsh", "mounts=/a", "mounts=/b:/c", "workdir=/w", "name=n", "no-mount-home", "remap-root", "no-writable", "env=A,B", "unshare=net",
		"gpus=none", "entrypoint", "entrypoint-log", "trace", "batch=host", "save=/s",
	}
	d := document(t, options)
	d.Context, d.Batch = "", true
	o, err := d.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if o.Batch != batchHost {
		t.Errorf("the script runs in %s", o.Batch)
	}
	step := document(t, nil, d.stepDefaults(o)...)
	step.Cwd = "/elsewhere"
	got, err := step.resolve()
	if err != nil {
		t.Fatal(err)
	}
	got.Image, got.Batch = o.Image, o.Batch
	if !reflect.DeepEqual(got, o) {
		t.Errorf("got  %+v\nwant %+v", got, o)
	}
}

// runSlurmCheck runs "squire slurm check" in this process.
func runSlurmCheck(t *testing.T, stdin string) (status int, stderr string) {
	t.Helper()
	cmd := rootCommand("slurm", "check")
	cmd.SetArgs([]string{"slurm", "check"})
	var errs bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetErr(&errs)
	var ended exitError
	if err := cmd.Execute(); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return int(ended), errs.String()
}

func TestSlurmCheck(t *testing.T) {
	if status, said := runSlurmCheck(t, `{"version":2,"given":[{"name":"container-image","value":"/i.sqsh"}]}`); status != 0 || said != "" {
		t.Errorf("status %d, %q", status, said)
	}
	status, said := runSlurmCheck(t, `{"version":2,"given":[{"name":"container-image","value":""},{"name":"container-unshare","value":"x"},
		{"name":"container-mounts","value":"/a:b,/a:b"}]}`)
	if status != exitBadOption || strings.Count(said, "\n") != 3 {
		t.Errorf("status %d, %q, want three lines", status, said)
	}
}

// The options become the flags of "squire run", and messages name the option.
func TestSlurmRunOptions(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("SQUIRE_TRACE", "0")
	missing := filepath.Join(home, "missing")
	o, err := document(t, []string{"image=/i.sqsh", "mounts=" + missing + ":/x", "mount-home", "writable", "workdir=/w", "env=A", "unshare=net", "gpus=none"}).resolve()
	if err != nil {
		t.Fatal(err)
	}
	r, err := o.runOptions()
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.spec(o.Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []runtime.Mount{{Source: home, Target: home}, {Source: missing, Target: "/x"}}
	if !s.Writable || s.Upper != "" || s.Workdir != "/w" || !slices.Equal(s.KeepEnv, []string{"A"}) || !slices.Equal(s.Unshare, []string{"net"}) ||
		!reflect.DeepEqual(s.Mounts, want) || s.Image != "/i.sqsh" || r.traced {
		t.Errorf("got %+v", s)
	}
	if err := r.checkSources(s); err == nil || err.Error() != "--container-mounts: source path does not exist: "+missing+": no such file or directory" {
		t.Errorf("got %v", err)
	}
}

func TestTaskEnviron(t *testing.T) {
	spec := &runtime.Spec{KeepEnv: []string{"KEPT", "LC_ALL"}, Environ: []string{"OTHER=1"}}
	task := []string{
		"A=host", "KEPT=host", "LANG=de", "LANGUAGE=de", "LC_ALL=C", "PATH=/usr/bin", "PWD=/home", "OLDPWD=/x", "SLURM_PROCID=7", "SLURM_LOCALID=3",
		"SAME=1", "RANK=0", "EMPTY=",
	}
	image := []string{"PATH=/conda/bin", "A=image", "KEPT=image", "SAME=1", "PYTORCH_VERSION=2"}
	set, unset := taskEnviron(spec, runtime.TaskVariables(spec, image), task, image, "/workspace")
	slices.Sort(set)
	slices.Sort(unset)
	if want := []string{"A=image", "LOCAL_RANK=3", "PATH=/conda/bin", "PWD=/workspace", "PYTORCH_VERSION=2", "RANK=7"}; !slices.Equal(set, want) {
		t.Errorf("set %q, want %q", set, want)
	}
	if want := []string{"LANG", "LANGUAGE", "OLDPWD"}; !slices.Equal(unset, want) {
		t.Errorf("unset %q, want %q", unset, want)
	}
	if !slices.Equal(spec.Environ, []string{"OTHER=1"}) {
		t.Error("it has changed the spec")
	}
}

// What taskEnviron leaves out, as nothing happens to it, changes nothing.
func TestTaskVariables(t *testing.T) {
	task := []string{
		"A=host", "B=b", "A=again", "KEPT=host", "LC_ALL=C", "HOME=/home", "SLURM_STEP_NODELIST=n[1-2]", "SLURM_JOB_ID=7", "SLURM_STEP_NUM_TASKS=2",
		"SLURM_PROCID=1", "MASTER_PORT=1", "NONE", "C=c", "=x", "OLDPWD=/", "DRIVER=host",
	}
	all := map[string]bool{}
	for _, kv := range task {
		name, _, _ := strings.Cut(kv, "=")
		all[name] = true
	}
	for _, spec := range []*runtime.Spec{{}, {RemapRoot: true, KeepEnv: []string{"KEPT", "C"}}, {SetEnv: []string{"B=set", "NEW=1"}}} {
		for _, image := range [][]string{nil, {"A=image", "KEPT=image", "PYTORCH_VERSION=2", "DRIVER=", "PATH=/x"}} {
			touched := runtime.TaskVariables(spec, image)
			set, unset := taskEnviron(spec, touched, task, image, "/work")
			wantSet, wantUnset := taskEnviron(spec, all, task, image, "/work")
			slices.Sort(set)
			slices.Sort(wantSet)
			if !slices.Equal(set, wantSet) || !slices.Equal(unset, wantUnset) {
				t.Errorf("%+v, %q: got %q and %q, want %q and %q", spec, image, set, unset, wantSet, wantUnset)
			}
			if touched["C"] {
				t.Error("all variables count")
			}
		}
	}
}

func TestSlurmJoining(t *testing.T) {
	o := &slurmOptions{Name: "n", Unshare: []string{"ipc", "net"}}
	if got := o.ignoredByJoining(); got != "" {
		t.Errorf("got %q", got)
	}
	o.Mounts = []string{"/a"}
	if got := o.ignoredByJoining(); got != "ignoring --container-mounts: the container n runs already" {
		t.Errorf("got %q", got)
	}
	if err := o.checkJoined([]string{"user", "mnt", "net", "ipc"}); err != nil {
		t.Error(err)
	}
	if err := o.checkJoined([]string{"user", "ipc"}); err == nil || !strings.Contains(err.Error(), "not in a separate network namespace") {
		t.Errorf("got %v", err)
	}
}

func TestSlurmText(t *testing.T) {
	err := fmt.Errorf("bind /a\n: %w; open x: %w", unix.ENOENT, unix.EACCES)
	if got := slurmText(errors.New("a; --workdir and --container-env, --mounts: x")); got != "a; --container-workdir and --container-env, --container-mounts: x" {
		t.Errorf("got %q", got)
	}
	if got := slurmText(err); got != "bind /a?: No such file or directory; open x: Permission denied" {
		t.Errorf("got %q", got)
	}
}

// Whatever a user writes, there is a result or an error of lines; nothing in a result leads elsewhere.
func FuzzSlurmOptions(f *testing.F) {
	f.Add("image", "ubuntu:24.04", "mounts", "/a:/b:ro,/c", "A=1")
	f.Add("image", "./x.sqsh", "name", "n:create", "PYXIS_CONTAINER_ENV=A,B")
	f.Add("name", "../..", "save", "x/", "PWD=/")
	f.Add("writable", "true", "unshare", "net,,", "SQUIRE_CONTAINER_IMAGE=me@host#img")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, env string) {
		text, err := json.Marshal(map[string]any{
			"version": 1, "env": []string{env}, "cwd": "/cwd", "context": "local",
			"given": []slurmGiven{{Name: "container-" + name1, Value: value1}, {Name: name2, Value: value2}, {Name: "container-" + name2, Value: value2}},
		})
		if err != nil {
			t.Skip()
		}
		var d slurmDocument
		if err = readSlurmDocument(bytes.NewReader(text), &d); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		o, err := d.resolve()
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if line == "" {
					t.Errorf("an empty line in %q", err)
				}
			}
			return
		}
		if (o.Path == "") == (o.Source == "") && o.Image != "" {
			t.Errorf("%s: neither or both of %q and %q", text, o.Path, o.Source)
		}
		if strings.ContainsAny(o.Name, "/ \n\x00") || strings.HasPrefix(o.Name, ".") {
			t.Errorf("name %q", o.Name)
		}
		for _, p := range []string{o.Path, o.Save} {
			if p != "" && (!filepath.IsAbs(p) || p != filepath.Clean(p)) {
				t.Errorf("path %q", p)
			}
		}
		for _, n := range o.KeepEnv {
			if !runtime.ValidName(n) {
				t.Errorf("variable %q", n)
			}
		}
		if fmt.Sprint(o.Batch, o.Scope) == "" {
			t.Error("no defaults")
		}
	})
}
