package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/layer"
	"github.com/squirefs/squire/sqfs/oci"
	"github.com/squirefs/squire/sqfs/pack"
)

type importOptions struct {
	output      string
	force       bool
	arch        string
	allRoot     bool
	devices     bool
	exclude     []string
	pack        packFlags
	noCache     bool
	cacheDir    string
	cacheSize   string
	insecure    []string
	mirrors     []string
	caCerts     []string
	connections int
	timeout     time.Duration
	retries     int
	quiet       bool
	json        bool
}

func importCommand() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import [flags] SOURCE",
		Short: "Make an image of a container image",
		Long: `Make a squashfs image of a container image, in one stream: layers are packed
while they are downloaded, and are never unpacked. SOURCE is

  docker://[USER@]REGISTRY/IMAGE[:TAG|@DIGEST]  in a registry, Docker Hub if none is
                                                named; also enroot's REGISTRY#IMAGE
  oci:DIR[:TAG], oci-archive:FILE[:TAG]         in a directory or file, as of skopeo
  docker-archive:FILE[:TAG]                     a file of "docker save"
  dockerd://IMAGE, podman://IMAGE               in the store of an engine here
  tar:FILE, dir:DIR                             a root file system; tar:- is standard input

Without --output the image is called as enroot would call it, like
nvidia+pytorch+23.10-py3.sqsh, in the working directory. It appears there complete or
not at all. A file that is there already is an error, unless it was made from the same
image with the same options: then nothing is done but to ask for the image's digest. The
image of one digest, SOURCE and options is the same, byte for byte, whenever and wherever
it is made: its time is the container image's, unless --time or SOURCE_DATE_EPOCH sets
another.

Credentials come from Docker's and Podman's configuration, with their helpers, and from
enroot's .credentials in $ENROOT_CONFIG_PATH or ~/.config/enroot.

Layers are kept for further imports in /var/cache/squire/layers (root's) or
~/.cache/squire/layers, at most --cache-size of them; SQUIRE_CACHE_DIR is used in place of
/var/cache/squire and ~/.cache/squire. Engines hand out layers in any order: there the
whole image lies for the time of the import. Otherwise no temporary disk is used.

What the image says about how it is run (variables, entrypoint, command, working
directory, labels) is kept in it, for "squire run", "squire inspect" and enroot. tar: and
dir: are packed as they are, but for devices.

Exit status: 0 if the image is there; 128+N if signal N interrupted it and 125 if it
failed, and then nothing was changed but the cache.`,
		Example: `  squire import docker://ubuntu:24.04
  squire import -o pytorch.sqsh docker://nvcr.io/nvidia/pytorch:23.10-py3
  squire import --arch arm64 --comp zstd --level 19 docker://registry.example.org/team/app@sha256:…
  squire import -o app.sqsh docker-archive:app.tar
  squire import -o root.sqsh tar:- <root.tar.gz`,
		Args:              needArgs(1, 1),
		ValidArgsFunction: completeSource,
		RunE:              func(c *cobra.Command, args []string) error { return plain(o.run(c, args[0])) },
	}
	o.addFlags(cmd.Flags())
	_ = cmd.MarkFlagFilename("output") // these fail for unknown flags only
	_ = cmd.MarkFlagFilename("ca-cert")
	_ = cmd.MarkFlagDirname("cache-dir")
	_ = cmd.RegisterFlagCompletionFunc("comp", completeCompressor)
	_ = cmd.RegisterFlagCompletionFunc("arch", cobra.FixedCompletions([]string{"amd64", "arm64"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// addFlags adds the flags, with their defaults.
func (o *importOptions) addFlags(f *pflag.FlagSet) {
	f.StringVarP(&o.output, "output", "o", "", "the `FILE` to make")
	f.BoolVarP(&o.force, "force", "f", false, "replace a file that is there, and import an image that is up to date")
	f.StringVarP(&o.arch, "arch", "a", "", "`ARCH` of the image, as Go or uname call it (default: this machine's)")
	f.BoolVar(&o.allRoot, "all-root", false, "everything belongs to root")
	f.BoolVar(&o.devices, "devices", false, "keep block and character devices, which are left out otherwise")
	f.StringArrayVar(&o.exclude, "exclude", nil, "leave out what this `PATTERN` matches, a name without slashes anywhere; may be repeated")
	o.pack.AddFlags(f)
	f.BoolVar(&o.noCache, "no-cache", false, "keep no layers, and use none that were kept")
	f.StringVar(&o.cacheDir, "cache-dir", "", "keep layers in this `DIR`")
	f.StringVar(&o.cacheSize, "cache-size", "20G", "layers are kept up to this `SIZE` in all")
	f.StringArrayVar(&o.insecure, "insecure", nil, "speak to this `REGISTRY` (HOST[:PORT]) by plain HTTP as well, or with any certificate; may be repeated")
	f.StringArrayVar(&o.mirrors, "mirror", nil, "`REGISTRY=MIRROR`: ask MIRROR first; may be repeated")
	f.StringArrayVar(&o.caCerts, "ca-cert", nil, "trust the certificates in this `FILE` beside the system's; may be repeated")
	f.IntVar(&o.connections, "connections", 8, "at most `N` downloads at once")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "try a transfer again that gave nothing for this `TIME`")
	f.IntVar(&o.retries, "retries", 5, "try a transfer again `N` times")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress, no summary and no notes, only errors")
	f.BoolVar(&o.json, "json", false, "print a summary as JSON, and no progress")
	f.Lookup("time").Usage = "`TIME` of the image, RFC 3339 or seconds since 1970; newer files get it as well (default: $SOURCE_DATE_EPOCH, or the container image's, for the image only)"
	f.Lookup("memory").Usage = "`SIZE` of the blocks that are held in memory, and as much again for layers that are read ahead"
}

// completeSource completes the name of a source: only files can be.
func completeSource(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if strings.Contains(word, "://") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if strings.Contains(word, ":") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return sourceKinds, cobra.ShellCompDirectiveNoSpace
}

// sourceKinds are how the names of sources begin.
var sourceKinds = []string{"docker://", "oci:", "oci-archive:", "docker-archive:", "dockerd://", "podman://", "tar:", "dir:"}

func (o *importOptions) run(c *cobra.Command, src string) error {
	plan, err := o.plan(src)
	if err != nil {
		return err
	}
	ctx, stop := untilSignal(c.Context())
	defer stop()
	start := time.Now()
	var sum *importSummary
	p, err := o.tries(c.ErrOrStderr(), func(p *importProgress) (err error) {
		sum, err = o.make(ctx, p, plan)
		return err
	})
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintf(c.ErrOrStderr(), "squire: interrupted; %s was not made\n", printable(plan.out))
		return interrupted(ctx)
	case err != nil:
		return importHint(err, plan.out)
	}
	sum.Seconds = time.Since(start).Seconds()
	for _, unused := range unused(plan.exclude) {
		p.say("--exclude " + printable(unused.text) + ": matched nothing")
	}
	if o.json {
		return printJSON(c.OutOrStdout(), sum)
	}
	sum.tell(p.say)
	return nil
}

// tries makes an image, again where the cache was damaged: what was is gone then. It returns the display of the last try.
func (o *importOptions) tries(w io.Writer, makeIt func(*importProgress) error) (*importProgress, error) {
	for try := 1; ; try++ {
		p := newImportProgress(w, o.quiet || o.json)
		err := makeIt(p)
		if !errors.Is(err, oci.ErrCache) || try == 5 {
			return p, err
		}
		p.say(runtime.OneLine(plain(err)))
	}
}

// importPlan is what is to be made, of what, and how.
type importPlan struct {
	src     string
	out     string
	cache   string // "" keeps no layers
	size    int64  // of the cache
	mirrors map[string][]string
	pack    pack.Options
	layer   layer.Options
	exclude []pattern
}

// plan checks the flags.
func (o *importOptions) plan(src string) (*importPlan, error) {
	p := &importPlan{src: src, out: o.output}
	var err error
	if p.out == "" {
		if p.out, err = defaultOutput(src); err != nil {
			return nil, err
		}
	}
	if p.pack, err = o.pack.options(); err != nil {
		return nil, err
	}
	if p.size, err = parseSize(o.cacheSize); err != nil {
		return nil, fmt.Errorf("--cache-size %s: %w", printable(o.cacheSize), err)
	}
	if p.cache, err = o.layerCache(); err != nil {
		return nil, err
	}
	if p.mirrors, err = parseMirrors(o.mirrors); err != nil {
		return nil, err
	}
	if p.size == 0 {
		return nil, errors.New("--cache-size 0: --no-cache keeps nothing")
	}
	if err = o.checkTransfers(); err != nil {
		return nil, err
	}
	p.layer = layer.Options{AllRoot: o.allRoot, Devices: o.devices, Ahead: p.pack.Memory}
	if !p.pack.Time.IsZero() {
		p.layer.Time = p.pack.Time.Unix()
	}
	if p.exclude, err = newPatterns(nil, o.exclude, newExclude); err != nil {
		return nil, fmt.Errorf("--exclude: %w", err)
	}
	if len(p.exclude) > 0 {
		p.layer.Exclude = p.excludes
	}
	return p, nil
}

// excludes is for layer.Options.
func (p *importPlan) excludes(file string) bool {
	sel := selection{exclude: p.exclude}
	take, _ := sel.choose([]byte(file), false)
	return !take
}

// layerCache is the directory that keeps layers, "" for none.
func (o *importOptions) layerCache() (string, error) {
	switch {
	case o.noCache && o.cacheDir != "":
		return "", errors.New("--no-cache and --cache-dir exclude each other")
	case o.noCache:
		return "", nil
	case o.cacheDir != "":
		return filepath.Abs(o.cacheDir)
	}
	if _, err := siteConfig(); err != nil {
		return "", err
	}
	dir := cacheDir()
	if own := os.Getenv("SQUIRE_CACHE_DIR"); dir == "" && own != "" {
		return "", fmt.Errorf("SQUIRE_CACHE_DIR=%s: want an absolute path", printable(own))
	}
	if dir == "" {
		return "", nil
	}
	if siteCache() {
		if err := makeCache(dir); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "layers"), nil
}

// checkTransfers checks the flags about registries, which would otherwise be found wrong in
// the middle, or never.
func (o *importOptions) checkTransfers() error {
	switch {
	case o.connections < 1 || o.connections > 256:
		return fmt.Errorf("--connections %d: want 1 to 256", o.connections)
	case o.timeout <= 0: // the default in package oci, as a size of 0 is
		return fmt.Errorf("--timeout %v: want a time such as 30s", o.timeout)
	case o.retries < 0:
		return fmt.Errorf("--retries %d: want 0 or more", o.retries)
	}
	for _, registry := range o.insecure {
		if !isRegistry(registry) {
			return fmt.Errorf("--insecure %s: want HOST or HOST:PORT", printable(registry))
		}
	}
	for _, file := range o.caCerts {
		pem, err := os.ReadFile(file)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			err = errors.New("has no certificate in PEM form")
		}
		if err != nil {
			return fmt.Errorf("--ca-cert %w", unwrapPath(file, err))
		}
	}
	return nil
}

