package noded

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
)

// keeper is the state of a service.
//
// mu is held for as long as it takes to look something up or to change a table, and never while anything is asked of a
// file, of another process or of a client. What an image has open may belong to a file system that hangs.
type keeper struct {
	cfg      Config
	log      *slog.Logger
	parts    parts
	uid      uint32 // of this process
	limits   Limits
	noResend bool
	noIDMap  atomic.Bool
	clone    func(device *os.File) (*os.File, error)
	ctx      context.Context // until all ends
	since    time.Time

	server   *slot[imageServer]
	mounter  *slot[mountMaker]
	main     chan func()   // for the main thread
	answered atomic.Int64  // when the server last answered a ping, see monotonic
	wake     chan struct{} // something in the tables has changed

	store      *store
	heir       heir
	records    *recordFile
	leftovers  *leftovers
	metrics    *os.File // the socket for Prometheus; nil: none
	executable string   // see upgrade
	starting   *gate    // of processes
	signals    chan os.Signal
	execve     func(path string, args, env []string) error
	inherit    func() (*inherited, error)
	serving    func(numbers []uint64) (map[uint64]bool, error)

	running    sync.WaitGroup // requests; see begin
	reporting  sync.WaitGroup // metrics processes
	inheriting sync.WaitGroup // heirs
	refusals   quota          // that are logged

	mu        sync.Mutex
	clients   map[*client]bool
	connected map[uint32]int // connections of each user
	busy      map[uint32]int // requests of each user that run
	allBusy   int
	less      *sync.Cond // there are fewer of these
	images    map[uint64]*image
	keys      map[key]*image // those that new clients share
	nextID    uint64
	current   imageServer // that images belong to
	draining  bool        // no new mounts
	closing   bool        // no new clients and requests
	paused    bool        // the same, as the program is about to be replaced
	struck    map[uint32][]time.Time
	bad       map[key]time.Time
	restarts  struct{ Server, Mounter uint64 }
	stats     statistics
	reporters int // of clients, those that are the keeper's own
}

func newKeeper(ctx context.Context, c Config, p parts) *keeper {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	k := &keeper{
		cfg: c, log: c.Log, parts: p, ctx: ctx, since: time.Now(),
		uid:       uint32(os.Getuid()),
		limits:    c.Limits.withDefaults(openFiles()),
		noResend:  c.NoResend || kernelBefore(6, 9),
		clone:     fusefs.Clone,
		server:    newSlot[imageServer](),
		mounter:   newSlot[mountMaker](),
		main:      make(chan func()),
		wake:      make(chan struct{}, 1),
		clients:   map[*client]bool{},
		connected: map[uint32]int{},
		busy:      map[uint32]int{},
		images:    map[uint64]*image{},
		keys:      map[key]*image{},
		struck:    map[uint32][]time.Time{},
		bad:       map[key]time.Time{},
		stats:     newStatistics(),
		store:     findStore(c.Log),
		starting:  newGate(),
		signals:   make(chan os.Signal, 8),
		execve:    unix.Exec,
		inherit:   inherit,
		leftovers: newLeftovers(c),
		serving:   serving,
	}
	k.less = sync.NewCond(&k.mu)
	k.noIDMap.Store(c.NoIDMap || kernelBefore(6, 12))
	return k
}

// Run is the keeper: it serves clients until ctx ends or it was drained after SIGTERM. SIGUSR1 and a second SIGTERM end it
// at once. SIGHUP replaces the program by the one that is installed now. It must be called on the main goroutine of a process that does nothing else.
func Run(ctx context.Context, c Config) error {
	// Children may be told when their parent's thread ends (PR_SET_PDEATHSIG): it is the one that lives longest.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := newKeeper(ctx, c, processes)
	spareKeeper()
	signal.Ignore(unix.SIGPIPE) // who reads the log may end
	signal.Notify(k.signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1)
	defer signal.Stop(k.signals)
	return k.run(cancel)
}

