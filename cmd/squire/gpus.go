package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/gpu"
)

// deviceOptions are flags of "squire run".
type deviceOptions struct {
	gpus    string
	devices []string

	step *stepDevices // of the step that the options are for; nil: there is none

	widen  bool     // other tasks share the container:
	wide   *gpu.Set // with the devices of all of them
	hidden []string // those that this task does not have
}

func (o *deviceOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.gpus, "gpus", "", "GPUs to show: all, none, or indices, UUIDs, MIG devices: N[,...] (default: what Slurm or CUDA_VISIBLE_DEVICES says, else all)")
	f.StringArrayVar(&o.devices, "device", nil, "show a device node of the host, NODE[:TARGET], or a CDI device, VENDOR/CLASS=NAME")
}

// apply finds the devices on the host and puts them into s, with the variables
// that they need: before --set-env, which has the last word.
func (o *deviceOptions) apply(s *runtime.Spec) (err error) {
	r := &gpu.Request{
		GPUs: o.gpus, Devices: o.devices, Environ: s.Environ, Root: os.Geteuid() == 0, ListMIG: listMIG,
	}
	if o.step != nil {
		s.Devices, err = o.step.choose(r)
	} else {
		s.Devices, err = o.choose(r)
	}
	if err != nil {
		return err
	}
	s.SetEnv = append(slices.Clone(s.Devices.Env), s.SetEnv...)
	s.Environ = slices.DeleteFunc(slices.Clone(s.Environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(s.Devices.Unset, name)
	})
	for _, note := range s.Devices.Notes {
		fmt.Fprintln(os.Stderr, "squire:", runtime.OneLine(errors.New(note)))
	}
	return nil
}

func (o *deviceOptions) choose(r *gpu.Request) (*gpu.Set, error) {
	host, err := gpu.Discover("/")
	if err != nil {
		return nil, err
	}
	defer host.Close()
	set, err := host.Choose(r)
	if err == nil && o.widen {
		o.wide, o.hidden = host.Widen(set)
	}
	return set, err
}

// listMIG asks the host's nvidia-smi for the names of MIG devices. It runs as
// the user, with nothing of their environment.
func listMIG() ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/nvidia-smi", "-L")
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	var out bytes.Buffer
	cmd.Stdout = &limitedWriter{&out, 1 << 20}
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	return out.Bytes(), err
}

// limitedWriter takes so many bytes, and refuses more.
type limitedWriter struct {
	to   *bytes.Buffer
	left int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errors.New("too much output")
	}
	return w.to.Write(p)
}
