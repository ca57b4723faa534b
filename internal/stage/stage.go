// Package stage starts this program once more, under another name, as a process of its own that the command line knows
// nothing of.
package stage

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
)

// SetName makes this process show as name in ps and top; executed through /proc/self/exe it would be "exe".
func SetName(name string) {
	b := append([]byte(name), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}

// ContinueAfterParent has this process go on when its parent dies, if it stands still (SIGSTOP, a debugger), as it could not
// see then that its socket is closed. SIGCONT does nothing to one that runs. The setting is a thread's and lost with it, and
// with a change of rights (prctl(2): PR_SET_PDEATHSIG). What it waits for is the end of the thread that forked.
func ContinueAfterParent() {
	set := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGCONT), 0, 0, 0)
		close(set)
		select {}
	}()
	<-set
}

// Fork starts a process that shall have no rights, see rights.Confine, with files as its descriptors 0, 1 and so on. All
// others that are open here must be closed on exec. The caller waits for it.
func Fork(name string, files ...uintptr) (pid int, err error) {
	attr := &syscall.ProcAttr{
		// With more, Go would start threads at once that have nothing to do yet, and each would have to be told to give
		// up its rights.
		Env:   []string{"GOMAXPROCS=1"},
		Files: files,
		// A session of its own: ^C on the terminal is not for it.
		Sys: &syscall.SysProcAttr{Setsid: true},
	}
	if os.Geteuid() == 0 {
		// What is given up here need not be given up in every thread there. Not so the user: the new program would be
		// open to others of nobody's.
		attr.Sys.Credential = &syscall.Credential{Gid: rights.Nobody}
	}
	pid, err = syscall.ForkExec("/proc/self/exe", []string{name}, attr)
	if err != nil && attr.Sys.Credential != nil {
		attr.Sys.Credential = nil // root without the right to change
		pid, err = syscall.ForkExec("/proc/self/exe", []string{name}, attr)
	}
	return pid, err
}
