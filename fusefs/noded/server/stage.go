package server

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/sqfs"
)

// socket is the descriptor that leads to the keeper.
const socket = 3

// process is what all images share.
type process struct {
	setting
	conn     *wire.Conn
	log      *slog.Logger
	cache    *cache.Cache
	metadata *sqfs.Budget
	turns    *fusefs.Turns
	room     *fusefs.Room

	sending sync.Mutex

	mu      sync.Mutex // is never held while something waits
	images  map[uint64]*image
	waiting int            // requests that may wait for storage
	users   map[uint32]int // of them, those of each user
	serving sync.WaitGroup
	stop    chan struct{} // closed when all are to end
	failed  chan error    // why, if it is not the keeper who wants that
}

// Numbers of requests that may wait for storage at the same time. One user whose storage hangs must not keep others from
// what they want.
const (
	maxWaiting     = 256
	maxUserWaiting = 32
)

// maxThreads is at which number Go ends the process. Storage that hangs has a thread for each read: those that fusefs.Room
// has room for, and requests that wait.
const maxThreads = 20000

// stopTimeout is how long what was taken may take to be answered when the process is to end.
const stopTimeout = 2 * time.Second

// Main is the stage. It returns the exit status.
func Main() int {
	stage.SetName(Name)
	// Who ends all processes of a service or a job means the keeper. What nobody reads on standard error is lost.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPIPE)
	unix.CloseOnExec(socket)
	if err := run(); err != nil {
		tell("the image server ends", "err", err)
		return 1
	}
	return 0
}

func run() error {
	expose()
	if err := rights.Confine(); err != nil {
		return err
	}
	stage.ContinueAfterParent() // as if it were stopped it would stay for ever, with devices and images in its hands
	conn, err := wire.FileConn(os.NewFile(socket, "keeper"))
	if err != nil {
		return err
	}
	p := &process{
		conn:   conn,
		log:    newLog(os.Stderr),
		images: make(map[uint64]*image),
		users:  make(map[uint32]int),
		stop:   make(chan struct{}),
		failed: make(chan error, 1),
	}
	files, err := conn.Recv(&p.setting)
	closeAll(files)
	if err != nil {
		return fmt.Errorf("receive the setting: %w", err)
	}
	// Twice as many: whoever decodes keeps one for a millisecond at a time, and a request that was read waits for a free
	// one.
	runtime.GOMAXPROCS(2 * max(p.Processors, 1))
	debug.SetMaxThreads(maxThreads)
	p.cache, p.metadata, p.turns = cache.New(p.Cache), sqfs.NewBudget(p.Metadata), fusefs.NewTurns(p.Processors)
	p.room = fusefs.NewRoom(0)
	p.mu.Lock()
	p.limitMemory()
	p.mu.Unlock()
	err = p.loop()
	p.end()
	select {
	case err = <-p.failed:
	default:
		if errors.Is(err, io.EOF) {
			return nil // the keeper has what it needs to start another one
		}
	}
	return err
}

// fail ends the process, as if the keeper were gone, with an error.
func (p *process) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
	p.conn.Close()
}

// tell logs the last thing that there is to say, if that can be done within a second.
func tell(msg string, args ...any) {
	told := make(chan struct{})
	go func() {
		slog.New(slog.NewTextHandler(os.Stderr, nil)).Error(msg, args...)
		close(told)
	}()
	select {
	case <-told:
	case <-time.After(time.Second):
	}
}

// expose makes this process the one that the kernel ends when memory is short, rather than the keeper or who uses the
// mounts: it comes again, with caches that are empty.
func expose() { _ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0) }

// loop takes requests until the keeper is gone, or wants the process to end. It never waits for anything else.
func (p *process) loop() error {
	for {
		r := new(request)
		files, err := p.conn.Recv(r)
		if err != nil {
			return err
		}
		if r.Do == verbStop {
			closeAll(files)
			return nil
		}
		p.handle(r, files)
	}
}