// isRegistry reports whether this names a registry, and nothing besides.
func isRegistry(name string) bool {
	src, err := oci.ParseSource("docker://" + name + "#image")
	return err == nil && name != "" && src.User == "" && src.Repository != "" && !strings.Contains(name, "#")
}

func parseMirrors(list []string) (map[string][]string, error) {
	mirrors := make(map[string][]string)
	for _, m := range list {
		registry, mirror, ok := strings.Cut(m, "=")
		host, _, _ := strings.Cut(mirror, "/")
		if !ok || !isRegistry(registry) || !isRegistry(host) {
			return nil, fmt.Errorf("--mirror %s: want REGISTRY=MIRROR, each HOST or HOST:PORT, with /PATH behind MIRROR", printable(m))
		}
		mirrors[registry] = append(mirrors[registry], mirror)
	}
	return mirrors, nil
}

// ociOptions are the options for finding an image.
func (o *importOptions) ociOptions(p *importPlan, event func(oci.Event)) oci.Options {
	opts := oci.Options{
		Arch: o.arch, Insecure: o.insecure, Mirrors: p.mirrors, CACerts: o.caCerts,
		CacheDir: p.cache, CacheSize: p.size, Connections: o.connections,
		Timeout: o.timeout, Retries: o.retries, Event: event,
	}
	if o.retries == 0 {
		opts.Retries = -1 // none; zero is the default there
	}
	return opts
}

