package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/runtime"
)

// A node service, if there is one, serves images for all tasks of a node, see
// package noded. It is looked for in this order: where SQUIRE_SOCKET says, or the site,
// or at nodeSocket; among the user's own, which the first who needs one starts. Who
// finds none does without.

// nodeSocket is where the service of the node listens. Only tests change it.
var nodeSocket = "/run/squire/squire.sock"

// serviceMode says which services are used: a value of SQUIRE_SERVICE, or of
// squire mount's option "service".
type serviceMode string

const (
	serviceAuto serviceMode = "auto" // that of the node, or a user's own
	serviceNode serviceMode = "node" // that of the node only
	serviceOwn  serviceMode = "own"  // the user's own only
	serviceOff  serviceMode = "off"  // none
)

// parseServiceMode reads a value of what is called name.
func parseServiceMode(name, value string) (serviceMode, error) {
	switch m := serviceMode(value); m {
	case "":
		return serviceAuto, nil
	case serviceAuto, serviceNode, serviceOwn, serviceOff:
		return m, nil
	}
	return "", fmt.Errorf("%s=%s: want auto, node, own or off", name, printable(value))
}

// servicesWanted is what the environment says.
func servicesWanted() (serviceMode, error) {
	return parseServiceMode("SQUIRE_SERVICE", os.Getenv("SQUIRE_SERVICE"))
}

// errUnwanted: no service is asked for, or none that could do this.
var errUnwanted = errors.New("no service is wanted")

// dialNode connects to the service of the node.
func dialNode(mode serviceMode) (*noded.Client, error) {
	if mode == serviceOff || mode == serviceOwn {
		return nil, errUnwanted
	}
	return noded.Dial(nodeSocketPath())
}

// nodeSocketPath is where the service of the node is looked for.
func nodeSocketPath() string {
	if socket := os.Getenv("SQUIRE_SOCKET"); socket != "" {
		return socket
	}
	return siteSocket()
}

// siteSocket is where the service of the node listens.
func siteSocket() string {
	if site, err := siteConfig(); err == nil && site.Socket != "" {
		return site.Socket
	}
	return nodeSocket
}

// dialService connects to the service of the node, or to the user's own, which it
// starts if there is none. Root has one of its own only when asked for.
func dialService(mode serviceMode) (*noded.Client, error) {
	c, err := dialNode(mode)
	if err == nil || mode == serviceOff || mode == serviceNode || mode == serviceAuto && os.Geteuid() == 0 && rights.AllIDsMapped() {
		return c, err
	}
	return dialOwn()
}

// isFinal reports whether a service's refusal is one of the image or of the user,
// and not trouble of its own: without it, it would not be better.
func isFinal(err error) bool {
	var refused *noded.ServiceError
	return errors.As(err, &refused) && !refused.Fallback()
}

// imageError is what a service said of an image, with its name. nil stays nil.
func imageError(image string, err error) error {
	if err == nil || strings.Contains(err.Error(), image) {
		return err
	}
	return fmt.Errorf("%s: %w", image, err)
}

// ownTries and ownPause bound the wait for somebody else who has the name of the
// user's service, and does not listen yet.
const (
	ownTries = 20
	ownPause = 5 * time.Millisecond
)

func dialOwn() (*noded.Client, error) {
	socket, err := ownSocket()
	if err != nil {
		return nil, err
	}
	var c *noded.Client
	for range ownTries {
		// It must be root's or this user's: anybody may take the name.
		if c, err = noded.Dial(socket); !errors.Is(err, noded.ErrNoService) {
			return c, err
		}
		var started bool
		if started, err = startOwn(socket); err != nil {
			return nil, fmt.Errorf("start a service: %w", err)
		}
		if !started {
			time.Sleep(ownPause)
		}
	}
	return nil, err
}

// ownSocket is the name of the user's own service, for all that may share one:
// the tasks of a job's step, which end together, as seen from the same
// namespaces. A network namespace has its own abstract sockets anyway.
func ownSocket() (string, error) {
	h := sha256.New()
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(cgroup)) {
		fmt.Fprintln(h, stepOf(strings.TrimSuffix(line, "\n")))
	}
	for _, ns := range []string{"pid", "user", "cgroup"} {
		id, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, id)
	}
	return fmt.Sprintf("@squire-%d-%s", os.Geteuid(), hex.EncodeToString(h.Sum(nil)[:8])), nil
}

// stepOf leaves away what Slurm adds to the cgroup of a step: one for each task
// (src/plugins/cgroup: job_ID/step_ID/task_N, or job_ID/step_ID/user/task_N with
// version 2). Other lines of /proc/self/cgroup stay as they are.
func stepOf(line string) string {
	for at := 0; ; {
		step := strings.Index(line[at:], "/step_")
		if step < 0 {
			return line
		}
		step += at
		at = len(line)
		if end := strings.IndexByte(line[step+1:], '/'); end >= 0 {
			at = step + 1 + end
		}
		if isJobGroup(line[strings.LastIndexByte(line[:step], '/')+1 : step]) {
			return line[:at]
		}
	}
}

// isJobGroup reports whether Slurm calls a job's cgroup so: job_ID, or with version 2,
// from 26.05 on, the job's SLUID, as sEKNKTV3WPV500 (print_sluid, src/common/sluid.c).
func isJobGroup(name string) bool {
	if strings.HasPrefix(name, "job_") {
		return true
	}
	return len(name) == 14 && name[0] == 's' && strings.Trim(name[1:], "0123456789ABCDEFGHJKMNPQRSTVWXYZ") == ""
}

// ownName is argv[0] of a user's own service, which finds its listening socket as
// systemd would pass it (sd_listen_fds(3)). With an argument it is the process
// between, which starts that one and ends, so that it is nobody's child.
const ownName = "squire-own"

// startOwn starts the user's own service, listening at socket, and reports whether
// it did: somebody else may have the name. Whoever connects waits until it answers.
func startOwn(socket string) (bool, error) {
	listener, err := listenOwn(socket)
	if errors.Is(err, unix.EADDRINUSE) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer listener.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer null.Close()
	var pid int
	// Descriptors that we inherited are for the command, not for the service.
	runtime.Shielded(func() {
		pid, err = syscall.ForkExec("/proc/self/exe", []string{ownName, "start"}, &syscall.ProcAttr{
			Dir:   "/",
			Env:   []string{"LISTEN_FDS=1"},
			Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), listener.Fd()},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
	})
	if err != nil {
		return false, err
	}
	if ws := wait(pid); ws.ExitStatus() != 0 {
		return false, errors.New("it did not start")
	}
	return true, nil
}

// listenOwn returns a socket that listens at an abstract name.
func listenOwn(socket string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), socket)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: socket}); err == nil {
		err = unix.Listen(fd, math.MaxInt16) // at most net.core.somaxconn
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// own is the stage of a user's own service. It returns the exit status.
func own() int {
	if len(os.Args) > 1 {
		_, err := syscall.ForkExec("/proc/self/exe", []string{ownName}, &syscall.ProcAttr{
			Env:   os.Environ(),
			Files: []uintptr{0, 1, 2, 3},
		})
		if err != nil {
			return runtime.ExitFailed
		}
		return 0
	}
	stage.SetName(ownName)
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	o := ownDaemon()
	if err := o.run(); err != nil {
		return runtime.ExitFailed
	}
	return 0
}
