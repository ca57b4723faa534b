// Command bench expands the blocks of a file with squire's decoders, as often as asked: the counterpart of
// bench/parts/codec/peer.c, which does it with C libraries. "go run ./bench/parts codec" runs both. It is here because
// only what lies below sqfs/ may use the decoders by themselves.
//
//	usage: bench FILE
//
// FILE and what is said on standard input and output are described in blocks.go and contestant.go of bench/parts.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs/internal/codec"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: bench FILE")
	}
	file, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	b, err := parse(file)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if err := b.answer(out, lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// blocks is a file of blocks, taken apart.
type blocks struct {
	decoder codec.Decoder
	dst     []byte
	list    []block
}

type block struct {
	src  []byte
	want int // bytes when expanded
}

var errShort = errors.New("the file of blocks is too short")

func parse(file []byte) (*blocks, error) {
	number := func() (int, error) {
		if len(file) < 4 {
			return 0, errShort
		}
		x := binary.LittleEndian.Uint32(file)
		file = file[4:]
		return int(x), nil
	}
	var head [3]int
	for i := range head {
		var err error
		if head[i], err = number(); err != nil {
			return nil, err
		}
	}
	b := &blocks{decoder: codec.For(uint16(head[0])), dst: make([]byte, head[1])}
	if b.decoder == nil {
		return nil, fmt.Errorf("no decoder for compressor %d", head[0])
	}
	for range head[2] {
		n, err := number()
		if err != nil {
			return nil, err
		}
		want, err := number()
		if err != nil {
			return nil, err
		}
		if n > len(file) || want > len(b.dst) {
			return nil, errors.New("a block of the file is too long")
		}
		b.list = append(b.list, block{file[:n], want})
		file = file[n:]
	}
	return b, nil
}

// answer does what one line of the input asks for.
func (b *blocks) answer(out io.Writer, line string) error {
	if line == "check" {
		crc, err := b.pass(true)
		if err == nil {
			_, err = fmt.Fprintf(out, "%08x\n", crc)
		}
		return err
	}
	start := cpuSeconds()
	if _, err := b.pass(false); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%.9f\n", cpuSeconds()-start)
	return err
}

// pass expands all blocks; with check it also returns the CRC of all, one after the other.
func (b *blocks) pass(check bool) (crc uint32, err error) {
	for i, blk := range b.list {
		n, err := b.decoder.Decode(b.dst[:blk.want], blk.src)
		if err == nil && n != blk.want {
			err = errors.New("too few")
		}
		if err != nil {
			return 0, fmt.Errorf("block %d of %d: %d bytes, want %d: %w", i, len(b.list), n, blk.want, err)
		}
		if check {
			crc = crc32.Update(crc, crc32.IEEETable, b.dst[:n])
		}
	}
	return crc, nil
}

// cpuSeconds is what all threads of the process have used, the garbage collector's included.
func cpuSeconds() float64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return float64(t.Sec) + float64(t.Nsec)/1e9
}
