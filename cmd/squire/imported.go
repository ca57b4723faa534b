package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/oci"
)

// An image that "squire run" or a step of Slurm names as docker:// is imported first, into a directory of the user's: a
// file for each digest, which stays there for the next time. That is done by a process of its own, the import stage: it
// needs a lot of memory, and what waits for it has a whole container to keep small.

// importStageName is argv[0] of the import stage. Its standard input is a pipe whose other end is held by who waits for
// the image: when that is gone the import ends. Its descriptor 3 takes an importedImage in JSON.
const (
	importStageName   = "squire-import"
	importStageResult = 3
)

// importedImage is what came of it.
type importedImage struct {
	Path   string `json:"path"`   // the file
	Source string `json:"source"` // as squire writes it
	Digest string `json:"digest"`
	Cached bool   `json:"cached"`          // it was there already
	Error  string `json:"error,omitempty"` // of a line; the rest is empty then

	importer *importer // that is to be told the end; nil: none
}

// importedSource reports whether an image is one that is imported first.
func importedSource(image string) bool {
	scheme, _, ok := strings.Cut(image, "://")
	return ok && slices.Contains(importedSchemes, scheme)
}

// importImage imports an image into the user's directory, unless it is there. Progress goes to progress. The variables of
// the environment count that do for "squire import", and SQUIRE_IMPORT_FLAGS, flags of that.
func importImage(ctx context.Context, source string, progress *os.File) (*importedImage, error) {
	return importImageAs(ctx, source, source, progress)
}

// importImageAs imports an image that errors call name.
func importImageAs(ctx context.Context, source, name string, progress *os.File) (*importedImage, error) {
	result, theirs, err := os.Pipe()
	if err != nil {
		return nil, importFailed(name, err)
	}
	defer result.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{importStageName, source}
	cmd.Stderr, cmd.ExtraFiles = progress, []*os.File{theirs}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	alive, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	theirs.Close()
	if err != nil {
		return nil, importFailed(name, err)
	}
	defer alive.Close()
	var i importedImage
	err = json.NewDecoder(io.LimitReader(result, 1<<20)).Decode(&i)
	waited := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil && waited != nil: // it was killed, or has run out of memory
		err = fmt.Errorf("the import ended: %w", waited)
	case err == nil && i.Error != "":
		err = errors.New(i.Error)
	}
	if err != nil {
		return nil, importFailed(name, err)
	}
	return &i, nil
}

// withoutSource is a text without the source in front, which importFailed says.
func withoutSource(source, text string) string {
	if src, err := oci.ParseSource(source); err == nil {
		return strings.TrimPrefix(text, src.String()+": ")
	}
	return text
}

// importFailed has words of pyxis's that scripts look for. Of a name that is none nothing is shown: there may be a password
// in it.
func importFailed(name string, err error) error {
	source := name
	if !strings.Contains(name, "://") {
		source = "docker://" + name
	}
	if _, bad := oci.ParseSource(source); bad != nil {
		return fmt.Errorf("failed to import docker image: %w", err)
	}
	return fmt.Errorf("failed to import docker image: %s: %w", printable(name), err)
}

// importStage is the import stage. It returns the exit status.
func importStage() int {
	stage.SetName(importStageName)
	unix.Umask(unix.Umask(0o022) | 0o022) // what others may write to is not taken the next time
	unix.CloseOnExec(importStageResult)
	result := os.NewFile(importStageResult, "result")
	if len(os.Args) != 2 {
		return runtime.ExitFailed
	}
	ctx, stop := untilSignal(context.Background())
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel(errors.New("nobody waits for it any more"))
	}()
	i, err := importCached(ctx, os.Args[1], os.Stderr)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		i = &importedImage{Error: withoutSource(os.Args[1], runtime.OneLine(plain(err)))}
	}
	if json.NewEncoder(result).Encode(i) != nil || i.Error != "" {
		return runtime.ExitFailed
	}
	return 0
}

// cachedImport is an import into the user's directory.
type cachedImport struct {
	importOptions
	plan *importPlan
	dir  string
}

