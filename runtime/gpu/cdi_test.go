package gpu

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// nvidiaSpec has the form of what nvidia-ctk writes.
const nvidiaSpec = `---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
              major: 195
              fileMode: 438
              permissions: rw
        hooks:
            - hookName: createContainer
              path: /usr/bin/nvidia-cdi-hook
              args:
                - nvidia-cdi-hook
                - create-symlinks
                - --link
                - ../card1::/dev/dri/by-path/pci-0000:3b:00.0-card
    - name: GPU-00000000-0000-4000-8000-000000000000
      containerEdits:
        deviceNodes:
        - path: /dev/nvidia0
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void # of the other tools
        - 'QUOTED=it''s'
        - "ALSO=\"x\""
        - X=a:b
    deviceNodes:
        - path: /dev/nvidiactl
          hostPath: /dev/nvidiactl
    mounts:
        - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
          containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
          options: [ro, nosuid, nodev, bind]
        - {hostPath: /run/nvidia-persistenced/socket, containerPath: /run/nvidia-persistenced/socket}
    additionalGids: [44]
`

const jsonSpec = `{"cdiVersion": "1.1.0", "kind": "amd.com/gpu", "annotations": {"a": "b"},
 "devices": [{"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/kfd", "type": "c", "minor": 0}, {"path": "/dev/dri/renderD128", "uid": 0}]}}]}`

