package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/squirefs/squire/bench"
)

//go:embed codec/peer.c
var peerSource []byte

// squireName is the contestant that is squire; the others are named as their library is in peer.c.
const squireName = "squire"

// linkFlags name the files of the libraries.
var linkFlags = map[string]string{
	"zlib": "-lz", "libdeflate": "-ldeflate", "xz": "-llzma", "lzma": "-llzma", "lzo": "-llzo2", "lz4": "-llz4", "zstd": "-lzstd",
}

// build builds squire's contestant and those of the libraries that are installed.
func (b *codecBench) build(ctx context.Context, cases []codecCase) error {
	program := filepath.Join(b.work, squireName)
	if out, err := bench.RunProgram(ctx, 5*time.Minute, "go", "build", "-o", program, "github.com/squirefs/squire/sqfs/internal/codec/bench"); err != nil {
		return fmt.Errorf("go build: %w %s", err, out)
	}
	b.programs[squireName] = program
	tried := make(map[string]bool)
	for _, c := range cases {
		for _, lib := range c.libs {
			if tried[lib] {
				continue
			}
			tried[lib] = true
			program, err := buildPeer(ctx, b.work, lib)
			if err != nil {
				fmt.Fprintf(os.Stderr, "parts: left out %s: %v\n", lib, err)
				continue
			}
			b.programs[lib] = program
		}
	}
	if len(b.programs) == 1 {
		return errors.New("none of the C libraries is there")
	}
	return nil
}

// buildPeer compiles the contestant of one library.
func buildPeer(ctx context.Context, dir, lib string) (string, error) {
	source := filepath.Join(dir, "peer.c")
	if err := os.WriteFile(source, peerSource, 0o644); err != nil {
		return "", err
	}
	program := filepath.Join(dir, "peer-"+lib)
	argv := []string{"cc", "-O2", "-DPEER_" + lib}
	argv = append(argv, strings.Fields(os.Getenv("CFLAGS"))...)
	argv = append(argv, "-o", program, source)
	argv = append(argv, strings.Fields(os.Getenv("LDFLAGS"))...)
	out, err := bench.RunProgram(ctx, time.Minute, append(argv, linkFlags[lib])...)
	if err != nil {
		return "", fmt.Errorf("%w %s", err, out)
	}
	return program, nil
}

// contestant is a process that expands the blocks of a file whenever it is asked to.
type contestant struct {
	name   string
	limit  time.Duration // for an answer
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer
}

// startContestant starts program on a file of blocks. One thread is all that squire's may use for Go code, as the C
// libraries have no more.
func startContestant(name, program, file string, limit time.Duration) (*contestant, error) {
	p := &contestant{name: name, limit: limit, cmd: exec.Command(program, file)}
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	p.cmd.Stderr = &p.stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.stdin, p.stdout = stdin, bufio.NewReader(stdout)
	return p, p.cmd.Start()
}

// ask sends a line and returns the line that answers it.
func (p *contestant) ask(line string) (string, error) {
	late := time.AfterFunc(p.limit, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		return "", p.failure(err)
	}
	answer, err := p.stdout.ReadString('\n')
	if err != nil {
		return "", p.failure(err)
	}
	return strings.TrimSpace(answer), nil
}

// failure ends the contestant, and returns what it said about the reason.
func (p *contestant) failure(err error) error {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // after this all of stderr is there
	return fmt.Errorf("%s: %w %s", p.name, err, bytes.TrimSpace(p.stderr.Bytes()))
}

// check has all blocks expanded, and returns the CRC-32 of the output.
func (p *contestant) check() (string, error) { return p.ask("check") }

// time has all blocks expanded, and returns how many seconds of CPU time that took.
func (p *contestant) time() (float64, error) {
	answer, err := p.ask("time")
	if err != nil {
		return 0, err
	}
	t, err := strconv.ParseFloat(answer, 64)
	if err != nil || t <= 0 {
		return 0, fmt.Errorf("%s took %q seconds", p.name, answer)
	}
	return t, nil
}

// stop ends the contestant.
func (p *contestant) stop() {
	p.stdin.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// sameOutput makes sure that all contestants get the same bytes out of the blocks.
func sameOutput(all []*contestant) error {
	var first string
	for i, p := range all {
		crc, err := p.check()
		switch {
		case err != nil:
			return err
		case i == 0:
			first = crc
		case crc != first:
			return fmt.Errorf("%s makes other bytes (CRC %s) than %s (%s)", p.name, crc, all[0].name, first)
		}
	}
	return nil
}