// handle does what is asked, or has it done.
func (p *process) handle(r *request, files []*os.File) {
	switch r.Do {
	case verbPing:
		p.stats(&reply{}, r) // whoever holds a lock for ever is found
		p.reply(&reply{Number: r.Number})
	case verbStats:
		out := &reply{Number: r.Number, Memory: resident()}
		p.stats(out, r)
		p.reply(out)
	case verbForget:
		p.forget(r.Image.ID)
	case verbCommon:
		p.common(r.Image.ID)
	case verbServe:
		p.serve(r, files)
		return
	case verbSuperblock:
		p.wait(r, files, func() *reply { return superblock(r, files) })
		return
	case verbOpen:
		p.open(r, files)
		return
	default:
		p.reply(refusal(r, fmt.Errorf("request of unknown kind %d", r.Do)))
	}
	closeAll(files)
}

// wait calls do in a goroutine of its own, as it may wait for storage, for ever even, unless too many do, and sends what
// it returns. Files are closed then.
func (p *process) wait(r *request, files []*os.File, do func() *reply) {
	if err := p.enter(r.Image.User); err != nil {
		go closeAll(files)
		p.reply(refusal(r, err))
		return
	}
	go func() {
		defer p.leave(r.Image.User)
		p.reply(p.guarded(r, do))
		closeAll(files)
	}()
}

// enter counts a request that may wait.
func (p *process) enter(user uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting >= maxWaiting || user != 0 && p.users[user] >= maxUserWaiting {
		return errors.New("too many other images are waiting for their storage")
	}
	p.waiting++
	p.users[user]++
	return nil
}

func (p *process) leave(user uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting--
	if p.users[user]--; p.users[user] == 0 {
		delete(p.users, user)
	}
}

// guarded calls do. A panic is a mistake of ours that an image has brought to light: it is told, and costs that image.
func (p *process) guarded(r *request, do func() *reply) (out *reply) {
	defer func() {
		if err := recover(); err != nil {
			p.log.Error("panic", "image", r.Image.Name, "panic", err, "stack", string(debug.Stack()))
			out = refusal(r, &ImageError{fmt.Sprintf("the image server does not understand it: %v", err)})
		}
	}()
	return do()
}

// reply sends a reply. Without the keeper there is nobody to tell, and the process is about to end.
func (p *process) reply(r *reply) {
	p.sending.Lock()
	defer p.sending.Unlock()
	_ = p.conn.Send(r)
}

func refusal(r *request, err error) *reply {
	const long = 4 << 10 // of an error, which may quote an image
	var refused *ImageError
	text := err.Error()
	return &reply{Number: r.Number, Error: text[:min(len(text), long)], Refused: errors.As(err, &refused)}
}

// stats fills in those of images behind the one of the request, as many as there is room for.
func (p *process) stats(out *reply, r *request) {
	room := statsRoom
	for _, i := range p.opened(r.Image.ID) {
		s := imageStats{id: i.ID, ImageStats: i.stats()}
		if room -= len(wire.Encode(&s)); room < 0 {
			return
		}
		out.Stats = append(out.Stats, s)
	}
}

// opened returns the images that are open, with ids above one, ascending.
func (p *process) opened(after uint64) (images []*image) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, i := range p.images {
		if id > after && i.opened {
			images = append(images, i)
		}
	}
	slices.SortFunc(images, func(a, b *image) int { return cmp.Compare(a.ID, b.ID) })
	return images
}

// resident returns how many bytes of this process are in memory (proc(5): the second field of statm, in pages).
func resident() int64 {
	b, _ := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// end ends the service of all mounts, which stay, and waits until what was taken is answered.
func (p *process) end() {
	close(p.stop)
	for _, i := range p.opened(0) {
		if i.lost != nil {
			continue
		}
		i.fs.AllowStoring(false) // a thread that waits for a page cannot be killed
	}
	ended := make(chan struct{})
	go func() {
		p.serving.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopTimeout):
	}
}

// limitMemory says how much there may be before more is collected. p.mu is held.
func (p *process) limitMemory() {
	const (
		other = 96 << 20  // replies on their way, and what has yet to be collected; see fusefs.Room for more
		each  = 512 << 10 // of an image, beside caches
	)
	debug.SetMemoryLimit(p.Cache + p.Metadata + other + int64(len(p.images))*each)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
