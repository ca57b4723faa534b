package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// The step process prepares the container of a step on its node and has it joined by the step's tasks, which Slurm
// starts. It is one of the step's processes, with their user, limits and control groups, and takes no part in it but
// that: its end is the end of its connection with the plugin, in slurmstepd.
//
// The order comes as standard input. Over stepSocket, a SOCK_SEQPACKET socket that the plugin and all tasks have the
// other end of, come messages, one packet each:
//
//	{} with three descriptors   a task: where to answer, its standard error, a file with a slurmTask
//	{"end":true}                all tasks have ended; one packet is answered: "+", or "-" and what went wrong
//
// How a task is answered stands at slurmReply.

// stepSocket is the descriptor of the socket.
const stepSocket = 3

// Bounds of what comes over it.
const (
	maxStepMessage = 4 << 10
	maxStepFiles   = 3
	maxStepReads   = 8 // tasks whose words are read at once
)

// slurmOrder is what the step process is to do. The plugin wrote it, but what is in it is mostly the user's.
type slurmOrder struct {
	slurmDocument

	Job      int64  `json:"job"`
	Step     int64  `json:"step"`
	ArrayJob int64  `json:"array_job"`
	UID      int    `json:"uid"`
	GID      int    `json:"gid"`
	Nodes    int    `json:"nodes"`   // of the step
	NodeID   int    `json:"node_id"` // which of them this is, from 0 on
	Tasks    int    `json:"tasks"`   // on this node
	Script   string `json:"script"`  // of a batch step
}

// toBytes makes the strings bytes, see slurmDocument.
func (o *slurmOrder) toBytes() {
	o.slurmDocument.toBytes()
	o.Script = slurmByte(o.Script)
}

// maxNodeTasks bounds the tasks on a node that an order may have.
const maxNodeTasks = 1 << 16

// check reports what no plugin would have written.
func (o *slurmOrder) check() error {
	if err := o.slurmDocument.check(); err != nil {
		return err
	}
	switch {
	case o.UID != os.Geteuid() || o.GID != os.Getegid():
		return fmt.Errorf("the step is of user %d and group %d, and this process of %d and %d", o.UID, o.GID, os.Geteuid(), os.Getegid())
	case o.Tasks < 1 || o.Tasks > maxNodeTasks:
		return fmt.Errorf("a step of %d tasks", o.Tasks)
	case strings.ContainsRune(o.Cwd+o.Script, 0):
		return errors.New("a path holds a NUL byte")
	}
	return nil
}

// environ makes the job's environment this process's: HOME, SQUIRE_*, http_proxy and the like are meant for us too.
func (o *slurmOrder) environ() {
	os.Clearenv()
	for _, kv := range o.Env {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" && !strings.ContainsRune(kv, 0) {
			_ = os.Setenv(name, value)
		}
	}
}

func slurmStepCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "step [JOB.STEP]", // the argument says to administrators and the epilog what the process is
		Short: "Prepare the container of a step, and have its tasks join",
		Args:  needArgs(0, 1),
		RunE: func(c *cobra.Command, _ []string) error {
			return runStep(os.Stdin, os.NewFile(stepSocket, "plugin"))
		},
	}
}

// slurmStep is the state of a step process.
type slurmStep struct {
	order  slurmOrder
	socket *os.File
	words  *stepWords
	cancel context.CancelFunc // ends the preparation

	ready     chan struct{} // closed when there is a container, or failed is set
	container *slurmContainer
	failed    error
	told      atomic.Bool // a task has been told of failed
	pmix      pmixWait
	pty       ptyWait

	reads    chan struct{} // one for each task whose words are read
	answers  sync.WaitGroup
	answered atomic.Int64
	ended    atomic.Int64 // supervised tasks' commands
}

// stepSignals are not for the step process: Slurm sends them to all of the step's.
var stepSignals = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGXCPU, unix.SIGPIPE,
}

// runStep is the step process, until the plugin is gone.
func runStep(order, socket *os.File) error {
	unix.CloseOnExec(int(socket.Fd()))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &slurmStep{socket: socket, cancel: cancel, ready: make(chan struct{}), reads: make(chan struct{}, maxStepReads)}
	s.heedSignals()
	var err error
	if s.words, err = divertWords(); err != nil {
		return err
	}
	if err = s.read(order); err != nil {
		s.failed = err
		close(s.ready)
	} else {
		go func() {
			defer close(s.ready)
			s.container, s.failed = s.prepare(ctx)
		}()
	}
	s.listen()
	cancel()
	<-s.ready
	s.answers.Wait()
	if s.container != nil {
		s.container.close()
	}
	return nil
}

// read reads the order, and becomes what it says.
func (s *slurmStep) read(from *os.File) error {
	if err := readSlurmDocument(from, &s.order); err != nil {
		return err
	}
	from.Close()
	if err := s.order.check(); err != nil {
		return err
	}
	s.order.environ()
	return nil
}

// heedSignals has a preparation end that somebody wants to end, as when the job is cancelled while an image is imported,
// and nothing else.
func (s *slurmStep) heedSignals() {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, stepSignals...)
	go func() {
		for got := range ch {
			if got == unix.SIGTERM {
				s.cancel()
			}
		}
	}()
}

// listen takes messages until the other end of the socket is closed.
func (s *slurmStep) listen() {
	b, oob := make([]byte, maxStepMessage), make([]byte, unix.CmsgSpace(4*maxStepFiles))
	for {
		n, oobn, flags, _, err := unix.Recvmsg(int(s.socket.Fd()), b, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			closeAll(receivedFiles(oob[:max(oobn, 0)]))
			return
		}
		files := receivedFiles(oob[:oobn])
		if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			closeAll(files)
			continue
		}
		s.take(b[:n], files)
	}
}

