package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// Store is a directory of containers. Any number of processes of the user may use one at
// the same time. Its methods may be called by any goroutine.
type Store struct {
	path string

	mu   sync.Mutex
	root *os.Root
}

// Open opens the store in a directory, which it makes if it is missing: with what it is in
// below the user's home directory, elsewhere alone. The directory must belong to this
// process's user, and nobody else may have rights there.
func Open(path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err = makeDir(path); err != nil {
		return nil, fmt.Errorf("containers: %w", err)
	}
	s, err := open(path)
	if err != nil {
		return nil, err
	}
	s.sweep()
	return s, nil
}

// makeDir makes the directory of a store. What it is in is only made where everything is the
// user's: elsewhere it is for others, too, and would belong to whoever is first.
func makeDir(path string) error {
	for _, name := range []string{"HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"} {
		own := os.Getenv(name)
		if rel, err := filepath.Rel(own, path); filepath.IsAbs(own) && filepath.Clean(own) != "/" && err == nil && filepath.IsLocal(rel) {
			return os.MkdirAll(path, 0o700)
		}
	}
	switch err := os.Mkdir(path, 0o700); {
	case errors.Is(err, fs.ErrExist):
		return nil // or something else, which open finds
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is missing, and has to be made by the administrator, or by you if it is yours alone: %w", filepath.Dir(path), err)
	default:
		return err
	}
}

// OpenExisting is Open for a store that need not be there. Then the error matches
// [fs.ErrNotExist].
func OpenExisting(path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return open(path)
}

func open(path string) (*Store, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			err = fmt.Errorf("is not a directory, or a link: %w", err)
		}
		return nil, fmt.Errorf("containers: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("containers: %w", &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	switch {
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("containers: %s belongs to user %d, and yours would not be safe there; SQUIRE_DATA names another directory", path, st.Uid)
	case st.Mode&0o077 != 0:
		return nil, fmt.Errorf("containers: %s is open to others (mode %#o); it has to be yours alone: chmod 700", path, st.Mode&0o777)
	}
	root, err := os.OpenRoot(procPath(fd)) // this very directory, whatever has its name now
	if err != nil {
		return nil, fmt.Errorf("containers: %w", err)
	}
	return &Store{path: path, root: root}, nil
}

// Close closes the store. Containers of it stay usable.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.root.Close()
}

// Path is the directory.
func (s *Store) Path() string { return s.path }

// procPath is a name for an open file.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Names of files in a container's directory.
const (
	recordName = "container.json"
	lockName   = "lock"
	layerName  = "layer"
	runName    = "run"
	newRecord  = recordName + ".new"
)

// files is all that a container's directory may have. The lock is there from the beginning.
var files = []string{recordName, lockName, layerName, runName, newRecord}

// Directories of the store whose names begin with these are no containers: the first are
// on their way out, the second go with the process that made them.
const (
	goingPrefix  = ".gone-"
	scratchStart = ".run-"
)

// CheckName reports why a container cannot have a name.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("the name of a container is empty")
	case len(name) > 200: // a file's has 255 bytes at most, and others are made from it
		return fmt.Errorf("name of a container of %d bytes: at most 200", len(name))
	case name[0] == '.' || name[0] == '-':
		return fmt.Errorf("container %q: a name does not begin with %q", name, name[:1])
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("container %q: a name has no slashes, colons, blanks and control characters", name)
	}
	return nil
}

// ErrNotRunning is told of a container that nobody runs.
var ErrNotRunning = errors.New("is not running")

// ErrNone is told of a container that is not there. It matches [fs.ErrNotExist].
var ErrNone error = none{}

type none struct{}

func (none) Error() string        { return "there is none of this name" }
func (none) Is(target error) bool { return target == fs.ErrNotExist }

// Mode says what Claim is to do with a container.
type Mode int

const (
	// Auto joins a container that runs, starts one that there is, and makes one that
	// there is not.
	Auto Mode = iota
	// Create makes a container, and fails if there is one.
	Create
	// Join joins a container, and fails with ErrNotRunning unless it runs.
	Join
	// Start is Auto for who does not want to join a container that runs. If it does, the
	// Container has its State all the same: the one to be started has to take the root of
	// that, see [runtime.RootOf], as a layer cannot be mounted twice.
	Start
)

// Claim gets a container to run something in: either it runs, and the Container has its
// Namespaces, or the Container is this process's to start, and nobody else's until
// [Container.Serve] or [Container.Close]. It waits for those who are starting it, until
// ctx is done. ErrNone tells of a container that Join does not find.
func (s *Store) Claim(ctx context.Context, name string, mode Mode) (*Container, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	for {
		c, err := s.claim(ctx, name, mode)
		if !errors.Is(err, errGone) {
			return c, err
		}
	}
}

// errGone tells of a container that was removed while somebody waited for it.
var errGone = errors.New("was removed")

