package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/trace"
)

type traceRecordOptions struct {
	runOptions
	output string
}

func traceRecordCommand() *cobra.Command {
	var o traceRecordOptions
	cmd := &cobra.Command{
		Use:   "record [flags] IMAGE [--] [COMMAND [ARG...]]",
		Short: "Run a command and record which blocks it reads",
		Long: `Run COMMAND in IMAGE as "squire run" does, and write a trace of all that it reads,
to its end, in place of an older one: into the file that -o names, or beside the image,
as IMAGE.trace, or if that directory cannot be written to into the cache directory. A
file that is neither empty nor a trace is left alone, and nothing is run. Let COMMAND do
what is to be faster, and no more: an import, a first step.

If COMMAND ends with another status than 0, a trace of IMAGE that is there is kept.

Exit status: the command's, as with "squire run"; 125 if nothing was recorded.`,
		Example: `  squire trace record pytorch.sqsh -- python3 -c 'import torch'
  squire trace record -o train.trace --mounts $PWD pytorch.sqsh -- python3 $PWD/train.py --steps 1`,
		Args:              needArgs(1, -1),
		ValidArgsFunction: completeImage,
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(c, args); err != nil {
				return err
			}
			return o.record(c, args[0], args[1:])
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "write the trace into this file")
	return cmd
}

// record runs a command and keeps the trace. The server writes into memory: what is
// there already stays until the new trace is complete, and nothing is left behind
// by whoever is killed.
func (o *traceRecordOptions) record(c *cobra.Command, image string, command []string) error {
	img, err := openTraced(image, 0)
	if err != nil {
		return err
	}
	defer img.close()
	place, err := o.place(img)
	if err != nil {
		return err
	}
	defer place.close()
	memory, err := memoryFile("trace")
	if err != nil {
		return err
	}
	defer memory.Close()
	if o.into, err = duplicate(memory); err != nil {
		return err
	}
	defer o.into.Close() // where no server took it
	ended := o.run(c, image, command)
	var status exitError
	switch {
	case ended != nil && !errors.As(ended, &status):
		return ended
	case status == runtime.ExitNoExec || status == runtime.ExitNotFound:
		return ended // no word of a trace: the command's own is what matters
	}
	if name := img.recorded(place); ended != nil && name != "" {
		fmt.Fprintf(c.ErrOrStderr(), "squire: the command ended with %v: the older trace is kept, in %s\n", ended, printable(name))
		return ended
	}
	if err := o.keep(c, img, memory, place); err != nil {
		return err
	}
	return ended
}

// place returns where the trace goes, nil for the cache directory.
func (o *traceRecordOptions) place(img *tracedImage) (*tracePlace, error) {
	if o.output != "" {
		place, err := placeNamed(o.output, img.file)
		if err != nil {
			return nil, fmt.Errorf("--output: %w", err)
		}
		return place, nil
	}
	if unix.Faccessat(unix.AT_FDCWD, filepath.Dir(img.name), unix.W_OK, unix.AT_EACCESS) != nil {
		return nil, checkCache()
	}
	return placeBeside(img.name, img.file)
}

// checkCache finds out whether a trace can be kept in the cache directory.
func checkCache() error {
	s, err := openCache(true)
	if err != nil {
		return err
	}
	defer s.Close()
	dir := filepath.Dir(s.Path(trace.Key{}))
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("directory of traces: %s: %w", dir, err)
	}
	return nil
}

// recorded returns the name of the trace of the image that is in a place already, ""
// if there is none.
func (i *tracedImage) recorded(place *tracePlace) string {
	var f *os.File
	if place != nil {
		if place.into != nil {
			return ""
		}
		var err error
		if f, err = openTrace(place.name); err != nil {
			return ""
		}
	} else {
		s, err := openCache(false)
		if err != nil {
			return ""
		}
		defer s.Close()
		if f, err = s.Open(i.key); err != nil {
			return ""
		}
	}
	defer f.Close()
	if t, err := trace.Read(f); err != nil || t.Image != i.img.Superblock() || len(t.Touches) == 0 {
		return ""
	}
	return f.Name()
}

// keep puts the recorded trace where it belongs and says what is in it.
func (o *traceRecordOptions) keep(c *cobra.Command, img *tracedImage, memory *os.File, place *tracePlace) error {
	t, err := trace.Read(memory)
	if errors.Is(err, trace.ErrEmpty) {
		return errors.New("nothing was recorded: nothing was read, or something still uses the image")
	}
	if err != nil {
		return err
	}
	var dest string
	if place == nil {
		dest, err = img.keep(t)
	} else {
		dest, err = place.name, place.write(t)
	}
	if err != nil {
		return err
	}
	list, err := img.files(dest, t)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.ErrOrStderr(), "squire: recorded %s, in %s\n", list.summary(), printable(dest))
	if place == nil {
		img.sayUsed(c.ErrOrStderr(), 0, dest)
	}
	return nil
}

// memoryFile returns a file without a name.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// duplicate returns the same opened file once more.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