// importCached imports an image, unless it is there.
func importCached(ctx context.Context, source string, progress io.Writer) (*importedImage, error) {
	src, err := oci.ParseSource(source)
	if err != nil {
		return nil, err
	}
	dir, err := importedDir()
	if err != nil {
		return nil, err
	}
	site, err := siteConfig()
	if err == nil {
		err = site.mayImport(dir)
	}
	if err != nil {
		return nil, err
	}
	if src.Digest != "" { // what it says is known without asking
		if name := importedName(dir, src.Digest); isImported(name) {
			return &importedImage{Path: name, Source: src.String(), Digest: src.Digest, Cached: true}, nil
		}
	}
	i := &cachedImport{dir: dir}
	if err = i.flags(os.Getenv("SQUIRE_IMPORT_FLAGS")); err != nil {
		return nil, fmt.Errorf("SQUIRE_IMPORT_FLAGS: %w", err)
	}
	i.output = filepath.Join(dir, "image.sqsh") // until the digest is known
	if i.plan, err = i.importOptions.plan(source); err != nil {
		return nil, err
	}
	var image *importedImage
	_, err = i.tries(progress, func(p *importProgress) (err error) {
		image, err = i.make(ctx, p)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		err = fmt.Errorf("%s: %w; SQUIRE_CACHE_DIR names a directory on another disk", dir, err)
	case err != nil:
		err = importHint(err, i.plan.out)
	case src.Digest != "" && src.Digest != image.Digest: // that of a list of images
		_ = os.Symlink(filepath.Base(image.Path), importedName(dir, src.Digest)) // it is asked for again without
	}
	return image, err
}

// flags sets the flags of "squire import", to their defaults or what is said otherwise.
func (i *cachedImport) flags(text string) error {
	f := pflag.NewFlagSet("import", pflag.ContinueOnError)
	f.Usage = func() {}
	i.addFlags(f)
	if err := f.Parse(strings.Fields(text)); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%s: want flags only", printable(f.Arg(0)))
	}
	for _, name := range []string{"output", "force", "json"} {
		if f.Changed(name) {
			return fmt.Errorf("--%s: makes no sense here", name)
		}
	}
	return nil
}

// make makes the image, unless it is there, or is made by another process while this one waits.
func (i *cachedImport) make(ctx context.Context, p *importProgress) (*importedImage, error) {
	source, err := i.openSource(ctx, i.plan, p.event)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	rec := source.record()
	rec.Options = i.recorded(i.plan)
	image := &importedImage{Source: rec.Source, Digest: importDigest(rec)}
	if image.Path = importedName(i.dir, image.Digest); image.Path == "" {
		return nil, errors.New("the image has no digest")
	}
	if image.Cached = isImported(image.Path); image.Cached {
		return image, nil
	}
	lock, err := i.lock(ctx, p, image.Path)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if image.Cached = isImported(image.Path); image.Cached {
		return image, nil
	}
	i.plan.out = image.Path
	file, err := newOutput(image.Path, true)
	if err != nil {
		return nil, err
	}
	defer file.discard()
	if _, err = i.makeFrom(ctx, p, i.plan, source, file); err != nil {
		return nil, err
	}
	forgetImported(i.dir, time.Now().Add(-importedKept))
	return image, nil
}

