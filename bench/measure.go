package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// comparison is one run: what is measured, and what has been measured until now.
type comparison struct {
	Options
	image     *imageFacts
	dir       string // all mounts are below it
	unpacked  string // the directory of that peer
	peers     []Peer
	workloads []workload
	samples   map[cell][]sample
	counts    map[row]count // what a workload saw with the first peer: the others must see the same
	failures  []string
	leftOut   []string
}

// row is a line of the table of results: a workload in one state of the caches, "" where there can be only one.
type row struct{ workload, cache string }

func (r row) name() string {
	if r.cache == "" {
		return r.workload
	}
	return r.workload + ", " + r.cache
}

// cell is a place in the table.
type cell struct {
	row
	peer string
}

const (
	cold = "cold" // a fresh mount, the image file in the page cache
	warm = "warm" // the same once more
)

func (b *comparison) close() {
	if b.unpacked != "" {
		removeTree(b.unpacked)
	}
	_ = os.RemoveAll(b.dir)
}

// prepare does what is done once: it tries what may not work here, unpacks the image, and makes the lists of files.
func (b *comparison) prepare(ctx context.Context) error {
	if err := b.writeLists(); err != nil {
		return err
	}
	if err := b.tryPeers(ctx); err != nil {
		return err
	}
	if slices.ContainsFunc(b.peers, func(p Peer) bool { return p.Name == directoryPeer }) {
		b.Progress(Progress{What: "unpacking the image"})
		if err := b.unpack(ctx); err != nil {
			return fmt.Errorf("unpack %s: %w", b.Image, err)
		}
	}
	return b.tryPython(ctx)
}

// measure runs all rounds. A failure is noted and the rest goes on, unless ctx has ended.
func (b *comparison) measure(ctx context.Context) error {
	done := 0
	for round := range b.Rounds {
		for _, w := range b.workloads {
			for i := range b.peers {
				// Whoever runs first finds the processor colder or cooler: take turns.
				p := b.peers[(i+round)%len(b.peers)]
				b.Progress(Progress{done, b.Rounds * len(b.workloads) * len(b.peers), round + 1, p.Name + ": " + w.name})
				err := b.measureOne(ctx, p, w)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					b.failures = append(b.failures, fmt.Sprintf("%s, round %d, %v", p.Name, round+1, err))
				}
				done++
			}
		}
	}
	return nil
}

// measureOne measures a workload on a fresh mount, and where it says so once more on the same mount.
func (b *comparison) measureOne(ctx context.Context, p Peer, w workload) error {
	if w.mounts && len(p.Argv) == 0 {
		return nil
	}
	m, err := b.open(ctx, p)
	if err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	defer m.unmount()
	for _, cache := range w.caches() {
		s, n, err := w.run(ctx, m)
		if err == nil {
			err = b.sameCount(row{w.name, cache}, n)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", row{w.name, cache}.name(), err)
		}
		b.add(row{w.name, cache}, p.Name, s)
	}
	return nil
}

// open has the image on a directory, with all caches as a cold run wants them.
func (b *comparison) open(ctx context.Context, p Peer) (*mounted, error) {
	if len(p.Argv) == 0 {
		return b.openUnpacked(ctx)
	}
	if err := warmFile(b.Image); err != nil {
		return nil, err
	}
	return p.mount(ctx, b.Image, b.dir, b.Limit)
}

func (b *comparison) add(r row, peer string, s sample) {
	c := cell{r, peer}
	b.samples[c] = append(b.samples[c], s)
}

// sameCount says whether a workload saw as much as with the first peer: a peer that shows less is not a fast one.
func (b *comparison) sameCount(r row, n count) error {
	if first, ok := b.counts[r]; ok && first != n {
		return fmt.Errorf("saw %d files and %d bytes, the first peer showed %d and %d", n.Files, n.Bytes, first.Files, first.Bytes)
	}
	b.counts[r] = n
	return nil
}

// report puts together what was measured.
func (b *comparison) report() *Report {
	r := &Report{
		Format: reportFormat, Time: time.Now().UTC().Format(time.RFC3339), User: userName(), Machine: ThisMachine(),
		Image: Image{
			Name: filepath.Base(b.Image), Bytes: b.image.BytesUsed, Compression: b.image.Compression.String(),
			BlockSizeBytes: int64(b.image.BlockSize), Inodes: int64(b.image.Inodes), FileBytes: b.image.fileBytes,
		},
		File: File{Path: b.image.file, Bytes: b.image.fileSize}, Rounds: b.Rounds, CPUSource: cpuSource,
		Reference: reference(b.peers), Failures: b.failures, LeftOut: b.leftOut,
	}
	for _, p := range b.peers {
		r.Peers = append(r.Peers, PeerInfo{p.Name, p.Argv, p.version(context.Background())})
	}
	for _, w := range b.workloads {
		for _, cache := range w.caches() {
			b.fill(r, w, cache)
		}
	}
	r.finish()
	return r
}

// fill adds a workload to the report: a line of the table, or points of a curve.
func (b *comparison) fill(r *Report, w workload, cache string) {
	at := row{w.name, cache}
	line := Row{Workload: w.name, Cache: cache, Files: b.counts[at].Files, Bytes: b.counts[at].Bytes, Operations: b.counts[at].Operations}
	for _, p := range b.peers {
		res := Result{Peer: p.Name}
		for _, s := range b.samples[cell{at, p.Name}] {
			res.Wall.Samples = append(res.Wall.Samples, s.wall.Seconds())
			res.CPU.Samples = append(res.CPU.Samples, s.cpu.Seconds())
		}
		line.Results = append(line.Results, res)
	}
	if w.curve == "" {
		r.Rows = append(r.Rows, line)
		return
	}
	r.addPoint(w.curve, w.x, line)
}

// warmFile brings a file into the page cache.
func warmFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(onlyWriter{io.Discard}, f)
	return err
}

// onlyWriter hides that io.Discard reads by itself, in pieces of 8 KiB.
type onlyWriter struct{ io.Writer }
