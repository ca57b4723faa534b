package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/squirefs/squire/sqfs/pack"
)

// counted is a layer whose reader counts, gives odd amounts, and may block for good.
type counted struct {
	blob
	given   *atomic.Int64
	blockAt int64 // bytes; 0 is never
	blocked chan struct{}
}

func (c *counted) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := c.blob.Open(ctx)
	rnd := rand.New(rand.NewPCG(1, uint64(len(c.bytes))))
	given := int64(0)
	return struct {
		io.Reader
		io.Closer
	}{readerFunc(func(p []byte) (int, error) {
		if c.blockAt > 0 && given >= c.blockAt {
			close(c.blocked)
			<-ctx.Done()
			return 0, ctx.Err()
		}
		n, failed := r.Read(p[:min(len(p), rnd.IntN(20_000))])
		given += int64(n)
		c.given.Add(int64(n))
		return n, failed
	}), r}, err
}

// With memory for little of them, many archives that are larger than it are read in order,
// never more ahead than is allowed, and the writer gets the same in the same order.
func TestAhead(t *testing.T) {
	const layers, size, ahead = 30, 300_000, 128 << 10
	var archives [][]byte
	for i := range layers {
		archives = append(archives, archived(t, reg(fmt.Sprint("a", i), strings.Repeat(string(rune('a'+i)), size)), reg("same", strings.Repeat("s", 50_000)), reg(fmt.Sprint("b", i), "x")))
	}
	var given, taken atomic.Int64
	var all []Layer
	for _, l := range stack(archives...) {
		all = append(all, &counted{blob: blob{name: l.Name(), bytes: l.(*blob).bytes}, given: &given})
	}
	var order []byte
	var most int64
	w := writerFunc(func(r io.Reader) error {
		b, err := io.ReadAll(r)
		order = append(order, b[0])
		most = max(most, given.Load()-taken.Add(int64(len(b))))
		return err
	})
	_, report, err := merge(t.Context(), w, all, Options{Ahead: ahead})
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(layers-1) * 50_000; report.HiddenBytes != want || report.Hidden != layers-1 {
		t.Errorf("%+v", report)
	}
	// What the writer does not count: headers, and what was passed over.
	if limit := int64(ahead + (layers-1)*50_000 + layers*6*1024); most > limit {
		t.Errorf("%d bytes were held, %d are allowed", most, limit)
	}
	var want []byte
	for i := layers - 1; i >= 0; i-- {
		want = append(want, byte('a'+i))
		if i == layers-1 {
			want = append(want, 's')
		}
		want = append(want, 'x')
	}
	if !slices.Equal(order, want) {
		t.Errorf("packed %q, not %q", order, want)
	}
}

// However a merge ends, nothing stays open and no goroutine stays.
func TestEnds(t *testing.T) {
	big := archived(t, reg("a", strings.Repeat("a", 3<<20)))
	mine := errors.New("mine")
	for _, c := range []struct {
		name    string
		blockAt int64 // in the layer in the middle
		add     error
		open    bool // the middle cannot be opened
		cancel  bool
		want    error
	}{
		{name: "blocked", blockAt: 1 << 20, cancel: true, want: context.Canceled},
		{name: "blocked at once", blockAt: 1, cancel: true, want: context.Canceled},
		{name: "writer fails", add: mine, want: mine},
		{name: "open fails", open: true, want: mine},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var given atomic.Int64
			var all []Layer
			for i := range 20 {
				l := &counted{blob: blob{name: fmt.Sprint(i), bytes: big}, given: &given, blocked: make(chan struct{})}
				if i == 10 {
					l.blockAt = c.blockAt
				}
				if i == 10 && c.cancel {
					go func() {
						<-l.blocked
						cancel()
					}()
				}
				if i == 10 && c.open {
					all = append(all, refusing{mine})
				} else {
					all = append(all, l)
				}
			}
			_, _, err := merge(ctx, writerFunc(func(r io.Reader) error {
				if _, err := io.Copy(io.Discard, r); err != nil {
					return err
				}
				return c.add
			}), all, Options{Ahead: 1 << 20})
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, not %v", err, c.want)
			}
			for _, l := range all {
				if l, ok := l.(*counted); ok && l.open.Load() != 0 {
					t.Errorf("%s is open", l.name)
				}
			}
			for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					buf := make([]byte, 1<<16)
					t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				}
			}
		})
	}
}

type refusing struct{ err error }

func (r refusing) Name() string                                { return "refusing" }
func (r refusing) Open(context.Context) (io.ReadCloser, error) { return nil, r.err }

// A reader that gives nothing again and again does not hang a merge.
func TestNoProgress(t *testing.T) {
	_, _, err := merge(t.Context(), new(memory), []Layer{idle{}}, Options{})
	if !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type idle struct{}

func (idle) Name() string { return "idle" }
func (idle) Open(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(readerFunc(func([]byte) (int, error) { return 0, nil })), nil
}

// The second reading must find what the first one did.
func TestChanged(t *testing.T) {
	l := &changing{}
	for _, items := range [][]item{{reg("a", "1"), link("b", "a")}, {dir("a")}} {
		l.all = append(l.all, archived(t, items...))
	}
	_, _, err := merge(t.Context(), new(memory), []Layer{l, stack(archived(t, reg("a", "2")))[0]}, Options{})
	if !errors.Is(err, errChanged) {
		t.Error(err)
	}
	l.all = [][]byte{archived(t, reg("a", "1"), link("b", "a")), archived(t)}
	if _, _, err = merge(t.Context(), new(memory), []Layer{l, stack(archived(t, reg("a", "2")))[0]}, Options{}); !errors.Is(err, errChanged) {
		t.Error(err)
	}
}

// changing is a layer that is another one each time.
type changing struct{ all [][]byte }

func (c *changing) Name() string { return "changing" }

func (c *changing) Open(context.Context) (io.ReadCloser, error) {
	b := c.all[0]
	c.all = c.all[1:]
	return io.NopCloser(strings.NewReader(string(b))), nil
}

var _ contents = (*pack.Writer)(nil)
