package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/container"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/overlay"
	"github.com/squirefs/squire/sqfs/pack"
)

// A container is saved by a process of its own, the save stage, for ordinary users in a user namespace: there they may
// read all files of their layer, also those whose modes forbid it, as a command in the container with more rights has
// left them.

// saveName is argv[0] of the save stage. A saveOrder in JSON is its standard input, the layer, if there is one, its
// descriptor 3.
const (
	saveName  = "squire-save"
	saveLayer = 3
)

// saveOrder says what is to be saved, and how.
type saveOrder struct {
	Name   string // of the container, for messages
	Image  string // or directory
	Layer  bool   // there is one
	Owned  bool   // as container.Record has it
	Places []string
	Output string
	Force  bool // a file of that name is replaced
	Quiet  bool
	Alike  bool         // compressor, level and block size are the image's, and not those of Pack
	Pack   pack.Options // how the result is packed
}

// saveSummary is what came of it.
type saveSummary struct {
	Output   string  `json:"output"`
	Bytes    int64   `json:"bytes"`
	Inodes   int64   `json:"inodes"`
	Copied   int64   `json:"copied"`   // files of the image that were copied as they were
	Expanded int64   `json:"expanded"` // files of the image that were compressed again
	Changed  int64   `json:"changed"`  // files of the layer that changed meanwhile
	Seconds  float64 `json:"seconds"`
	Error    string  `json:"error,omitempty"`
}

// checkSave finds out before anything is started what would be an error at its end.
func checkSave(output string) error {
	if output == "" {
		return nil
	}
	if strings.HasSuffix(output, "/") {
		return fmt.Errorf("--save %s: is a directory; name the file", printable(output))
	}
	if fi, err := os.Stat(output); err == nil && !fi.Mode().IsRegular() {
		return fmt.Errorf("--save %s: is there, and not a regular file", printable(output))
	}
	if err := unix.Access(filepath.Dir(output), unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("--save %s: %w", printable(output), &os.PathError{Op: "write to", Path: filepath.Dir(output), Err: err})
	}
	return nil
}

// saveContainer saves a container in place of whatever has the name of the output.
func saveContainer(c *container.Container, rec *container.Record, output string, stderr *os.File) error {
	o := &saveOrder{Output: output, Force: true, Alike: true}
	_, err := o.of(context.Background(), c, rec, stderr)
	return err
}

// of saves a container. Progress goes to stderr.
func (o *saveOrder) of(ctx context.Context, c *container.Container, rec *container.Record, stderr *os.File) (*saveSummary, error) {
	o.Name, o.Image, o.Owned, o.Places = c.Name, rec.Image, rec.Owned, rec.Targets
	if identity, err := imageIdentity(rec.Image); err != nil {
		return nil, fmt.Errorf("save: %w", err)
	} else if identity != rec.Identity {
		return nil, fmt.Errorf("save: image %s is another one now than that of the container", printable(rec.Image))
	}
	layer, err := c.OpenLayer()
	if errors.Is(err, os.ErrNotExist) {
		err = nil // nothing was ever written
	}
	if err != nil {
		return nil, fmt.Errorf("save: layer: %w", err)
	}
	o.Layer = layer != nil
	if o.Layer {
		defer layer.Close()
	}
	return o.inStage(ctx, layer, stderr)
}

// inStage starts the save stage and waits for it.
func (o *saveOrder) inStage(ctx context.Context, layer, stderr *os.File) (*saveSummary, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if layer == nil {
		if layer, err = os.Open(os.DevNull); err != nil {
			return nil, err
		}
		defer layer.Close()
	}
	run := func(attr *syscall.SysProcAttr) (*saveSummary, error) {
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Args = []string{saveName}
		cmd.Stdin, cmd.Stderr, cmd.ExtraFiles, cmd.SysProcAttr = strings.NewReader(string(text)), stderr, []*os.File{layer}, attr
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		out, failed := cmd.Output()
		sum := new(saveSummary)
		if json.Unmarshal(out, sum) != nil {
			return nil, fmt.Errorf("save: %w", failed)
		}
		if sum.Error != "" {
			return nil, errors.New(sum.Error)
		}
		return sum, nil
	}
	if !o.Owned {
		return run(nil)
	}
	sum, err := run(&syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH},
	})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) && sum == nil { // no user namespaces here
		return run(nil)
	}
	return sum, err
}

