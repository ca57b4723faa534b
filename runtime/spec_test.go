package runtime

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestEnvironment(t *testing.T) {
	s := &Spec{
		Environ: []string{"OLDPWD=/", "A=host", "B=host", "LANG=de_DE", "LC_ALL=de_DE", "PATH=/opt/host/bin", "HOME=/home/u", "SLURM_PROCID=3", "SLURM_LOCALID=1", "EMPTY="},
		KeepEnv: []string{"B", "LC_ALL"},
		SetEnv:  []string{"C=set", "D=a=b"},
	}
	image := parseEnvironment([]byte("# comment\nA=image\nB=image\nC=image\nPYTORCH_VERSION=\"2.1\"\nENROOT_X=1\nnot an assignment\n1BAD=x\nQ='a b'\nexport E=f\n"))
	want := []string{
		"A=image", "B=host", "LC_ALL=de_DE", "PATH=" + DefaultPath, "HOME=/home/u", "SLURM_PROCID=3", "SLURM_LOCALID=1", "EMPTY=",
		"C=set", "PYTORCH_VERSION=2.1", "Q=a b", "E=f", "PWD=/w", "RANK=3", "LOCAL_RANK=1", "D=a=b",
	}
	if got := environment(s, image, "/w"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestEnvironmentPath(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		keep       []string
		image      []string
	}{
		{name: "default", want: "PATH=" + DefaultPath},
		{name: "image", image: []string{"PATH=/conda/bin:/bin"}, want: "PATH=/conda/bin:/bin"},
		{name: "kept", image: []string{"PATH=/conda/bin:/bin"}, keep: []string{"PATH"}, want: "PATH=/host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &Spec{Environ: []string{"PATH=/host"}, KeepEnv: tt.keep}
			if got := environment(s, tt.image, "/"); !reflect.DeepEqual(got, []string{tt.want, "PWD=/"}) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestEnvironmentRemappedRoot(t *testing.T) {
	s := &Spec{RemapRoot: true, Environ: []string{"HOME=/home/u", "USER=u"}, KeepEnv: []string{"USER"}}
	want := []string{"HOME=/root", "USER=u", "LOGNAME=root", "PATH=" + DefaultPath, "PWD=/"}
	if got := environment(s, nil, "/"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What PyTorch wants to know is set where nobody has, and in its images only.
func TestEnvironmentTorch(t *testing.T) {
	slurm := []string{
		"SLURM_PROCID=5", "SLURM_LOCALID=1", "SLURM_STEP_NUM_TASKS=8", "SLURM_STEP_NODELIST=n[03-04]", "SLURM_JOB_ID=4537", "RANK=x",
	}
	for _, tt := range []struct{ image, more, want string }{
		{"PYTORCH_VERSION=2", "A=1", "RANK=5 LOCAL_RANK=1 WORLD_SIZE=8 MASTER_ADDR=n03 MASTER_PORT=61001"},
		{"PYTORCH_VERSION=2", "MASTER_ADDR=me", "RANK=5 LOCAL_RANK=1 WORLD_SIZE=8 MASTER_ADDR=me MASTER_PORT=61001"},
		{"OTHER=1", "A=1", "RANK=x"},
	} {
		env := environment(&Spec{Environ: slices.Concat(slurm, []string{tt.more})}, []string{tt.image}, "/")
		var got []string
		for _, name := range []string{"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} {
			for _, kv := range env {
				if strings.HasPrefix(kv, name+"=") {
					got = append(got, kv)
				}
			}
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%s, %s: got %s, want %s", tt.image, tt.more, text, tt.want)
		}
	}
}

func TestFirstHost(t *testing.T) {
	for list, want := range map[string]string{
		"": "", "a": "a", "a,b": "a", "n[1-4]": "n1", "n[01,7-9],m": "n01", "n[7]": "n7", "r[1-2]n[03-04]-ib,x": "r1n03-ib", "n[1-4": "", "n1-x": "n1-x",
	} {
		if got := firstHost(list); got != want {
			t.Errorf("%q: got %q, want %q", list, got, want)
		}
	}
}

// A hostile image's environment must not cost more than its size.
func TestEnvironmentLarge(t *testing.T) {
	var b strings.Builder
	for i := range 100000 {
		b.WriteString("V" + strings.Repeat("x", i%5) + string(rune('a'+i%26)) + "=1\n")
		if i%3 == 0 {
			b.WriteString("W" + strings.Repeat("y", i%7) + "\x00=1\n")
		}
	}
	if n := len(parseEnvironment([]byte(b.String()))); n != 5*26 {
		t.Errorf("%d variables, want %d", n, 5*26)
	}
}

func TestSpecCheck(t *testing.T) {
	for name, s := range map[string]Spec{
		"set without value":  {SetEnv: []string{"A"}},
		"set without name":   {SetEnv: []string{"=x"}},
		"keep with value":    {KeepEnv: []string{"A=b"}},
		"empty name to keep": {KeepEnv: []string{""}},
		"NUL in argument":    {Command: []string{"a\x00b"}},
		"NUL in workdir":     {Workdir: "/\x00"},
		"unknown namespace":  {Unshare: []string{"pid", "time"}},
		"user namespace":     {Unshare: []string{"user"}},
		"empty namespace":    {Unshare: []string{""}},
		"host name's bytes":  {Hostname: "a\n127.0.0.1 b"},
		"host name's length": {Hostname: strings.Repeat("a", 65)},
		"host name's dash":   {Hostname: "-a"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Plan(&s, &Host{}); err == nil {
				t.Error("no error")
			}
		})
	}
}
