package servicetest

import (
	"os"
	"strings"
	"testing"
)

// An image whose own directories are links to the host, into /proc or to themselves is refused in one line, or runs with
// what the container has there; nothing is made on the host, where /tmp is the container's too.
func TestHostilePlaces(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	trap := mkdirIn(t, l.shown, users[1]) // in which root can make things, too
	for _, place := range []string{"dev", "proc", "sys", "tmp", "etc"} {
		for _, to := range []string{trap + "/made", "/proc/1/root" + trap} {
			img, err := l.makeImage("places", 1, "-p", place+" s 777 0 0 "+to, "-e", place)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range []user{{}, users[1]} {
				r := finish(t, d.client(t, u, "run", "--writable", img.path, "--", "/bin/probe", "wait"))
				ran := r.status == 0 && r.stdout == "waiting\n" && (r.stderr == "" || strings.HasSuffix(r.stderr, "; its configuration is not used\n"))
				refused := r.status == 125 && r.stdout == "" && strings.Count(r.stderr, "\n") == 1
				own := place == "dev" || place == "proc" || place == "sys"
				if !ran && !refused || own && !refused {
					t.Errorf("/%s -> %s, as %s: %+v", place, to, u, r)
				}
			}
			os.Remove(img.path)
		}
	}
	if names, err := os.ReadDir(trap); err != nil || len(names) > 0 {
		t.Errorf("made on the host: %v, %v", names, err)
	}
}
