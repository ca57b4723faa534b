package noded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/stage"
)

// Where there is no systemd that keeps descriptors, a process of the keeper's own does: the heir has duplicates of all that
// the next keeper needs, and becomes that one when its socket is closed. A keeper that ends as it should has killed it
// before. Either of the two may be killed at any time: a keeper starts another heir.
//
// What is said, one way only, one message of a SOCK_SEQPACKET socket at a time: "+NAME" with a descriptor, or "-NAME".
// Names are as in records.go.

// HeirName is argv[0] of the heir, of which the keeper's command line is the rest. A program that uses Run calls HeirMain
// when it finds itself called so.
const HeirName = "squire-heir"

const (
	heirSocket  = firstFD
	heirTimeout = time.Second // of a message; an heir that does not take it is replaced
	heirPause   = time.Second // between one and the next
)

// heir is the keeper's end. The zero value is one that is not there.
type heir struct {
	mu   sync.Mutex
	proc *os.Process
	conn *net.UnixConn // nil: there is none
}

// add has the heir keep a descriptor, remove let go of it.
func (h *heir) add(name string, f *os.File) { h.send("+"+name, f) }

func (h *heir) remove(name string) { h.send("-"+name, nil) }

func (h *heir) send(text string, f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell(text, f)
}

// tell sends a message; h.mu is held.
func (h *heir) tell(text string, f *os.File) {
	if h.conn == nil {
		return
	}
	err := h.conn.SetWriteDeadline(time.Now().Add(heirTimeout))
	switch {
	case err != nil:
	case f == nil:
		_, err = h.conn.Write([]byte(text))
	default:
		err = withFD(f, func(fd int) error { return sendFile(h.conn, text, fd) })
	}
	if err != nil {
		h.drop()
	}
}

// drop ends it, before it can see that its socket is closed; h.mu is held.
func (h *heir) drop() {
	if h.conn != nil {
		_ = h.proc.Kill()
		h.conn.Close()
		h.conn = nil
	}
}

// dismiss ends it, if there is one.
func (h *heir) dismiss() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
}

// entrust has a descriptor survive the keeper, withdraw takes that back.
func (k *keeper) entrust(name string, f *os.File) {
	if f == nil {
		return
	}
	k.store.add(name, f)
	k.heir.add(name, f)
}

func (k *keeper) withdraw(name string) {
	k.store.remove(name)
	k.heir.remove(name)
}

// heirLoop has an heir there until ctx ends. An own service, which may be over soon, has one after a moment.
func (k *keeper) heirLoop(ctx context.Context, l *listener) {
	if k.cfg.Own && !pause(ctx, heirPause, nil) {
		return
	}
	for k.starting.pass(ctx) == nil {
		if err := k.runHeir(ctx, l); err != nil {
			k.log.Warn("nobody would go on if the keeper died", "error", err)
		}
		if !pause(ctx, heirPause, nil) {
			return
		}
	}
}

// runHeir runs an heir until it ends.
func (k *keeper) runHeir(ctx context.Context, l *listener) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	var proc *os.Process
	started := k.onMain(func() { // where nothing is upgraded meanwhile
		if proc, err = k.parts.heir(theirs); err != nil {
			return
		}
		k.inheriting.Add(1)
		k.heir.mu.Lock()
		k.heir.proc, k.heir.conn = proc, ours
		k.heir.mu.Unlock()
	})
	theirs.Close()
	if started != nil || err != nil {
		ours.Close()
		return err
	}
	defer k.inheriting.Done()
	over := context.AfterFunc(ctx, k.heir.dismiss)
	defer over()
	k.bequeath(l)
	state, err := proc.Wait()
	k.heir.dismiss()
	if err != nil || ctx.Err() != nil || k.starting.closed() {
		return err
	}
	return fmt.Errorf("%s: %s", HeirName, state)
}

// bequeath gives the heir all that there is. What changes meanwhile is told afterwards.
func (k *keeper) bequeath(l *listener) {
	k.heir.mu.Lock()
	defer k.heir.mu.Unlock()
	for _, p := range k.possessions(l) {
		if !p.slow {
			k.heir.tell("+"+p.name, p.file)
		}
	}
}

// possession is something that the next keeper needs.
type possession struct {
	name string
	file *os.File
	slow bool // to close it may take for ever, see keep
}

func (k *keeper) possessions(l *listener) (all []possession) {
	add := func(name string, f *os.File, slow bool) {
		if f != nil {
			all = append(all, possession{name, f, slow})
		}
	}
	add(nameRecords, k.records.f, false)
	add(nameListen, l.file, false)
	add(nameLock, l.lock, false)
	add(nameMetrics, k.metrics, false)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, img := range k.images {
		if img.device != nil {
			add(img.fdName("file"), img.file, img.loose)
			add(img.fdName("list"), img.list, false)
			add(img.fdName("device"), img.device, false)
			add(img.fdName("mount"), img.mount, false)
		}
	}
	return all
}

// socketPair returns two ends of a socket, the second for another process.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), HeirName), os.NewFile(uintptr(fds[1]), "keeper")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// startHeir starts an heir, which has the keeper's rights, environment and standard error.
func startHeir(socket *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	return os.StartProcess("/proc/self/exe", append([]string{HeirName}, os.Args...), &os.ProcAttr{
		Files: []*os.File{null, os.Stdout, os.Stderr, socket},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// HeirMain is the stage. It returns the exit status, unless it becomes the keeper.
func HeirMain() int {
	stage.SetName(HeirName)
	// They are the keeper's. What is ignored would be so after exec as well, what is heeded is not.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	stage.ContinueAfterParent()
	unix.CloseOnExec(heirSocket)
	estate := map[string]int{}
	if err := receiveEstate(heirSocket, estate); err != nil {
		fmt.Fprintln(os.Stderr, HeirName+":", err)
		return 1 // the keeper starts another
	}
	if _, ok := estate[nameListen]; !ok {
		return 1 // the keeper died before it had told of anything
	}
	var list []string
	for name, fd := range estate {
		list = append(list, name+"="+strconv.Itoa(fd))
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return 1
		}
	}
	env := append(os.Environ(), envInherit+"="+strings.Join(list, ","))
	fmt.Fprintln(os.Stderr, HeirName+":", unix.Exec("/proc/self/exe", os.Args[1:], env))
	return 1
}

// receiveEstate takes what the keeper gives until it is gone. No descriptor becomes a file: Go's poller would look for those
// that do not block.
func receiveEstate(sock int, estate map[string]int) error {
	text, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(sock, text, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil && !errors.Is(err, unix.ECONNRESET):
			return err
		case err != nil || n == 0:
			return nil
		}
		name := string(text[1:n])
		if old, ok := estate[name]; ok {
			unix.Close(old)
			delete(estate, name)
		}
		if text[0] == '-' {
			continue
		}
		fd, err := descriptorIn(oob[:oobn])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		estate[name] = fd
	}
}

// descriptorIn returns the descriptor that came with a message.
func descriptorIn(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return -1, errors.New("no descriptor came with it")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("no descriptor came with it")
	}
	return fds[0], nil
}