// lock waits until no other process imports the same image: on other nodes, too, where the file system has locks for all
// of them. Where it has none, whoever is first wins.
func (i *cachedImport) lock(ctx context.Context, p *importProgress, name string) (*os.File, error) {
	f, err := os.OpenFile(name+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return f, nil
		}
		if !told {
			p.say("waiting for another import of the same image")
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// importedDir is the directory of imported images. It is made for its owner alone: some may be secret. What is in it runs
// as the user: so only the user and root may be able to change it.
func importedDir() (string, error) {
	cache := cacheDir()
	if own := os.Getenv("SQUIRE_CACHE_DIR"); cache == "" && own != "" {
		return "", fmt.Errorf("SQUIRE_CACHE_DIR=%s: want an absolute path", printable(own))
	}
	if cache == "" {
		return "", errors.New("there is no cache directory: none of SQUIRE_CACHE_DIR, XDG_CACHE_HOME and HOME is set")
	}
	if err := makeCache(cache); err != nil {
		return "", fmt.Errorf("%w; SQUIRE_CACHE_DIR names another directory", err)
	}
	dir := filepath.Join(cache, "images")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("%w; SQUIRE_CACHE_DIR names another directory", err)
	}
	if err := trustedDir(cache); err != nil {
		return "", fmt.Errorf("directory of imported images: %w; SQUIRE_CACHE_DIR names another", err)
	}
	target, err := trustedEntry(dir, false)
	if err == nil && target != "" {
		err = fmt.Errorf("%s is a link", dir)
	}
	if err != nil {
		return "", fmt.Errorf("directory of imported images: %w; SQUIRE_CACHE_DIR names another", err)
	}
	return dir, nil
}

// makeCache makes the cache directory. One that the site names for each user is made, but not what it is in: that would
// belong to whoever is first.
func makeCache(cache string) error {
	if !siteCache() {
		return os.MkdirAll(cache, 0o755)
	}
	switch err := os.Mkdir(cache, 0o755); {
	case errors.Is(err, os.ErrExist):
		return nil
	case errors.Is(err, os.ErrNotExist):
		site, _ := siteConfig()
		return fmt.Errorf("%s is missing, which %s names: the administrator has to make it", filepath.Dir(cache), site.file)
	default:
		return err
	}
}

// siteCache reports whether the site names the cache directory.
func siteCache() bool {
	site, err := siteConfig()
	return err == nil && site.Cache != "" && os.Getenv("SQUIRE_CACHE_DIR") == ""
}

// trustedDir refuses a directory if somebody else than the user and root may write to it, or put another in its place:
// then what is in it may be theirs. All is looked at that its name leads through. Links may be there, if they are the
// user's or root's: what has been looked at already keeps others from changing what comes next.
func trustedDir(dir string) error {
	at, rest, links := "/", strings.Split(strings.Trim(filepath.Clean(dir), "/"), "/"), 0
	if _, err := trustedEntry(at, true); err != nil {
		return err
	}
	for len(rest) > 0 {
		name := filepath.Join(at, rest[0])
		rest = rest[1:]
		target, err := trustedEntry(name, len(rest) > 0)
		if err != nil {
			return err
		}
		if target == "" {
			at = name
			continue
		}
		if links++; links > 40 {
			return &os.PathError{Op: "open", Path: dir, Err: unix.ELOOP}
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	_, err := trustedEntry(at, false) // a link may have ended in a dot
	return err
}

// trustedEntry looks at one directory, or link to one, and returns what a link says. In a parent of the cache directory
// others may have entries of their own: with the sticky bit they cannot rename the user's.
func trustedEntry(name string, parent bool) (target string, err error) {
	var st unix.Stat_t
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) // what is mounted on demand is, now
	switch {
	case err == nil:
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		if target, err = os.Readlink(name); err != nil {
			return "", fmt.Errorf("%s: %w", name, unix.ENOTDIR)
		}
		err = unix.Lstat(name, &st)
	}
	link := target != ""
	// Where not all users have a number, root may have none either.
	unknown := st.Uid == overflowID && (parent || link) && !rights.AllIDsMapped()
	switch {
	case err != nil:
		return "", &os.PathError{Op: "open", Path: name, Err: err}
	case st.Uid != 0 && int(st.Uid) != os.Geteuid() && !unknown:
		return "", fmt.Errorf("%s belongs to user %d, and your images would not be safe there", name, st.Uid)
	case link, parent && st.Mode&unix.S_ISVTX != 0, onlyOwner(name, &st):
		return target, nil
	}
	return "", fmt.Errorf("others may write to %s (mode %#o), and could put their images in place of yours: chmod go-w", name, st.Mode&0o7777)
}

// overflowID is what a user is seen as who has no number here.
const overflowID = 65534

// importedName is the file of an image, "" if it has no digest.
func importedName(dir, digest string) string {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok || strings.ContainsRune(digest, '/') {
		return ""
	}
	return filepath.Join(dir, algorithm+"-"+hex+".sqsh")
}

// isImported reports whether an image is there: a file of ours, or of root's, that nobody else may write to, or a link
// to one beside it. The directory is one of importedDir: what it has is what is there when it is opened. As an image
// appears under its name when it is whole, no more is looked at. It notes that it was used, in the time of the last
// access: that of the last change is a part of what it is known by.
func isImported(name string) bool {
	if target, err := os.Readlink(name); err == nil {
		if target != filepath.Base(target) || target == ".." {
			return false
		}
		name = filepath.Join(filepath.Dir(name), target)
	}
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 {
		return false
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return false
	}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}}, unix.AT_SYMLINK_NOFOLLOW)
	return true
}

// importedKept is how long an imported image stays that nobody runs. No job is as long as that: on a network file system
// another node may still have it mounted.
const importedKept = 60 * 24 * time.Hour

// forgetImported removes images that were last used before a time, and what is left of them.
func forgetImported(dir string, before time.Time) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if !strings.Contains(e.Name(), ".sqsh") || unix.Lstat(name, &st) != nil {
			continue
		}
		used := max(st.Atim.Nano(), st.Mtim.Nano())
		if st.Mode&unix.S_IFMT == unix.S_IFLNK && unix.Stat(name, &st) == nil { // it goes with its image
			continue
		}
		if used < before.UnixNano() {
			_ = os.Remove(name)
		}
	}
}
