package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/rights"
)

// Stages of squire doctor: an ordinary user's process, and one in namespaces of its own that the first makes. Each
// prints a probeResult.
const (
	probeName       = "squire-probe"
	probeInsideName = "squire-probe-inside"
)

// probeTimeout bounds what the kernel is tried for.
const probeTimeout = 20 * time.Second

// forkProbe runs a stage and returns what it prints.
func forkProbe(name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Dir, cmd.WaitDelay = []string{name}, []string{}, "/", time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	switch {
	case name == probeInsideName:
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	case os.Geteuid() == 0 && rights.AllIDsMapped():
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: rights.Nobody, Gid: rights.Nobody}
	}
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limitedWriter{&out, 1 << 16}, &limitedWriter{&words, 1 << 16}
	err := cmd.Run()
	if err != nil && words.Len() > 0 {
		err = errors.New(strings.TrimSpace(words.String()))
	}
	return out.Bytes(), err
}

// probeStage is the first stage. It returns the exit status.
func probeStage() int {
	var r probeResult
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if r.Device = errorText(err); err == nil {
		device.Close()
	}
	out, err := forkProbe(probeInsideName)
	if err == nil {
		var inside probeResult
		err = json.Unmarshal(out, &inside)
		r.Overlay, r.FUSE = inside.Overlay, inside.FUSE
	}
	r.Namespace = errorText(err)
	return printProbe(&r)
}

// probeInside is the second stage.
func probeInside() int {
	var r probeResult
	const dir = "/tmp" // it is hidden for this process alone
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")
	}
	if err != nil {
		r.Overlay, r.FUSE = errorText(err), errorText(err)
		return printProbe(&r)
	}
	r.Overlay = errorText(tryOverlay(dir))
	r.FUSE = errorText(tryFUSE(dir))
	return printProbe(&r)
}

// tryOverlay mounts one as squire run does and writes to it: some kernels make it read-only without a word.
func tryOverlay(dir string) error {
	for _, name := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(dir, "root")
	options := "userxattr,lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "file"), nil, 0o644)
}

// tryFUSE makes a mount that is nowhere: nobody can wait for it.
func tryFUSE(dir string) error {
	m, err := fusefs.Prepare(dir, fusefs.MountOptions{Source: "probe", UID: os.Getuid(), GID: os.Getgid()})
	if err != nil {
		return err
	}
	m.Device.Close()
	m.Close()
	return nil
}

func printProbe(r *probeResult) int {
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return 1
	}
	return 0
}
