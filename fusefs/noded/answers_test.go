package noded

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A server that does not answer keeps nobody from a report, which has what it told last, and says so.
func TestReportOfSilentServer(t *testing.T) {
	w := newWorld(t)
	k := run(t, w, Config{})
	c := k.as(t, 0)
	if _, err := c.Mount(all, imageFile(t, "a")); err != nil {
		t.Fatal(err)
	}
	var r *Report
	report := func() *Report {
		t.Helper()
		r, err := c.Report()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	eventually(t, "the counters are known", func() bool {
		r = report()
		return !r.Stale && r.Totals.Read == 1000
	})
	silent := make(chan struct{})
	w.mu.Lock()
	w.onStats = func() error { <-silent; return nil }
	w.mu.Unlock()
	eventually(t, "the report is stale", func() bool { r = report(); return r.Stale })
	if r.Totals.Read != 1000 || len(r.Images) != 1 || r.Images[0].Read != 1000 {
		t.Errorf("%+v", r)
	}
	w.mu.Lock()
	w.onStats = nil
	w.mu.Unlock()
	close(silent)
	eventually(t, "the report is fresh again", func() bool { return !report().Stale })
}

// What is wrong with a directory is not trouble of the service's, which a client would do without.
func TestPlaceRefusals(t *testing.T) {
	w := newWorld(t)
	k := run(t, w, Config{})
	c := k.as(t, 1000)
	m, err := c.Mount(Request{View: View{Private: true}, NoGrant: true}, imageFile(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, test := range []struct {
		err  error
		want Code
	}{
		{unix.EACCES, Denied},
		{unix.EPERM, Denied},
		{unix.ENOTDIR, Invalid},
		{unix.EINVAL, Invalid},
		{unix.EBUSY, Failed},
		{errors.New("something"), Failed},
	} {
		w.mu.Lock()
		w.onAttach = func() error { return fmt.Errorf("mounter: %w", test.err) }
		w.mu.Unlock()
		var refused *ServiceError
		if err := c.Attach(m.ID, dir, 0); !errors.As(err, &refused) || refused.Code != test.want {
			t.Errorf("%v: %v (%+v)", test.err, err, refused)
		}
	}
}

func TestSeldom(t *testing.T) {
	s, now := seldom{}, time.Now()
	for i, test := range []struct {
		what  string
		after time.Duration
		want  bool
	}{
		{"a", 0, true},
		{"a", time.Second, false},
		{"b", time.Second, true},
		{"a", 59 * time.Second, false},
		{"a", 60 * time.Second, true},
		{"a", 61 * time.Second, false},
	} {
		if s.due(test.what, now.Add(test.after)) != test.want {
			t.Errorf("%d: not %v", i, test.want)
		}
	}
}
