package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/squirefs/squire/sqfs/layer"
)

// store is where an image lies.
type store interface {
	// root returns the manifest or list that the source names.
	root(ctx context.Context) (*document, error)
	// manifest returns a manifest or list of the store.
	manifest(ctx context.Context, d descriptor) (*document, error)
	// blob opens contents from a byte on. Nothing is verified but what costs nothing.
	blob(ctx context.Context, d descriptor, from int64) (io.ReadCloser, error)
	Close() error
}

// ErrCache says that what the cache had of a layer was damaged. It was removed: who imports
// again gets the layer from the registry.
var ErrCache = errors.New("the cache had damaged contents, which were removed: try again")

// imageLayer is a layer of an Image.
type imageLayer struct {
	img    *Image
	index  int // 0 is the lowest
	desc   descriptor
	diffID string
}

// Name returns what the layer is called in messages.
func (l *imageLayer) Name() string {
	return fmt.Sprintf("layer %d of %d (%.19s)", l.index+1, len(l.img.layers), l.desc.Digest)
}

// Open begins to read the layer: its tar archive, expanded. What is read is good if io.EOF
// ends it, and not before.
func (l *imageLayer) Open(ctx context.Context) (io.ReadCloser, error) {
	raw, err := l.openRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.Name(), err)
	}
	tar, err := layer.Expand(raw)
	if err != nil {
		err = raw.cause(err)
		raw.Close()
		return nil, fmt.Errorf("%s: %w", l.Name(), err)
	}
	return &layerReader{layer: l, raw: raw, tar: tar, diff: newSideHash(l.diffID)}, nil
}

// layerReader reads a tar archive and checks, at its end, all that is known of it.
type layerReader struct {
	layer *imageLayer
	raw   *rawReader
	tar   io.ReadCloser
	diff  *sideHash
	err   error
}

func (r *layerReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.tar.Read(p)
	r.diff.write(p[:n])
	switch {
	case errors.Is(err, io.EOF):
		err = r.finish()
	case err != nil:
		err = r.raw.cause(err)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: %w", r.layer.Name(), err)
	}
	r.err = err
	return n, err
}

// finish reads what the compression left over, so that the digest is of everything.
func (r *layerReader) finish() error {
	if _, err := io.Copy(io.Discard, r.raw); err != nil {
		return err
	}
	if !r.diff.is(r.layer.diffID) {
		return permanent("oci: its contents are not %s, which the configuration of the image says: refused", r.layer.diffID)
	}
	return io.EOF
}

func (r *layerReader) Close() error {
	if r.err == nil {
		r.err = errors.New("oci: layer is closed")
	}
	r.diff.close()
	r.tar.Close()
	return r.raw.Close()
}

// rawReader reads a layer as it is stored, from wherever it is, and checks its length and
// digest: an error takes the place of io.EOF if they are not what the manifest says.
type rawReader struct {
	ctx    context.Context
	layer  *imageLayer
	src    io.ReadCloser
	cached *cacheReader // src, if it is one
	off    int64
	hash   *sideHash
	told   int64 // what the last event said
	when   time.Time
	err    error
}

func (l *imageLayer) openRaw(ctx context.Context) (*rawReader, error) {
	r := &rawReader{ctx: ctx, layer: l, hash: newSideHash(l.desc.Digest)}
	if c := l.img.cache; c != nil && l.desc.Size <= c.max && l.desc.Size > 0 && !l.img.uncached {
		cr, err := c.open(ctx, l)
		if err == nil {
			r.src, r.cached = cr, cr
			return r, nil
		}
		if ctx.Err() != nil {
			r.hash.close()
			return nil, context.Cause(ctx)
		}
		l.img.o.say("the cache is not used for %s: %v", l.Name(), err)
	}
	r.src = l.transfer(ctx, 0, false)
	return r, nil
}

func (r *rawReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.src.Read(p)
	var lost *cacheError
	if n == 0 && errors.As(err, &lost) {
		r.layer.img.o.say("the cache is no longer used for %s: %v", r.layer.Name(), lost.error)
		r.src.Close()
		r.src, r.cached = r.layer.transfer(r.ctx, r.off, false), nil
		n, err = r.src.Read(p)
	}
	r.hash.write(p[:n])
	r.off += int64(n)
	if errors.Is(err, io.EOF) {
		err = r.finish()
	}
	r.tell(errors.Is(err, io.EOF))
	r.err = err
	return n, err
}

