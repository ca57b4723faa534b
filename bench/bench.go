package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one comparison: what is measured, and what has been measured until now.
type bench struct {
	options
	dir       string // all mounts are below it
	peers     []peer
	workloads []workload
	samples   map[cell][]float64 // seconds
	counts    map[string]count   // what a workload saw with the first peer: the others must see the same
	failures  []string
}

// cell is a place in the table of results.
type cell struct{ row, peer string }

// mountRow is the row of the time from the mount command's start to the first answer.
const mountRow = "mount to first stat"

func newBench(o options) (*bench, error) {
	b := &bench{options: o, samples: make(map[cell][]float64), counts: make(map[string]count)}
	var err error
	if b.image, err = filepath.Abs(o.image); err != nil {
		return nil, err
	}
	if _, err = os.Stat(b.image); err != nil {
		return nil, err
	}
	if b.peers, err = findPeers(o.peers, o.squire); err != nil {
		return nil, err
	}
	if b.workloads, err = findWorkloads(o.workloads, o.python); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "squire-bench"); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *bench) close() { os.RemoveAll(b.dir) }

// measure runs all rounds. A failure is noted and the rest goes on, unless ctx has ended.
func (b *bench) measure(ctx context.Context) error {
	for round := range b.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, b.rounds)
		for _, w := range b.workloads {
			for i := range b.peers {
				// Whoever runs first finds the processor colder or cooler: take turns.
				p := b.peers[(i+round)%len(b.peers)]
				if err := b.measureOne(ctx, p, w); err != nil && ctx.Err() == nil {
					b.failures = append(b.failures, fmt.Sprintf("%s, %s, round %d: %v", p.name, w.name, round+1, err))
				}
				if ctx.Err() != nil {
					return errors.New("interrupted")
				}
			}
		}
	}
	return nil
}

// measureOne measures a workload on a fresh mount, and where it says so once more on the same mount.
func (b *bench) measureOne(ctx context.Context, p peer, w workload) error {
	if err := warmFile(b.image); err != nil {
		return err
	}
	m, err := mountPeer(ctx, p, b.image, b.dir, b.limit)
	if err != nil {
		return err
	}
	defer m.unmount()
	b.add(mountRow, p.name, m.took)

	for _, heat := range w.heats() {
		row := w.name + ", " + heat
		took, n, err := w.run(ctx, m, b.limit)
		if err != nil {
			return fmt.Errorf("%s: %w", heat, err)
		}
		if err := b.sameCount(row, n); err != nil {
			return err
		}
		b.add(row, p.name, took)
	}
	return nil
}

func (b *bench) add(row, peer string, took time.Duration) {
	c := cell{row, peer}
	b.samples[c] = append(b.samples[c], took.Seconds())
}

// sameCount says whether a workload saw as much as with the first peer: a peer that shows less is not a fast one.
func (b *bench) sameCount(row string, n count) error {
	if first, ok := b.counts[row]; ok && first != n {
		return fmt.Errorf("saw %d files and %d bytes, the first peer showed %d and %d", n.Files, n.Bytes, first.Files, first.Bytes)
	}
	b.counts[row] = n
	return nil
}

// report puts together what was measured.
func (b *bench) report() report {
	r := report{Image: filepath.Base(b.image), Rounds: b.rounds, Failures: b.failures, Machine: machine()}
	if fi, err := os.Stat(b.image); err == nil {
		r.Size = fi.Size()
	}
	rows := []string{}
	for _, w := range b.workloads {
		for _, heat := range w.heats() {
			rows = append(rows, w.name+", "+heat)
		}
	}
	for _, row := range append(rows, mountRow) {
		line := reportRow{Workload: row}
		for _, p := range b.peers {
			line.Results = append(line.Results, result{Peer: p.name, Samples: b.samples[cell{row, p.name}]})
		}
		r.Rows = append(r.Rows, line)
	}
	for _, p := range b.peers {
		r.Peers = append(r.Peers, p.name)
	}
	r.finish()
	return r
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

// machine says in a few words where the figures come from.
func machine() string {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	var cpus unix.CPUSet
	_ = unix.SchedGetaffinity(0, &cpus)
	return fmt.Sprintf("Linux %s, %d CPUs", unix.ByteSliceToString(uts.Release[:]), cpus.Count())
}