// run runs a keeper on the calling goroutine. end ends its context.
func (k *keeper) run(end func()) error {
	in, err := k.inherit()
	if err != nil {
		return err
	}
	if k.executable, err = installed(); err != nil {
		return err
	}
	listener, err := k.listen(in)
	if err != nil {
		return err
	}
	defer listener.Close()
	k.metrics = in.take(nameMetrics)
	if err = k.takeState(in); err != nil {
		return err
	}
	if err = k.leftovers.read(); err != nil {
		k.log.Warn("mounts that a service before this one has left are not removed", "error", err)
	}
	k.log.Info("service starts", "version", k.cfg.Version, "socket", listener.Addr().String(), "own", k.cfg.Own,
		"images", len(k.images), "user", k.uid, "idmap", !k.noIDMap.Load(), "resend", !k.noResend)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer end()
	up := k.startLoops(&loops)
	go func() {
		if pause(k.ctx, startTimeout, up) {
			k.log.Warn("the service's processes take long to start")
		}
		go k.accept(listener.UnixListener)
		k.notify("READY=1\nSTATUS=serving")
		k.health()
	}()
	loops.Go(k.housekeeping)
	loops.Go(k.clearStale)
	if k.store == nil && k.parts.heir != nil {
		loops.Go(func() { k.heirLoop(k.ctx, listener) })
	}
	if k.cfg.Metrics != "" {
		if err = k.startMetrics(&loops); err != nil {
			return err
		}
	}
	err = k.mainLoop(listener)
	k.finish()
	return err
}

// startTimeout is how long clients are not let in while the processes start.
const startTimeout = 5 * time.Second

// startLoops starts the processes. up is closed when both are there and images were taken over.
func (k *keeper) startLoops(loops *sync.WaitGroup) (up chan struct{}) {
	up = make(chan struct{})
	var first sync.WaitGroup
	first.Add(2)
	loops.Go(func() { k.serverLoop(k.ctx, sync.OnceFunc(first.Done)) })
	loops.Go(func() { k.mounterLoop(k.ctx, sync.OnceFunc(first.Done)) })
	go func() {
		first.Wait()
		close(up)
	}()
	return up
}

// onMain has do run by the main thread, and waits for it. It is not run when all ends.
func (k *keeper) onMain(do func()) error {
	done := make(chan struct{})
	select {
	case k.main <- func() { defer close(done); do() }:
		<-done
		return nil
	case <-k.ctx.Done():
		return k.ctx.Err()
	}
}

// begin waits until there is room for a request of c, and counts it in; false: there are to be no more. end counts it out.
//
// Each request may have a dozen files open, and occupy a thread, even for good where a user's FUSE server does not answer.
func (k *keeper) begin(c *client) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for !k.closing && !k.paused && !k.room(c.user.UID) {
		k.less.Wait()
	}
	if k.closing || k.paused {
		return false
	}
	c.busy = true
	k.busy[c.user.UID]++
	k.allBusy++
	k.running.Add(1)
	return true
}

// room reports whether a user may have one more request; k.mu is held. A quarter is left for root.
func (k *keeper) room(user uint32) bool {
	if user == 0 {
		return k.allBusy < k.limits.requests
	}
	return k.allBusy < k.limits.requests*3/4 && k.busy[user] < k.limits.requests/4
}

func (k *keeper) end(c *client) {
	k.mu.Lock()
	c.busy = false
	if k.busy[c.user.UID]--; k.busy[c.user.UID] == 0 {
		delete(k.busy, c.user.UID)
	}
	k.allBusy--
	k.less.Broadcast()
	k.mu.Unlock()
	k.running.Done()
}

// touched tells who waits for a change of the tables.
func (k *keeper) touched() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// housekeeping lets go of what nobody uses.
func (k *keeper) housekeeping() {
	every := 5 * time.Second
	if k.cfg.Idle > 0 {
		every = min(max(k.cfg.Idle/4, 20*time.Millisecond), every)
	}
	for pause(k.ctx, every, nil) {
		if k.cfg.Idle > 0 {
			k.idle(k.cfg.Idle, nil)
		}
		k.bury()
	}
}

// finish ends the service: what is still mounted ends with it.
func (k *keeper) finish() {
	k.notify("STOPPING=1")
	k.heir.dismiss()
	k.mu.Lock()
	k.closing = true
	k.less.Broadcast()
	for c := range k.clients {
		c.conn.Close()
	}
	left := len(k.images)
	k.mu.Unlock()
	if left > 0 {
		k.log.Warn("service ends with images mounted", "images", left)
	}
	k.clearAll()
	k.log.Info("service ends")
}

// spareKeeper asks that the kernel takes others when memory runs out. It is root's to ask for less than there was.
func spareKeeper() {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0); err != nil && os.Geteuid() == 0 {
		slog.Debug("keep the keeper from the OOM killer", "error", err)
	}
}

// kernelBefore reports whether the kernel is older than major.minor.
func kernelBefore(major, minor int) bool {
	var u unix.Utsname
	var have [2]int
	if unix.Uname(&u) != nil {
		return true
	}
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have[0], &have[1]); n != 2 {
		return true
	}
	return have[0] < major || have[0] == major && have[1] < minor
}