// saveStage is the save stage. It returns the exit status.
func saveStage() int {
	stage.SetName(saveName)
	unix.CloseOnExec(saveLayer)
	ctx, stop := untilSignal(context.Background())
	defer stop()
	go func() { unread(int(os.Stdout.Fd())); stop() }()
	var o saveOrder
	var sum *saveSummary
	err := json.NewDecoder(os.Stdin).Decode(&o)
	if err == nil {
		sum, err = o.save(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		sum = &saveSummary{Error: "save " + runtime.OneLine(fmt.Errorf("%s: %w", printable(o.Output), plain(err)))}
	}
	if json.NewEncoder(os.Stdout).Encode(sum) != nil || err != nil {
		return runtime.ExitFailed
	}
	return 0
}

// unread returns when nobody can read any more from the other end of a pipe: who waits for what comes of it was killed, and
// with it the lock that keeps the layer as it is is gone.
func unread(pipe int) {
	fds := []unix.PollFd{{Fd: int32(pipe)}} // POLLERR is always told (pipe(7), poll(2))
	for {
		n, err := unix.Poll(fds, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// save makes the image.
func (o *saveOrder) save(ctx context.Context) (*saveSummary, error) {
	start := time.Now()
	base, err := o.openBase()
	if err != nil {
		return nil, err
	}
	defer base.close()
	out, err := newOutput(o.Output, o.Force)
	if err != nil {
		return nil, err
	}
	defer out.discard()
	w, err := pack.NewWriter(out.File(), o.Pack)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	m := startMeter(os.Stderr, o.Quiet, func() string { return "saving: " + packLine(w.Progress(), time.Since(start)) })
	root, rep, err := base.pack(ctx, w, o, m)
	var stats pack.Stats
	if err == nil {
		stats, err = w.Finish(root)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = out.commit()
	}
	m.close()
	if err != nil {
		return nil, err
	}
	sum := &saveSummary{
		Output: o.Output, Bytes: stats.Bytes, Inodes: stats.Inodes, Copied: rep.Copied, Expanded: rep.Expanded,
		Changed: rep.Changed, Seconds: time.Since(start).Seconds(),
	}
	if !o.Quiet {
		fmt.Fprintln(os.Stderr, "squire:", sum.line(o.Name))
	}
	return sum, nil
}

func (s *saveSummary) line(name string) string {
	if strings.HasPrefix(name, ".") {
		name = "the container"
	}
	return fmt.Sprintf("saved %s to %s: %s, %s, %.1f s", name, printable(s.Output), sizeString(s.Bytes), plural(s.Inodes, "inode"), s.Seconds)
}

// saveBase is what is below the layer.
type saveBase struct {
	img *sqfs.Image // nil: a directory
	r   io.ReaderAt
	f   *os.File
}

func (b *saveBase) close() {
	if b.img != nil {
		b.img.Close()
		b.f.Close()
	}
}

// openBase opens the image, and completes the options that are to be like its own.
func (o *saveOrder) openBase() (*saveBase, error) {
	if fi, err := os.Stat(o.Image); err == nil && fi.IsDir() {
		return new(saveBase), nil
	}
	f, err := openImage(o.Image)
	if err != nil {
		return nil, err
	}
	img, err := newImage(f, f, 0, 0)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", o.Image, err)
	}
	if sb := img.Superblock(); o.Alike {
		o.Pack.BlockSize = int(sb.BlockSize)
		switch sb.Compression {
		case sqfs.Gzip, sqfs.LZ4, sqfs.Zstd:
			o.Pack.Compression = sb.Compression
		}
	}
	return &saveBase{img: img, r: f, f: f}, nil
}

// pack packs image and layer.
func (b *saveBase) pack(ctx context.Context, w *pack.Writer, o *saveOrder, m *meter) (*pack.Inode, *overlay.Report, error) {
	layer := ""
	if o.Layer {
		layer = procPath(saveLayer)
	}
	oo := overlay.Options{Owned: o.Owned, Places: o.Places, Anew: !o.Alike}
	problem := func(path string, err error) { m.say(runtime.OneLine(at(path, err))) }
	if b.img == nil {
		return overlay.Dir(ctx, w, o.Image, layer, oo, problem)
	}
	return overlay.Image(ctx, w, b.img, b.r, layer, oo, problem)
}
