package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs/layer"
)

// archive is a tar archive in a file, or "-" for standard input, as a layer.
type archive struct {
	name   string
	opened bool
	read   func(n int) // is told of bytes that were read; may be nil
}

// Name returns the name of the file.
func (a *archive) Name() string {
	if a.name == "-" {
		return "standard input"
	}
	return a.name
}

// Open opens the archive and looks how it is compressed.
func (a *archive) Open(ctx context.Context) (io.ReadCloser, error) {
	f := os.Stdin
	if a.name != "-" {
		var err error // a pipe that nobody writes to is waited for later, where a signal is heard
		if f, err = os.OpenFile(a.name, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return nil, unwrapPath(printable(a.name), err)
		}
	} else if a.opened {
		return nil, errors.New("standard input: cannot be read twice, as this archive needs it: pack it from a file")
	}
	a.opened = true
	from := &polledFile{ctx: ctx, f: f, told: a.read}
	tar, err := layer.Expand(from)
	if err == nil && from.n == 0 {
		err = errors.New("is empty") // as when the program before a pipe fails
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", printable(a.Name()), err)
	}
	return &archiveReader{tar, f}, nil
}

// archiveReader closes the file with the archive in it.
type archiveReader struct {
	io.ReadCloser
	f *os.File
}

func (a *archiveReader) Close() error { return errors.Join(a.ReadCloser.Close(), a.f.Close()) }

// polledFile is a file whose Read ends with a context, as reading a pipe does not.
type polledFile struct {
	ctx  context.Context
	f    *os.File
	n    int64       // bytes that were read
	told func(n int) // may be nil
}

// Read waits until there is something to read, and looks at the context meanwhile.
func (p *polledFile) Read(b []byte) (int, error) {
	const wait = 100 // milliseconds
	for {
		if err := context.Cause(p.ctx); err != nil {
			return 0, err
		}
		fds := []unix.PollFd{{Fd: int32(p.f.Fd()), Events: unix.POLLIN}}
		ready, err := unix.Poll(fds, wait)
		if err != nil && !errors.Is(err, unix.EINTR) || ready > 0 {
			n, err := p.f.Read(b) // regular files are always ready; others say what is wrong
			p.n += int64(n)
			if p.told != nil {
				p.told(n)
			}
			return n, err
		}
	}
}

// readLines returns the lines of a file, without empty ones and those that begin with #.
func readLines(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, unwrapPath(printable(name), err)
	}
	defer f.Close()
	var lines []string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20) // longer than any path
	for s.Scan() {
		if line := s.Text(); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", printable(name), err)
	}
	return lines, nil
}

// readSortList reads a list of paths with priorities, as mksquashfs -sort has them.
// Paths without one come before all, in the order of the list.
func readSortList(name string) (map[string]int, error) {
	lines, err := readLines(name)
	if err != nil {
		return nil, err
	}
	const first = 1 << 30 // above all 16-bit numbers
	list := make(map[string]int)
	for i, line := range lines {
		file, priority := strings.TrimSpace(line), first-i
		if at := strings.LastIndexAny(file, " \t"); at >= 0 {
			if n, err := strconv.Atoi(file[at+1:]); err == nil {
				if n < -1<<15 || n >= 1<<15 {
					return nil, fmt.Errorf("%s: priority %d: want -32768 to 32767", printable(name), n)
				}
				file, priority = strings.TrimRight(file[:at], " \t"), n
			}
		}
		file = strings.Join(splitPath(file), "/")
		if _, has := list[file]; !has {
			list[file] = priority
		}
	}
	return list, nil
}

// priority is that of a path, or of the nearest directory above that has one.
func (p *packing) priority(file string) int {
	for {
		if n, ok := p.sort[file]; ok {
			return n
		}
		if file == "" {
			return 0
		}
		if file = path.Dir(file); file == "." {
			file = ""
		}
	}
}