// TestParseCDI compares with the CNCF's library.
func TestParseCDI(t *testing.T) {
	for _, text := range []string{nvidiaSpec, jsonSpec} {
		ours, err := parseCDI([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := cdi.ParseSpec([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		want := &cdiSpec{kind: theirs.Kind, edits: editsOf(&cdi.ContainerEdits{ContainerEdits: &theirs.ContainerEdits})}
		for _, d := range theirs.Devices {
			want.devices = append(want.devices, cdiDevice{d.Name, editsOf(&cdi.ContainerEdits{ContainerEdits: &d.ContainerEdits})})
		}
		if !reflect.DeepEqual(ours, want) {
			t.Errorf("got  %+v\nwant %+v", ours, want)
		}
	}
}

// editsOf turns the CNCF's structure into ours.
func editsOf(e *cdi.ContainerEdits) (o cdiEdits) {
	o.env, o.hooks = e.Env, len(e.Hooks)
	for _, n := range e.DeviceNodes {
		node := cdiNode{target: n.Path, source: n.Path, major: -1, minor: -1}
		if n.HostPath != "" {
			node.source = n.HostPath
		}
		if n.Major != 0 {
			node.major = n.Major
		}
		if n.Type == "c" { // the one in jsonSpec that has a minor number
			node.minor = n.Minor
		}
		o.nodes = append(o.nodes, node)
	}
	for _, m := range e.Mounts {
		o.mounts = append(o.mounts, Mount{m.HostPath, m.ContainerPath, slices.DeleteFunc(m.Options, func(s string) bool { return s == "bind" })})
	}
	if len(e.AdditionalGIDs) > 0 {
		o.others = []string{"additionalGids"}
	}
	return o
}

func TestParseCDIRefuses(t *testing.T) {
	spec := func(edits string) string {
		return `{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":` + edits + `}]}`
	}
	if _, err := parseCDI([]byte(spec(`{}`))); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, text, want string }{
		{"empty", "", "cdiVersion"},
		{"binary", "\x00\xff", "UTF-8"},
		{"two values", spec("{}") + "{}", "more than one"},
		{"deep", strings.Repeat("[", 1<<20), "neither"},
		{"deep in time", "a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "too deep"},
		{"no devices", `{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[]}`, "no devices"},
		{"version", `{"cdiVersion":"9.0.0","kind":"v.com/c","devices":[]}`, "cdiVersion"},
		{"kind", `{"cdiVersion":"1.0.0","kind":"../c","devices":[{"name":"d"}]}`, "VENDOR/CLASS"},
		{"name", `{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[{"name":"a/b"}]}`, "device name"},
		{"name twice", `{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[{"name":"a"},{"name":"a"}]}`, "device name"},
		{"unknown field", spec(`{"privileged":true}`), `unknown field "privileged"`},
		{"climbing source", spec(`{"mounts":[{"hostPath":"/usr/../etc","containerPath":"/x"}]}`), "hostPath"},
		{"climbing target", spec(`{"mounts":[{"hostPath":"/usr","containerPath":"/x/.."}]}`), "containerPath"},
		{"relative", spec(`{"mounts":[{"hostPath":"usr","containerPath":"/x"}]}`), "hostPath"},
		{"root", spec(`{"mounts":[{"hostPath":"/","containerPath":"/x"}]}`), "hostPath"},
		{"option", spec(`{"mounts":[{"hostPath":"/usr","containerPath":"/x","options":["remount"]}]}`), "unknown option"},
		{"type", spec(`{"mounts":[{"hostPath":"/usr","containerPath":"/x","type":"overlay"}]}`), "type"},
		{"NUL", spec(`{"mounts":[{"hostPath":"/usr\u0000","containerPath":"/x"}]}`), "NUL"},
		{"block device", spec(`{"deviceNodes":[{"path":"/dev/sda","type":"b"}]}`), "character device"},
		{"FIFO", spec(`{"deviceNodes":[{"path":"/dev/p","type":"p"}]}`), "character device"},
		{"climbing node", spec(`{"deviceNodes":[{"path":"/dev/x","hostPath":"/dev/../etc/shadow"}]}`), "hostPath"},
		{"number", spec(`{"deviceNodes":[{"path":"/dev/x","major":-3}]}`), "major"},
		{"env", spec(`{"env":["=x"]}`), "NAME=VALUE"},
		{"env number", spec(`{"env":[5]}`), "not a string"},
		{"list", spec(`{"env":"A=b"}`), "not a list"},
		{"anchor", "a: &x b", "not read"},
		{"alias", "a: *x", "not read"},
		{"tag", "a: !!str b", "not read"},
		{"block scalar", "a: |\n  b", "not read"},
		{"tab", "a:\tb", "tab"},
		{"several lines", "a: b\n  c", "several lines"},
		{"documents", "a: b\n---\nc: d", "more than one document"},
		{"key twice", "a: b\na: c", "twice"},
		{"merge", "<<: b", "neither"},
		{"indentation", "a:\n    b: c\n  d: e", "belong"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseCDI([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// sameYAML compares what is read of YAML with what a library for all of it
// reads. Ours may take a string for a number, where some version of YAML does.
func sameYAML(ours, theirs any) bool {
	switch o := ours.(type) {
	case map[string]any:
		t, ok := theirs.(map[string]any)
		if !ok || len(t) != len(o) {
			return false
		}
		for k, v := range o {
			tv, ok := t[k]
			if !ok || !sameYAML(v, tv) {
				return false
			}
		}
		return true
	case []any:
		t, ok := theirs.([]any)
		return ok && slices.EqualFunc(o, t, sameYAML)
	case json.Number:
		switch theirs.(type) {
		case map[string]any, []any, nil:
			return false
		}
		return true
	}
	return ours == theirs
}

func FuzzYAML(f *testing.F) {
	for _, s := range []string{
		nvidiaSpec, "- a\n- - b\n  - c: d\n    e: f\n-\n  g\n", "a:\n- b\n- c: {d: e, 'f': \"g\"}\n", "a: [b, [c], {}, []]  # d\n", "x",
		"a: yes\nb: 0x10\nc: 1_000\nd: 2001-12-14\ne: ~\nf: 1:30\ng: 1.2.3\nh: .inf\ni: =\n", "a: 'b'' c' # d", "a: b#c\nd: e:f\n", "a: -\n", "-a: b", "a:\n\n# c\n  b: c\n",
		"a: \"x\\/y\"", "- \n- a", "a: {b: }", "a: [b,]", "? a", "a: -1\nb: - c", "{a: b}", "[a]", "- [a]\n- {b: c}", "a: \"b\" c", "---\na: b", "--- a", "a: b\n...\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ours, err := parseYAML([]byte(s))
		if err != nil {
			return
		}
		var theirs any
		if err := yaml.Unmarshal([]byte(s), &theirs); err != nil {
			t.Fatalf("%q: read as %v, but is no YAML: %v", s, ours, err)
		}
		if !sameYAML(ours, theirs) {
			t.Fatalf("%q: read as %#v, but is %#v", s, ours, theirs)
		}
	})
}

func FuzzCDI(f *testing.F) {
	f.Add([]byte(nvidiaSpec))
	f.Add([]byte(jsonSpec))
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, err := parseCDI(b)
		if err != nil {
			return
		}
		for _, d := range append(spec.devices, cdiDevice{"all", spec.edits}) {
			if _, ok := parseCDIName(spec.kind + "=" + d.name); !ok {
				t.Errorf("name %q", d.name)
			}
			for _, n := range d.edits.nodes {
				clean(t, n.source)
				clean(t, n.target)
			}
			for _, m := range d.edits.mounts {
				clean(t, m.Source)
				clean(t, m.Target)
			}
			for _, kv := range d.edits.env {
				if strings.IndexByte(kv, '=') < 1 || strings.ContainsRune(kv, 0) {
					t.Errorf("variable %q", kv)
				}
			}
		}
	})
}

func clean(t *testing.T, p string) {
	if !strings.HasPrefix(p, "/") || p == "/" || strings.Contains(p+"/", "/../") || strings.ContainsRune(p, 0) {
		t.Errorf("path %q", p)
	}
}