// stepMessage is one that is not a task's.
type stepMessage struct {
	End bool `json:"end"` // all tasks have ended
}

// take does what a message says. One that nobody understands is for another version.
func (s *slurmStep) take(text []byte, files []*os.File) {
	if len(files) == maxStepFiles {
		s.reads <- struct{}{} // all three descriptors are open until the task has been heard
		s.answers.Go(func() { s.answer(files[0], files[1], files[2]) })
		return
	}
	closeAll(files)
	var m stepMessage
	if err := json.Unmarshal(text, &m); err != nil {
		return
	}
	if m.End {
		s.end()
	}
}

// end says how the step has ended for the container. When nobody waits any more, its preparation ends.
func (s *slurmStep) end() {
	s.cancel()
	<-s.ready
	answer := "+"
	if s.container != nil { // which has been saved, unless a task has never come in
		if err := s.container.finish(); err != nil {
			answer = "-" + wordsOf(err)
		}
	}
	_ = unix.Sendmsg(int(s.socket.Fd()), []byte(answer[:min(len(answer), maxStepMessage)]), nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
}

// answer answers a task, and closes its descriptors: while the container is made, there is one open for each task.
func (s *slurmStep) answer(to, stderr, file *os.File) {
	defer to.Close()
	s.pty.tell(stderr, s.order.Tasks)
	s.words.speakTo(stderr)
	task, err := readSlurmTask(file)
	file.Close()
	<-s.reads
	s.pmix.tell(task)
	<-s.ready
	s.words.silence()
	if s.failed != nil {
		err = s.failed
	}
	if err == nil {
		err = s.admit(task, to)
	}
	if err != nil {
		s.refuse(to, err)
	}
	if s.answered.Add(1) == int64(s.order.Tasks) && s.container != nil {
		s.container.settle()
	}
}

// admit tells a task how to be in the container.
func (s *slurmStep) admit(task *slurmTask, to *os.File) error {
	reply, err := s.container.reply(s, task)
	if err == nil {
		err = reply.send(to)
	}
	if err == nil && reply.supervised {
		err = s.supervise(to)
	}
	return err
}

// supervise waits for a task's command to end, and lets the task end then. It returns at once. Slurm's plugin cannot change
// how a task has ended for Slurm. So that a container that cannot be saved makes the step fail, the process that Slurm
// knows waits for the command, sends its wait status, and asks for an answer: "+", or "-" and an error that it tells.
// The save is made when the last command has ended.
func (s *slurmStep) supervise(task *os.File) error {
	fd, err := unix.FcntlInt(task.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("supervise a task: %w", err)
	}
	if err = unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("supervise a task: %w", err)
	}
	to := os.NewFile(uintptr(fd), "task")
	s.answers.Go(func() {
		defer to.Close()
		var status [32]byte
		_, _ = to.Read(status[:]) // nothing: it was killed
		answer := "+"
		if s.ended.Add(1) == int64(s.order.Tasks) {
			if err := s.container.finish(); err != nil {
				answer = "-" + wordsOf(err)
			}
		}
		_, _ = to.WriteString(answer)
	})
	return nil
}

// refuse tells a task what went wrong. What it is for all of them is said once.
func (s *slurmStep) refuse(to *os.File, err error) {
	text := wordsOf(err)
	if s.failed != nil && s.told.Swap(true) {
		text = ""
	}
	_ = sendReply(to, []byte(replyHead('-', len(text))+text), nil)
}

// wordsOf is the text of an error, in lines, as it may be shown.
func wordsOf(err error) string {
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = slurmText(errors.New(printable(line))); line != "" {
			lines = append(lines, line)
		}
	}
	const limit = 16 << 10
	text := strings.Join(lines, "\n")
	return text[:min(len(text), limit)]
}

// slurmTask is what a task says of itself, in records as those of slurmReply:
//
//	d  a device node that the task's control group keeps it from, which only a process in that can tell
//	e  NAME=VALUE, of the environment
//	t  the end
type slurmTask struct {
	Env    []string
	Denied []string
}

// maxSlurmTask bounds a slurmTask, in bytes: an environment may have 6 MiB (execve(2)).
const maxSlurmTask = 8 << 20

// readSlurmTask reads what a task says. The file is a memfd: another could keep us waiting.
func readSlurmTask(file *os.File) (*slurmTask, error) {
	var st unix.Stat_t
	fd := int(file.Fd())
	if _, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0); err != nil || unix.Fstat(fd, &st) != nil {
		return nil, errors.New("a task sent no file in memory")
	}
	if st.Size > maxSlurmTask {
		return nil, fmt.Errorf("a task says more than %s", sizeString(maxSlurmTask))
	}
	text := make([]byte, st.Size)
	n, err := unix.Pread(fd, text, 0)
	if err != nil {
		return nil, fmt.Errorf("what a task says: %w", err)
	}
	return parseSlurmTask(text[:n])
}

func parseSlurmTask(text []byte) (*slurmTask, error) {
	records, whole := strings.CutSuffix(string(text), "t\x00")
	t := &slurmTask{Env: make([]string, 0, strings.Count(records, "\x00"))}
	for records != "" && whole {
		var record string
		record, records, whole = strings.Cut(records, "\x00")
		switch {
		case strings.HasPrefix(record, "d"):
			t.Denied = append(t.Denied, record[1:])
		case strings.HasPrefix(record, "e"):
			t.Env = append(t.Env, record[1:])
		default:
			whole = false
		}
	}
	if !whole {
		return nil, errors.New("what a task says makes no sense")
	}
	return t, nil
}

// replyTimeout bounds the wait for a task that does not read.
const replyTimeout = 30 * time.Second
