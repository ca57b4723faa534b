package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseRunOptions(t *testing.T) {
	o, err := parseRunOptions([]string{"-image", "i", "-user", "7", "-crowd", "3", "-peer", "podman=podman run ROOT"})
	if err != nil || o.user != "7" || o.crowd != 3 || len(o.peers) != 1 || o.peers[0].name != "podman" || !slices.Equal(o.peers[0].argv, []string{"podman", "run", "ROOT"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{}, {"-image", "i", "more"}, {"-image", "i", "-rounds", "0"}, {"-image", "i", "-crowd", "0"}, {"-image", "i", "-peer", "name"}, {"-image", "i", "-peer", "name="}} {
		if _, err := parseRunOptions(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// A contestant whose program is missing is left out, and so is one that was not asked for.
func TestRunContestants(t *testing.T) {
	b := runBench{dir: "/d", runOptions: runOptions{squire: "/bin/sh", only: "node,peer", peers: []container{
		{name: "peer", argv: []string{"sh", "ROOT", "ID"}}, {name: "no peer", argv: []string{"no-such-program"}},
	}}}
	var names []string
	found := b.contestants("w", "c")
	for _, c := range found {
		names = append(names, c.name)
	}
	want := []string{"squire, node service, image there", "squire, node service, image new", "peer"}
	if !slices.Equal(names, want) {
		t.Fatalf("%q, want %q", names, want)
	}
	if warm, cold := found[0].env, found[1].env; !slices.Contains(warm, "SQUIRE_SOCKET=w") || !slices.Contains(cold, "SQUIRE_SOCKET=c") {
		t.Errorf("sockets of %q and %q", warm, cold)
	}
	one, two := b.words(found[2].argv), b.words(found[2].argv)
	if one[1] != "/d/home/root" || one[2] == two[2] || one[2] == "ID" {
		t.Errorf("words %q, then %q", one, two)
	}
}

// What crun gets is JSON, and names the user and the directory.
func TestRunBundle(t *testing.T) {
	b := runBench{dir: "/d", credential: &syscall.Credential{Uid: 7, Gid: 8}}
	var config struct {
		Process struct{ User struct{ UID, GID uint32 } }
		Root    struct{ Path string }
		Mounts  []struct{ Destination string }
		Linux   struct {
			UIDMappings, GIDMappings []struct{ ContainerID, HostID, Size uint32 }
		}
	}
	if err := json.Unmarshal([]byte(b.bundle()), &config); err != nil {
		t.Fatal(err)
	}
	if u := config.Process.User; u.UID != 7 || u.GID != 8 || config.Root.Path != "/d/home/root" || len(config.Mounts) != len(hostDirs)+3 ||
		config.Linux.UIDMappings[0].HostID != 7 || config.Linux.GIDMappings[0].ContainerID != 8 {
		t.Errorf("%+v", config)
	}
}

func TestRunMeasure(t *testing.T) {
	b := runBench{dir: t.TempDir(), credential: &syscall.Credential{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid()), NoSetGroups: true}}
	took, _, err := b.measure(t.Context(), &container{argv: []string{"/bin/sh", "-c", "sleep 0.1"}}, 3)
	if err != nil || took < 100*time.Millisecond {
		t.Errorf("%v, %v", took, err)
	}
	if _, _, err = b.measure(t.Context(), &container{argv: []string{"/bin/sh", "-c", "echo why >&2; exit 3"}}, 2); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("of one that fails: %v", err)
	}
}

func TestWriteRun(t *testing.T) {
	ms := func(all ...int) (took []time.Duration) {
		for _, n := range all {
			took = append(took, time.Duration(n)*time.Millisecond)
		}
		return took
	}
	all := []container{
		{name: "one", took: [2][]time.Duration{ms(4, 2, 6), ms(40)}, busy: [2]time.Duration{30 * time.Millisecond, 64 * time.Millisecond}},
		{name: "two", took: [2][]time.Duration{ms(1, 3, 2), ms(60)}, busy: [2]time.Duration{6 * time.Millisecond, 0}},
	}
	b := runBench{runOptions: runOptions{crowd: 8}}
	var out strings.Builder
	if err := b.write(&out, all); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, row := range []string{"2.0 4.0 4.0 6.0 1.00 10.0 one", "1.0 2.0 2.0 3.0 0.50 2.0 two", "40.0 40.0 40.0 40.0 1.00 8.0 one", "60.0 60.0 60.0 60.0 1.50 0.0 two", "8 at once"} {
		if !strings.Contains(got, row) {
			t.Errorf("no %q in:\n%s", row, &out)
		}
	}
}