func (r *rawReader) finish() error {
	d := r.layer.desc
	if r.off != d.Size {
		return permanent("oci: %d bytes came, and the manifest says %d", r.off, d.Size)
	}
	if d.loose || r.hash.is(d.Digest) {
		return io.EOF
	}
	if r.cached != nil && r.cached.suspect() {
		r.cached.drop()
		return fmt.Errorf("oci: %w", ErrCache)
	}
	return permanent("oci: what came is not %s: refused", d.Digest)
}

// cause returns what is behind an error of what decompresses: that the line broke, or that the
// cache is damaged, which only its end shows.
func (r *rawReader) cause(err error) error {
	if r.err == nil && r.cached != nil && r.cached.suspect() {
		_, _ = io.Copy(io.Discard, r)
	}
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return r.err
	}
	return err
}

// tell sends an event now and then, and at the end. What came meanwhile the cache tells itself.
func (r *rawReader) tell(done bool) {
	f := r.layer.img.o.Event
	if f == nil || !done && (r.off-r.told < 256<<10 && time.Since(r.when) < 100*time.Millisecond) {
		return
	}
	came := r.off
	if r.cached != nil && r.cached.filling() {
		came = r.cached.there()
	}
	r.told, r.when = r.off, time.Now()
	cached := r.cached != nil && r.cached.whole
	f(Event{Layer: r.layer.index, Bytes: came, Used: r.off, Total: r.layer.desc.Size, Done: done, Cached: cached})
}

func (r *rawReader) Close() error {
	if r.err == nil {
		r.err = errors.New("oci: layer is closed")
	}
	r.hash.close()
	return r.src.Close()
}

// transfer fetches contents, and goes on where it was when the line broke.
type transfer struct {
	ctx   context.Context
	layer *imageLayer
	held  bool // the caller has a place among Options.Connections for all of it
	body  io.ReadCloser
	off   int64
	good  int64 // off at which a failure was last forgiven
	tries int
}

func (l *imageLayer) transfer(ctx context.Context, from int64, held bool) *transfer {
	return &transfer{ctx: ctx, layer: l, held: held, off: from, good: from}
}

// enough is how many bytes must come between two failures for the second to count as a first.
const enough = 64 << 10

func (t *transfer) Read(p []byte) (int, error) {
	if !t.held {
		// Only while it waits for bytes: a layer that nobody reads must not keep those waiting
		// that have to be read before it.
		if err := t.layer.img.acquire(t.ctx); err != nil {
			return 0, err
		}
		defer t.layer.img.release()
	}
	for {
		n, err := t.read(p)
		if n > 0 || err == nil || errors.Is(err, io.EOF) {
			return n, err
		}
		if err = t.failed(err); err != nil {
			return 0, err
		}
	}
}

// read returns io.EOF at the length that the manifest says, and never before.
func (t *transfer) read(p []byte) (int, error) {
	d := t.layer.desc
	if t.body == nil {
		if t.off == d.Size && t.off > 0 {
			return 0, io.EOF
		}
		body, err := t.layer.img.store.blob(t.ctx, d, t.off)
		if err != nil {
			return 0, err
		}
		t.body = body
	}
	left := d.Size - t.off
	if left == 0 { // is there more than there should be?
		if n, err := io.ReadFull(t.body, make([]byte, 1)); n > 0 {
			return 0, permanent("oci: more than the %d bytes came that the manifest says: refused", d.Size)
		} else if err != io.EOF && t.ctx.Err() != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	n, err := t.body.Read(p[:min(int64(len(p)), left)])
	t.off += int64(n)
	switch {
	case n > 0:
		err = nil // comes again
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("oci: it ended after %d of %d bytes", t.off, d.Size)
	}
	return n, err
}

// failed waits until it is time to try again, or says that it is of no use.
func (t *transfer) failed(err error) error {
	if t.body != nil {
		t.body.Close()
		t.body = nil
	}
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	var perm permanentError
	o := t.layer.img.o
	if t.off-t.good >= enough {
		t.good, t.tries = t.off, 0
	}
	var answer *answerError // the policy has tried that often
	if errors.As(err, &perm) || errors.As(err, &answer) && t.tries > 0 || t.tries >= o.retries() {
		return err
	}
	o.say("%s: %s: going on at byte %d", t.layer.Name(), strings.TrimPrefix(cleanError(err).Error(), "oci: "), t.off)
	t.tries++
	return o.pause(t.ctx, t.tries-1, 0)
}

func (t *transfer) Close() error {
	if t.body == nil {
		return nil
	}
	err := t.body.Close()
	t.body = nil
	return err
}

// acquire takes a place among the connections of an image, release gives it back.
func (i *Image) acquire(ctx context.Context) error {
	select {
	case i.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (i *Image) release() { <-i.slots }