func (s *Store) claim(ctx context.Context, name string, mode Mode) (*Container, error) {
	if mode != Join {
		if err := s.mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make container %s: %w", name, plain(err))
		}
	}
	c, err := s.dir(name)
	if mode != Join && errors.Is(err, ErrNone) {
		err = errGone // since we looked
	}
	if err != nil {
		return nil, err
	}
	if mode != Create {
		if c.join(); c.running != nil {
			return c, nil
		}
	}
	if err = c.acquire(ctx); err == nil {
		err = c.settle(ctx, mode)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// settle decides what becomes of a container whose lock is held.
func (c *Container) settle(ctx context.Context, mode Mode) error {
	if err := c.read(); err != nil {
		return err
	}
	c.scratch = c.record == nil // unless it is remembered
	if mode == Create && c.record != nil {
		return fmt.Errorf("container %s: %w", c.Name, fs.ErrExist)
	}
	// Somebody may have started it since, and who ends now closes the place where to join
	// before they let go of the layer.
	for deadline := time.Now().Add(leaveTimeout); ; {
		if c.join(); c.running != nil && mode == Create {
			return fmt.Errorf("container %s: %w", c.Name, fs.ErrExist)
		}
		if c.running != nil {
			c.release()
			return nil
		}
		if !c.inUse() {
			break
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("container %s: is in use by a process that lets nobody join", c.Name)
		}
		time.Sleep(lockPause)
	}
	if mode == Join {
		return fmt.Errorf("container %s: %w", c.Name, ErrNotRunning)
	}
	return nil
}

const (
	leaveTimeout = 5 * time.Second      // for those who are about to end
	lockPause    = 5 * time.Millisecond // between looks at a lock
)

// mkdir makes a directory in the store, which somebody may have removed while it was empty.
func (s *Store) mkdir(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.root.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	again, err := Open(s.path)
	if err != nil {
		return err
	}
	s.root.Close()
	s.root = again.root
	return s.root.Mkdir(name, 0o700)
}

// dir opens a container's directory.
func (s *Store) dir(name string) (*Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fi, err := s.root.Lstat(name)
	if err == nil && !fi.IsDir() {
		err = unix.ENOTDIR
	}
	c := &Container{Name: name, path: s.path}
	if err == nil {
		c.top, err = s.root.OpenRoot(".")
	}
	if err == nil {
		c.root, err = s.root.OpenRoot(name)
	}
	if err == nil {
		err = c.isContainer()
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNone
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("container %s: %w", name, plain(err))
	}
	return c, nil
}

// isContainer makes sure that the directory is empty, or has what a container has: the store may be a directory that the
// user keeps other things in, which must not be taken for a container, and removed.
func (c *Container) isContainer() error {
	dir, err := c.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(len(files) + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	foreign := slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(files, name) })
	if foreign || len(names) > 0 && !slices.Contains(names, lockName) {
		// One that is on its way out has another name already.
		was, err := dir.Stat()
		if is, gone := c.top.Lstat(c.Name); gone != nil || err == nil && !os.SameFile(was, is) {
			return fs.ErrNotExist
		}
		return fmt.Errorf("%s has other files, and is no container", filepath.Join(c.path, c.Name))
	}
	return nil
}

// Scratch makes a container without a name, which goes when it is closed: for a layer that
// is only wanted until it was saved. What is left of it when the process is killed goes
// when somebody opens the store.
func (s *Store) Scratch() (*Container, error) {
	name := scratchStart + random()
	if err := s.mkdir(name); err != nil {
		return nil, fmt.Errorf("make a layer in %s: %w", s.path, plain(err))
	}
	c, err := s.dir(name)
	if err == nil {
		c.scratch = true
		err = c.acquire(context.Background()) // nobody else knows the name
	}
	return c, err
}

// List returns the containers of the store, sorted by name, with what can be read of each
// without waiting.
func (s *Store) List() ([]*Info, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var all []*Info
	for _, name := range names {
		if CheckName(name) != nil {
			continue
		}
		c, err := s.dir(name)
		if err != nil {
			continue // gone, or none of ours
		}
		if info := c.info(); info != nil {
			all = append(all, info)
		}
		c.Close()
	}
	return all, nil
}

func (s *Store) names() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, err := s.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", plain(err))
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", plain(err))
	}
	slices.Sort(names)
	return names, nil
}

// Get opens a container to look at it or to save it. Nobody starts or removes it until it
// is closed, unless it runs, and then nothing keeps those in it from changing it. It waits
// for those who are starting it, until ctx is done.
func (s *Store) Get(ctx context.Context, name string) (*Container, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	for {
		c, err := s.dir(name)
		if err != nil {
			return nil, err
		}
		if err = c.acquire(ctx); err == nil {
			err = c.read()
		}
		if err == nil && c.record == nil {
			err = fmt.Errorf("container %s: %w", name, ErrNone) // never started
		}
		if err == nil {
			return c, nil
		}
		c.Close()
		if !errors.Is(err, errGone) {
			return nil, err
		}
	}
}

// Remove removes a container and its layer. It fails if the container runs.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	c, err := s.dir(name)
	if err != nil {
		return err
	}
	defer c.Close()
	if err = c.acquire(ctx); errors.Is(err, errGone) {
		return fmt.Errorf("container %s: %w", name, ErrNone)
	}
	if err == nil && c.Runs() {
		err = fmt.Errorf("container %s: is running", name)
	}
	if err != nil {
		return err
	}
	return c.remove()
}

// sweep removes what killed processes have left. Whatever fails is for the next one.
func (s *Store) sweep() {
	names, _ := s.names()
	for _, name := range names {
		if strings.HasPrefix(name, goingPrefix) {
			_ = removeTree(s.root, name)
			continue
		}
		if strings.HasPrefix(name, scratchStart) || CheckName(name) == nil {
			s.sweepOne(name)
		}
	}
}

// sweepOne removes a container that was never to be started again, and whose processes are
// gone.
func (s *Store) sweepOne(name string) {
	c, err := s.dir(name)
	if err != nil {
		return
	}
	defer c.Close()
	if _, err = c.root.Lstat(recordName); err == nil {
		return
	}
	// A directory of somebody else's making is left alone, and a new one is not locked yet.
	fi, err := c.root.Lstat(lockName)
	if err == nil && time.Since(fi.ModTime()) > time.Minute && c.tryAcquire() == nil && !c.Runs() {
		_ = c.remove()
	}
}

// random is a name that nobody else has.
func random() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// plain is an error without the name that package os puts in front.
func plain(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}