// make makes the image, unless it is there already.
func (o *importOptions) make(ctx context.Context, p *importProgress, plan *importPlan) (*importSummary, error) {
	old := readOldImage(plan.out)
	var file *output
	var err error
	if old == nil || o.force { // whatever is wrong with the place is told before anything is asked for
		if file, err = newOutput(plan.out, o.force); err != nil {
			return nil, err
		}
		defer file.discard()
	}
	source, err := o.openSource(ctx, plan, p.event)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	rec := source.record()
	rec.Options = o.recorded(plan)
	if file == nil {
		if !sameImport(old, rec) {
			return nil, fmt.Errorf("%s: %w, imported from %s; --force replaces it", printable(plan.out), fs.ErrExist, oldSource(old, rec))
		}
		return newImportSummary(source, plan.out).upToDate(old), nil
	}
	return o.makeFrom(ctx, p, plan, source, file)
}

// makeFrom makes the image of an opened source.
func (o *importOptions) makeFrom(ctx context.Context, p *importProgress, plan *importPlan, source importSource, file *output) (*importSummary, error) {
	err := o.announce(p, plan, source)
	if err != nil {
		return nil, err
	}
	sum := newImportSummary(source, plan.out)
	if err = sum.build(ctx, p, plan, source, file); err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	err = file.commit()
	if errors.Is(err, fs.ErrExist) { // another import was faster
		if old := readOldImage(plan.out); sameImport(old, source.record()) {
			return sum.upToDate(old), nil
		}
	}
	return sum, err
}

