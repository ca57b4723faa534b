package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// What Slurm passes on and what was meant: Slurm keeps the last value of an option and both of two opposites.
func TestSlurmGiven(t *testing.T) {
	const left = "SLURM_SPANK__SLURM_SPANK_OPTION_squire_container_"
	for name, tt := range map[string]struct {
		context string
		given   []string // NAME=VALUE
		env     []string
		want    map[string]slurmRaw
		meant   string
	}{
		"one":   {"local", []string{"container-image=/i"}, nil, map[string]slurmRaw{"image": {"/i"}}, ""},
		"twice": {"local", []string{"container-image=/i", "container-image=/j"}, nil, map[string]slurmRaw{"image": {"/i", "/j"}}, ""},
		"same":  {"local", []string{"container-image=/i", "container-image=/i"}, nil, map[string]slurmRaw{"image": {"/i"}}, ""},
		"flags": {
			"local",
			[]string{"container-writable=", "no-container-mount-home=", "container-trace="},
			nil,
			map[string]slurmRaw{"writable": {"true"}, "mount-home": {"false"}, "trace": {"true"}},
			"",
		},
		"opposites":  {"local", []string{"container-writable=", "container-readonly="}, nil, map[string]slurmRaw{"writable": {"true", "false"}}, ""},
		"list":       {"local", []string{"container-mounts=/a", "container-mounts=/b,/c"}, nil, map[string]slurmRaw{"mounts": {"/a,/b,/c"}}, `{"mounts":"/a,/b,/c"}`},
		"overridden": {"local", []string{"container-image=/i", "container-image=/j"}, []string{left + "image=/i"}, map[string]slurmRaw{"image": {"/j"}}, `{"image":"/j"}`},
		"opposite overridden": {
			"local",
			[]string{"container-writable=", "container-readonly="},
			[]string{left + "writable="},
			map[string]slurmRaw{"writable": {"false"}},
			`{"writable":"false"}`,
		},
		"list inherited": {
			"local",
			[]string{"container-mounts=/b"},
			[]string{left + "mounts=/b", `SLURM_SQUIRE_OPTIONS={"mounts":"/a,/b"}`},
			map[string]slurmRaw{"mounts": {"/a,/b"}},
			`{"mounts":"/a,/b"}`,
		},
		"list inherited, overridden": {
			"local",
			[]string{"container-mounts=/b", "container-mounts=/c"},
			[]string{left + "mounts=/b", `SLURM_SQUIRE_OPTIONS={"mounts":"/a,/b"}`},
			map[string]slurmRaw{"mounts": {"/c"}},
			`{"mounts":"/c"}`,
		},
		"step":            {"", []string{"container-mounts=/b"}, []string{`SLURM_SQUIRE_OPTIONS={"mounts":"/a,/b"}`}, map[string]slurmRaw{"mounts": {"/a,/b"}}, ""},
		"step, old":       {"", []string{"container-mounts=/b"}, []string{`SLURM_SQUIRE_OPTIONS={"mounts":"/a,/bb"}`}, map[string]slurmRaw{"mounts": {"/b"}}, ""},
		"step, not JSON":  {"", []string{"container-mounts=/b"}, []string{`SLURM_SQUIRE_OPTIONS={"mounts":3}`}, map[string]slurmRaw{"mounts": {"/b"}}, ""},
		"step, later":     {"", []string{"container-image=/i", "container-image=/j"}, nil, map[string]slurmRaw{"image": {"/j"}}, ""},
		"step, opposites": {"", []string{"container-writable=", "container-readonly="}, []string{`SLURM_SQUIRE_OPTIONS={"writable":"false"}`}, map[string]slurmRaw{"writable": {"false"}}, ""},
	} {
		d := &slurmDocument{Version: 1, Context: tt.context, Env: tt.env}
		for _, g := range tt.given {
			n, v, _ := strings.Cut(g, "=")
			d.Given = append(d.Given, slurmGiven{n, v})
		}
		d.gather()
		if !reflect.DeepEqual(d.Options, tt.want) {
			t.Errorf("%s: got %v, want %v", name, d.Options, tt.want)
		}
		if tt.context != "" && d.meantText() != tt.meant {
			t.Errorf("%s: got %s to pass on, want %s", name, d.meantText(), tt.meant)
		}
	}
}

// A path need not be UTF-8, and JSON has to be.
func TestSlurmMeantBytes(t *testing.T) {
	path := "/\xff\xc3\xa9"
	d := &slurmDocument{Context: "local", Given: []slurmGiven{{"container-mounts", "/a"}, {"container-mounts", path}}}
	d.gather()
	text := d.meantText()
	if !json.Valid([]byte(text)) {
		t.Fatalf("%q is not JSON", text)
	}
	step := &slurmDocument{Given: []slurmGiven{{"container-mounts", path}}, Env: []string{slurmMeantVariable + "=" + text}}
	step.gather()
	if got := step.Options["mounts"]; len(got) != 1 || got[0] != "/a,"+path {
		t.Errorf("got %q", got)
	}
}
