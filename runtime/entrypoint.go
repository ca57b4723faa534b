package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The entrypoint of an image can be run once for a container whose commands come later, as pyxis does: it prepares
// things, sets variables, and then executes its arguments. Those are this program, which tells the variables and the
// directory that the entrypoint has left, and ends. It is reached by descriptor, so that the image needs nothing for it.

// environName is the argument by which this program knows that it is an entrypoint's command.
const environName = "squire-environ"

// Descriptors of the entrypoint: the program, and the file for what it tells.
const (
	entrypointProgram = 3
	entrypointResult  = 4
)

// maxEnviron bounds what an entrypoint leaves, in bytes.
const maxEnviron = 16 << 20

// IsEntrypointCommand reports whether these arguments, as of os.Args, are those that an entrypoint gets. A program that
// uses [Hold] must then return what [TellEnviron] does, at the start of main.
func IsEntrypointCommand(args []string) bool {
	return len(args) == 3 && strings.HasPrefix(args[0], "/proc/self/fd/") && args[1] == environName
}

// TellEnviron writes the directory and the environment of this process to the descriptor that the last argument names,
// each string with a NUL behind it. It returns the exit status.
func TellEnviron() int {
	fd, err := strconv.Atoi(os.Args[2])
	if err != nil || fd < 3 {
		return ExitFailed
	}
	dir, err := os.Getwd()
	if err != nil {
		return fail(ExitFailed, err)
	}
	text := strings.Join(append([]string{dir}, os.Environ()...), "\x00") + "\x00"
	if _, err = os.NewFile(uintptr(fd), "result").WriteAt([]byte(text), 0); err != nil {
		return fail(ExitFailed, err)
	}
	return 0
}

// runEntrypoint runs the entrypoint, if there is one and it is wanted, in the init stage. Its output goes to log. image
// and dir are what the image sets and where it starts without; what is returned is the same, with what the entrypoint
// has changed.
func (c *Config) runEntrypoint(s *Spec, image []string, dir string, log *os.File) ([]string, string, error) {
	if !s.Entrypoint || len(c.Entrypoint) == 0 {
		return image, dir, nil
	}
	env := entrypointEnvironment(s, image, dir)
	after, err := c.executeEntrypoint(env, log)
	if err != nil {
		return nil, "", fmt.Errorf("the entrypoint of %s: %w", s.Image, err)
	}
	if s.Workdir == "" {
		dir = after[0]
	}
	return entrypointChanges(image, env, after[1:]), dir, nil
}

// entrypointEnvironment is that of an entrypoint: the image's, and of the host no more than who the user is and what
// s.KeepEnv names (as with pyxis, where it is found out who set a variable).
func entrypointEnvironment(s *Spec, image []string, dir string) []string {
	keep := slices.Concat(s.KeepEnv, []string{"HOME", "USER", "LOGNAME", "SHELL", "TERM"})
	own := *s
	own.Environ = slices.DeleteFunc(slices.Clone(s.Environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return !slices.Contains(keep, name)
	})
	return environment(&own, image, dir)
}

// executeEntrypoint waits for the entrypoint's end. It returns the directory and the environment that it has left.
func (c *Config) executeEntrypoint(env []string, log *os.File) ([]string, error) {
	file, err := lookPath(c.Entrypoint[0], env)
	if err != nil {
		return nil, err
	}
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer program.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	fd, err := unix.MemfdCreate("environment", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	result := os.NewFile(uintptr(fd), "environment")
	defer result.Close()
	argv := append(slices.Clone(c.Entrypoint), fmt.Sprintf("/proc/self/fd/%d", entrypointProgram), environName, strconv.Itoa(entrypointResult))
	pid, err := syscall.ForkExec(file, argv, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd(), program.Fd(), result.Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return nil, explainExec(file, err)
	}
	status, err := waitChild(pid)
	if err != nil {
		return nil, err
	}
	return readEnviron(result, status)
}

// waitChild waits for the end of a child.
func waitChild(pid int) (status int, err error) {
	var ws unix.WaitStatus
	for {
		_, err = unix.Wait4(pid, &ws, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return exitStatus(ws), err
		}
	}
}

// readEnviron reads what TellEnviron has written. That it ended with status is of no interest if it did.
func readEnviron(result *os.File, status int) ([]string, error) {
	text, err := io.ReadAll(io.NewSectionReader(result, 0, maxEnviron+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) == 0:
		return nil, fmt.Errorf("it ended with status %d, and has not executed its arguments", status)
	case len(text) > maxEnviron || text[len(text)-1] != 0:
		return nil, errors.New("it has left an environment that is too large")
	}
	list := strings.Split(string(bytes.TrimSuffix(text, []byte{0})), "\x00")
	if !strings.HasPrefix(list[0], "/") {
		return nil, errors.New("it has left no directory")
	}
	return list, nil
}

// entrypointChanges are the variables that an image sets by itself and by its entrypoint, which was started with before
// and has left after. What shells count for themselves is not among them.
func entrypointChanges(image, before, after []string) []string {
	var was, is, result envList
	for _, kv := range before {
		was.set(kv)
	}
	for _, kv := range after {
		if strings.Contains(kv, "=") {
			is.set(kv)
		}
	}
	for _, kv := range image {
		name, _, _ := strings.Cut(kv, "=")
		if _, still := is.get(name); still {
			result.set(kv)
		}
	}
	for _, kv := range is.list {
		name, value, _ := strings.Cut(kv, "=")
		if old, had := was.get(name); had && old == value || slices.Contains([]string{"_", "SHLVL", "PWD", "OLDPWD"}, name) {
			continue
		}
		result.set(kv)
	}
	return result.list
}