// recorded are the options that change the image.
func (o *importOptions) recorded(p *importPlan) map[string]string {
	m := map[string]string{"comp": o.pack.comp, "level": strconv.Itoa(p.pack.Level), "block-size": strconv.Itoa(p.pack.BlockSize)}
	if !p.pack.Time.IsZero() {
		m["time"] = strconv.FormatInt(p.pack.Time.Unix(), 10)
	}
	if len(o.exclude) > 0 {
		m["exclude"] = strings.Join(o.exclude, "\n")
	}
	for name, on := range map[string]bool{
		"all-root": o.allRoot, "devices": o.devices, "no-fragments": p.pack.NoFragments,
		"no-exports": p.pack.NoExports, "no-duplicates": p.pack.Duplicates,
	} {
		if on {
			m[name] = "yes"
		}
	}
	return m
}

// announce says what is imported and which disk it takes, and checks that there is room.
func (o *importOptions) announce(p *importProgress, plan *importPlan, source importSource) error {
	img, ok := source.(*imageSource)
	if !ok {
		p.say(fmt.Sprintf("%s; no temporary disk is used", printable(source.record().Source)))
		return nil
	}
	rec, compressed := &img.Record, layerBytes(&img.Record)
	p.say(fmt.Sprintf("%s, %s, %s, %s, %s of it to be read", printable(rec.Source), printable(rec.Platform),
		plural(int64(len(rec.Layers)), "layer"), sizeString(compressed), sizeString(img.Size())))
	if img.CacheDir() != "" {
		p.say(fmt.Sprintf("layers are kept in %s, %s at most", printable(plan.cache), sizeString(plan.size)))
	} else if !strings.HasPrefix(rec.Source, "dockerd://") && !strings.HasPrefix(rec.Source, "podman://") {
		p.say("no temporary disk is used") // as by engines, of whose file package oci has told
	}
	// An image is about as large as its layers, whose compression is not much worse. It is
	// smaller if layers hide much of each other.
	free, err := freeSpace(filepath.Dir(plan.out))
	switch {
	case err != nil:
	case free < compressed/2:
		return fmt.Errorf("%s: has %s free, the image takes about %s: %w", printable(filepath.Dir(plan.out)), sizeString(free), sizeString(compressed), unix.ENOSPC)
	case free < compressed:
		p.say(fmt.Sprintf("%s has %s free, the image may take %s", printable(filepath.Dir(plan.out)), sizeString(free), sizeString(compressed)))
	}
	return nil
}

// freeSpace returns how many bytes this user can still write below dir, or where it would
// be made.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return 0, err
		}
		dir = filepath.Dir(dir)
	}
}

// importHint adds the flag that does something about an error.
func importHint(err error, out string) error {
	// What several ways to a registry ended with comes as text.
	says := func(text string) bool { return strings.Contains(err.Error(), text) }
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fullDisk(err, out)
	case says("failed to verify certificate"):
		return fmt.Errorf("%w; --ca-cert FILE trusts the registry's authority", err)
	case says("not named as insecure"):
		return fmt.Errorf("%w; --insecure names it", err)
	}
	return err
}

// fullDisk is what to say of a full disk: of the file, not of what was being packed when
// it happened.
func fullDisk(err error, out string) error {
	var at *fs.PathError
	if !errors.As(err, &at) {
		return fmt.Errorf("%w; -o names a file on another disk", err)
	}
	if at.Path != out {
		return at
	}
	return fmt.Errorf("%w; -o names a file on another disk", at)
}

// plainError is an error for people, without the names of the packages that it came
// through. "oci: " would be taken for the kind of source.
type plainError struct{ error }

// plain makes an error plain.
func plain(err error) error {
	if err == nil {
		return nil
	}
	return plainError{err}
}

func (e plainError) Unwrap() error { return e.error }

func (e plainError) Error() string {
	text := e.error.Error()
	for _, name := range []string{"oci: ", "layer: ", "pack: "} {
		text = strings.ReplaceAll(strings.TrimPrefix(text, name), ": "+name, ": ")
	}
	return text
}
