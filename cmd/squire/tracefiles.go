package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/sqfs/trace"
)

// traceFiles are the opened files that may have the trace of an image. The first
// that has is the one that counts.
type traceFiles struct {
	files  []*os.File
	record int  // number of the one for a new trace, from 1 on; 0: none
	whole  bool // see serverConfig
}

// sidecar is the name of the trace that travels with an image.
func sidecar(image string) string { return image + ".trace" }

// systemCache is root's cache directory. Others may read what is in it.
const systemCache = "/var/cache/squire"

// cacheDir returns the directory for what can be made again, "" if there is
// none, or a relative one was asked for: it would be another for each command. (XDG
// Base Directory Specification: a relative XDG_CACHE_HOME is ignored.)
func cacheDir() string {
	dir, home := os.Getenv("XDG_CACHE_HOME"), os.Getenv("HOME")
	site, err := siteConfig()
	switch own := os.Getenv("SQUIRE_CACHE_DIR"); {
	case filepath.IsAbs(own):
		return own
	case own != "":
		return ""
	case err == nil && site.Cache != "":
		return site.Cache
	case os.Geteuid() == 0 && rights.AllIDsMapped():
		return systemCache
	case filepath.IsAbs(dir):
		return filepath.Join(dir, "squire")
	case filepath.IsAbs(home):
		return filepath.Join(home, ".cache", "squire")
	}
	return ""
}

// openTraces opens what there is for the trace of an image: the file beside it,
// that of the user, and root's. With record, the user's is made and locked, if
// nobody else has it locked, for a trace to be recorded. Nothing here is worth an
// error: without a trace an image works as well.
func openTraces(image string, file *os.File, offset int64, record bool) *traceFiles {
	t := new(traceFiles)
	if f, err := openTrace(sidecar(image)); err == nil {
		if sameHands(f, file) {
			t.files = append(t.files, f)
		} else {
			f.Close()
		}
	}
	key, err := imageKey(file, offset)
	if err != nil {
		return t
	}
	own := cacheDir()
	if own != "" {
		t.open(own, key, record)
	}
	// Whoever names a directory means that one.
	if own != systemCache && os.Getenv("SQUIRE_CACHE_DIR") == "" {
		t.open(systemCache, key, false)
	}
	return t
}

// open adds the trace in a cache directory.
func (t *traceFiles) open(cache string, key trace.Key, record bool) {
	s, err := openTraceStore(cache, record)
	if err != nil {
		return
	}
	defer s.Close()
	if record {
		if f, err := s.Record(key); err == nil {
			t.files = append(t.files, f)
			t.record = len(t.files)
			return
		}
	}
	if f, err := s.Open(key); err == nil {
		t.files = append(t.files, f)
	}
}

// imageKey returns the key of an opened image.
func imageKey(file *os.File, offset int64) (trace.Key, error) {
	size, err := fileSize(file)
	if err != nil {
		return trace.Key{}, err
	}
	return trace.KeyOf(file, offset, size-offset)
}

// openTrace opens a file that may be a trace.
func openTrace(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, unwrapPath(name, err)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: not a file", name)
	}
	return f, nil
}

// sameHands reports whether a trace beside an image is the user's, root's, or that of
// whoever owns the image: in /tmp others can put files, too.
func sameHands(beside, image *os.File) bool {
	var b, i unix.Stat_t
	if unix.Fstat(int(beside.Fd()), &b) != nil || unix.Fstat(int(image.Fd()), &i) != nil {
		return false
	}
	return b.Uid == 0 || int(b.Uid) == os.Geteuid() || b.Uid == i.Uid
}

// tracesWait is how long a start waits for the files of traces: the home
// directory may be on a server that does not answer.
const tracesWait = 100 * time.Millisecond

// tracesInTime is openTraces for a start. on says whether traces are wanted.
func tracesInTime(image string, file *os.File, offset int64, on bool) *traceFiles {
	if !on {
		return new(traceFiles)
	}
	found := make(chan *traceFiles, 1)
	go func() { found <- openTraces(image, file, offset, true) }()
	select {
	case t := <-found:
		return t
	case <-time.After(tracesWait):
		go func() { closeAll((<-found).files) }()
		return new(traceFiles)
	}
}

// tracesWanted decides whether traces are used: as the flag says, if it was
// given, else as SQUIRE_TRACE does, else they are.
func tracesWanted(flag *bool) (bool, error) {
	if flag != nil {
		return *flag, nil
	}
	value := os.Getenv("SQUIRE_TRACE")
	if value == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("SQUIRE_TRACE=%s: want 0 or 1", printable(value))
	}
	return on, nil
}

// openCache opens the user's directory of traces.
func openCache(create bool) (*trace.Store, error) {
	dir := cacheDir()
	if own := os.Getenv("SQUIRE_CACHE_DIR"); dir == "" && own != "" {
		return nil, fmt.Errorf("SQUIRE_CACHE_DIR=%s: want an absolute path", printable(own))
	}
	if dir == "" {
		return nil, errors.New("there is no cache directory: none of SQUIRE_CACHE_DIR, XDG_CACHE_HOME and HOME is set")
	}
	return openTraceStore(dir, create)
}

// openTraceStore opens a directory of traces. With create, what a cache directory is in is made as well, but not where the
// site names it: that is for all users.
func openTraceStore(cache string, create bool) (*trace.Store, error) {
	if create && !siteCache() {
		perm := os.FileMode(0o700)
		if os.Geteuid() == 0 {
			perm = 0o755
		}
		_ = os.Mkdir(filepath.Dir(cache), perm) // if it cannot be made, what is in it cannot either
	}
	return trace.OpenStore(cache, create)
}
