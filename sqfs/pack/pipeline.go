package pack

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// pipeline compresses blocks with many goroutines and writes them with one.
//
// The producer, which is whoever calls Add, gives every step to the collector, in order,
// and the blocks among them to the workers as well. The collector takes the steps as they
// come, waits for each block until a worker is done with it, and gives it the next place
// in the file. So all places depend on the order of the steps alone.
//
// After a write has failed, the collector goes on taking steps, and gives the buffers
// back, but writes nothing any more: nobody waits for ever.
type pipeline struct {
	f         File
	blockSize int
	work      chan *buffer
	steps     chan step
	idle      chan *buffer // those that are made and not in use
	made      int          // by the producer; at most cap(idle)
	running   sync.WaitGroup
	end       atomic.Int64 // where the next block goes; set by the collector only
	failed    atomic.Pointer[error]

	// Of the collector, until it has ended.
	fragments []disk.Fragment
	blocks    int64 // data blocks in the image
}

// buffer holds a block on its way. It belongs to the producer, then to a worker, then to
// the collector, which makes it idle again.
type buffer struct {
	raw   []byte // the block; cap is the block size
	coded []byte // room for the compressed block
	n     int    // bytes of coded that are to be written, 0 for raw as it is
	err   error
	done  chan struct{} // receives when the worker is done
}

// step is what the collector does next.
type step struct {
	kind  stepKind
	data  *Data
	buf   *buffer
	holes int
}

type stepKind uint8

const (
	addBlock    stepKind = iota // append buf to data
	addHoles                    // append holes to data
	addFragment                 // buf is the next fragment block
	drop                        // forget data: its last block was the last of all
)

// minBuffers is how many blocks there are at least: a fragment that is being filled, two
// blocks of a file that is held back, and one that is being read.
const minBuffers = 4

var errAborted = errors.New("pack: aborted")

// newPipeline starts goroutines. close ends them.
func newPipeline(f File, o *Options, start int64) (*pipeline, error) {
	// Blocks under way have two buffers each. Beyond some for each processor they would
	// only wait. The producer itself may have four, see contents.append.
	count := max(min(o.Memory/int64(2*o.BlockSize), int64(32*o.Processors)), minBuffers)
	p := &pipeline{
		f: f, blockSize: o.BlockSize,
		work: make(chan *buffer, count), steps: make(chan step, count), idle: make(chan *buffer, count),
	}
	p.end.Store(start)
	encoders := make([]codec.Encoder, min(int64(o.Processors), count))
	for i := range encoders {
		var err error
		if encoders[i], err = o.encoder(o.BlockSize); err != nil {
			return nil, fmt.Errorf("pack: %w", err)
		}
	}
	for _, e := range encoders {
		p.running.Go(func() { p.compress(e) })
	}
	p.running.Go(p.collect)
	return p, nil
}

// close ends the goroutines once they have done all steps.
func (p *pipeline) close() {
	close(p.work)
	close(p.steps)
	p.running.Wait()
}

// fail keeps the first error.
func (p *pipeline) fail(err error) { p.failed.CompareAndSwap(nil, &err) }

// err returns the first error.
func (p *pipeline) err() error {
	if err := p.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// take returns a buffer with an empty block. It waits for one if all are in use.
func (p *pipeline) take() *buffer {
	var b *buffer
	select {
	case b = <-p.idle:
	default:
		if p.made == cap(p.idle) {
			b = <-p.idle
			break
		}
		p.made++
		b = &buffer{raw: make([]byte, 0, p.blockSize), done: make(chan struct{}, 1)}
	}
	b.raw, b.n, b.err = b.raw[:0], 0, nil
	return b
}

// give makes a buffer idle.
func (p *pipeline) give(b *buffer) { p.idle <- b }

// send hands on a step, of the producer.
func (p *pipeline) send(s step) {
	if s.buf != nil {
		p.work <- s.buf
	}
	p.steps <- s
}

// compress is a worker.
func (p *pipeline) compress(e codec.Encoder) {
	for b := range p.work {
		if e != nil && p.failed.Load() == nil {
			if b.coded == nil {
				b.coded = make([]byte, p.blockSize+codec.EncodeSlack)
			}
			b.n, b.err = e.Encode(b.coded, b.raw)
		}
		b.done <- struct{}{}
	}
}

// collect is the collector.
func (p *pipeline) collect() {
	for s := range p.steps {
		switch s.kind {
		case addBlock:
			p.begin(s.data)
			if w := p.write(s.buf); w != 0 {
				s.data.blocks = append(s.data.blocks, w)
				p.blocks++
			}
		case addHoles:
			p.begin(s.data)
			for range s.holes {
				s.data.blocks = append(s.data.blocks, 0)
			}
		case addFragment:
			p.fragments = append(p.fragments, disk.Fragment{Start: uint64(p.end.Load())})
			p.fragments[len(p.fragments)-1].Word = p.write(s.buf)
		case drop:
			p.forget(s.data)
		}
	}
}

// begin gives a file its place if it has none yet.
func (p *pipeline) begin(d *Data) {
	if len(d.blocks) == 0 {
		d.start = p.end.Load()
	}
}

// forget takes back the blocks of a file: the next block goes where its first is.
func (p *pipeline) forget(d *Data) {
	for _, w := range d.blocks {
		if w != 0 {
			p.blocks--
		}
	}
	if len(d.blocks) > 0 {
		p.end.Store(d.start)
	}
}

// write waits for a block, writes it, and returns its word, 0 after an error.
func (p *pipeline) write(b *buffer) disk.Word {
	<-b.done
	defer p.give(b)
	if b.err != nil {
		p.fail(fmt.Errorf("pack: compress: %w", b.err))
	}
	if p.failed.Load() != nil {
		return 0
	}
	out, stored := b.coded[:b.n], false
	if b.n == 0 {
		out, stored = b.raw, true
	}
	at := p.end.Load()
	if _, err := p.f.WriteAt(out, at); err != nil {
		p.fail(fmt.Errorf("pack: write image: %w", err))
		return 0
	}
	p.end.Store(at + int64(len(out)))
	return disk.NewWord(len(out), stored)
}
