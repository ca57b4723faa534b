package runtime

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden plans in testdata")

// laptop is a host with little, node one with much.
var (
	laptop = Host{UID: 1000, GID: 1000, Devices: []string{"/dev/null", "/dev/tty"}}
	node   = Host{
		UID: 1000, GID: 100, Terminal: "/dev/pts/3", User: "me:x:1000:100::/home/me:/bin/zsh",
		Devices: []string{"/dev/null", "/dev/zero", "/dev/nvidia0", "/dev/nvidiactl", "/dev/infiniband/uverbs0"},
		Present: []string{"/etc/resolv.conf", "/etc/hosts", "/dev/shm", "/dev/mqueue", "/dev/hugepages", cgroup2File},
	}
)

func TestPlan(t *testing.T) {
	asRoot := node
	asRoot.Root, asRoot.IDsMapped, asRoot.UID, asRoot.GID = true, true, 0, 0
	nested := asRoot // root of somebody's user namespace
	nested.IDsMapped = false
	tests := []struct {
		name string
		spec Spec
		host Host
	}{
		{"plain", Spec{Image: "/i.sqsh", Command: []string{"id", "-u"}}, laptop},
		{"node", Spec{Image: "/i.sqsh"}, node},
		{"root", Spec{Image: "/i.sqsh"}, asRoot},
		{"mounts", Spec{Image: "/i.sqsh", Workdir: "data/x", Mounts: []Mount{{Source: "/l", Target: "/data", Flags: []string{"ro"}}, {Source: "/m", Target: "/data/m"}, {Source: "/t", Target: "/tmp/t"}}}, laptop},
		{"changes", Spec{Image: "/i.sqsh", Mounts: []Mount{
			{Source: "tmpfs", Target: "/s", Flags: []string{"size=1G", "x-create=dir"}},
			{Source: "/l", Target: "/s/l", Flags: []string{"rw", "x-create=file"}},
			{Source: "umount", Target: "/s"},
			{Source: "/l", Target: "/s/m"},
			{Source: "/l", Target: "/s/m"},
			{Source: "umount", Target: "/tmp", Flags: []string{"nofail"}},
			{Source: "/l", Target: "/tmp/l"},
		}}, laptop},
		{"writable", Spec{Image: "/i.sqsh", Writable: true}, laptop},
		{"upper", Spec{Image: "/i.sqsh", Writable: true, Upper: "/scratch/u", RemapRoot: true}, laptop},
		{"nested", Spec{Image: "/i.sqsh", Writable: true}, nested},
		{"unshare", Spec{Image: "/i.sqsh", Unshare: []string{"cgroup", "ipc", "net", "pid"}, Hostname: "node-1"}, node},
		{"pid", Spec{Image: "/i.sqsh", Unshare: []string{"pid"}}, laptop},
		{"dir", Spec{Dir: "/srv/root"}, laptop},
		{"within", Spec{Dir: "/srv/root", DirWithin: []string{"/srv"}, Mounts: []Mount{{Source: "/l", Target: "/l", Within: []string{"/l", "/m"}}}}, laptop},
		{"entrypoint", Spec{Image: "/i.sqsh", Command: []string{"--help"}, Entrypoint: true}, laptop},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ops, err := Plan(&tt.spec, &tt.host)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, op := range ops {
				b.WriteString(op.String() + "\n")
			}
			golden := filepath.Join("testdata", tt.name+".plan")
			if *update {
				if err = os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
			}
		})
	}
}

// TestPlanJoinHides: devices go before anything of the command's happens.
func TestPlanJoinHides(t *testing.T) {
	h := &Host{UID: 1000, GID: 1000}
	s := &Spec{Image: "x.sqsh", Command: []string{"true"}, Hide: []string{"/dev/nvidia1"}}
	ops, err := PlanJoin(s, h)
	if err != nil {
		t.Fatal(err)
	}
	if len(ops) < 3 || ops[0].Do != OpEnter || ops[1].Do != OpHide || !slices.Equal(ops[1].Args, s.Hide) {
		t.Errorf("the plan is %v", ops)
	}
	s.Hide = nil
	if ops, err = PlanJoin(s, h); err != nil || slices.ContainsFunc(ops, func(op Op) bool { return op.Do == OpHide }) {
		t.Errorf("nothing to hide: %v, %v", ops, err)
	}
}

func TestCheckHidden(t *testing.T) {
	if err := checkHidden([]string{"/dev/nvidia0", "/dev/dri/card0"}); err != nil {
		t.Error(err)
	}
	for _, n := range []string{"", "/", "/dev", "/dev/", "/etc/passwd", "dev/nvidia0", "/dev/../etc/passwd", "/dev//x", "/dev/x/"} {
		if checkHidden([]string{n}) == nil {
			t.Errorf("%q may be hidden", n)
		}
	}
}
