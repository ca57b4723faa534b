package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/signed"
)

// site is what squire.toml of siteDir says about this node. The zero value says nothing: everything is allowed and
// where Squire puts it by itself. A user who may make user namespaces can do without Squire what it forbids here, see
// SECURITY.md; it is a rule for those who use Squire.
type site struct {
	// Where things are, absolute, "" where Squire chooses. %U stands for the number of the user. Variables of the
	// environment come before them.
	Data   string `toml:"data"`   // named containers; SQUIRE_DATA
	Cache  string `toml:"cache"`  // layers and images of imports, traces; SQUIRE_CACHE_DIR
	Socket string `toml:"socket"` // where the service of the node listens; SQUIRE_SOCKET

	Images     siteImages     `toml:"images"`
	Containers siteContainers `toml:"containers"`
	Accounting siteAccounting `toml:"accounting"`

	file string // for messages
}

// siteImages says what may be run. Nil lists limit nothing.
type siteImages struct {
	Directories []string `toml:"directories"` // only what is below one of these
	Owners      []string `toml:"owners"`      // only files of these users: names or numbers
	Keys        []string `toml:"keys"`        // only what was signed with one of these, in OpenSSH's form

	owners []uint32
	keys   []signed.Key
}

// siteContainers says what a user may choose.
type siteContainers struct {
	Writable  siteChoice `toml:"writable"`
	RemapRoot siteChoice `toml:"remap-root"`
	MountHome siteChoice `toml:"mount-home"`
	// Mounts are what users may mount: directories that sources must be in, and the words tmpfs and umount. Nil: all.
	Mounts []string `toml:"mounts"`
	// Devices says whether users may name devices. GPUs are Slurm's to give.
	Devices siteChoice `toml:"devices"`
}

// siteAccounting says where a step of a job leaves what its container was, see stepAccount.
type siteAccounting struct {
	Syslog   bool   `toml:"syslog"`
	File     string `toml:"file"`     // a line for each step and node
	Scontrol string `toml:"scontrol"` // the program that is executed, as the user, to write it into the job's comment
}

func (a *siteAccounting) wanted() bool { return *a != siteAccounting{} }

// siteChoice is what a site says about something that a user may ask for or not.
type siteChoice string

const (
	siteAllow   siteChoice = "allow"   // the user says; not, if nothing is said; the same as ""
	siteDefault siteChoice = "default" // the user says; yes, if nothing is said
	siteForce   siteChoice = "force"   // yes
	siteForbid  siteChoice = "forbid"  // no
)

// policyName is the file of a site, below siteDir.
const policyName = "squire.toml"

// sites keeps what was read: a process reads the file once. Tests have one for each directory.
var sites struct {
	sync.Mutex
	dir  string
	read *site
	err  error
}

// siteConfig returns what the site says. The error names the file, and the line where it has one.
func siteConfig() (*site, error) {
	sites.Lock()
	defer sites.Unlock()
	if sites.dir != siteDir {
		sites.dir = siteDir
		sites.read, sites.err = readSite(filepath.Join(siteDir, policyName))
	}
	return sites.read, sites.err
}

// readSite reads the file of a site. Without one there is nothing to be said.
func readSite(name string) (*site, error) {
	s := &site{file: name}
	text, err := readSiteFile(name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.parse(text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// parse reads text and completes it. An error names what is wrong by its key, and its line.
func (s *site) parse(text []byte) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(s)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		line, _ := unknown.Errors[0].Position()
		return fmt.Errorf("line %d: unknown key %q", line, strings.Join(unknown.Errors[0].Key(), "."))
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		text := strings.TrimPrefix(wrong.Error(), "toml: ")
		if key := strings.Join(wrong.Key(), "."); key != "" {
			text = key + ": " + text
		}
		return fmt.Errorf("line %d: %s", line, text)
	case err != nil:
		return err
	}
	return s.check()
}

// check refuses values that mean nothing, and completes what is there.
func (s *site) check() (err error) {
	c := &s.Containers
	for _, choice := range []struct {
		key   string
		value *siteChoice
	}{{"writable", &c.Writable}, {"remap-root", &c.RemapRoot}, {"mount-home", &c.MountHome}, {"devices", &c.Devices}} {
		switch *choice.value {
		case siteAllow, siteDefault, siteForce, siteForbid, "":
		default:
			return fmt.Errorf("containers.%s: %q is none of allow, default, force, forbid", choice.key, *choice.value)
		}
	}
	if c.Devices == siteForce || c.Devices == siteDefault {
		return fmt.Errorf("containers.devices: %q: want allow or forbid", c.Devices)
	}
	for _, place := range []struct {
		key   string
		value *string
		other bool // it may be no path
	}{
		{"data", &s.Data, false},
		{"cache", &s.Cache, false},
		{"socket", &s.Socket, strings.HasPrefix(s.Socket, "@")},
		{"accounting.file", &s.Accounting.File, false},
		{"accounting.scontrol", &s.Accounting.Scontrol, false},
	} {
		if place.other || *place.value == "" {
			continue
		}
		if *place.value, err = sitePlace(*place.value); err != nil {
			return fmt.Errorf("%s: %w", place.key, err)
		}
	}
	if err := checkDirs(s.Images.Directories); err != nil {
		return fmt.Errorf("images.directories: %w", err)
	}
	if err := checkDirs(c.Mounts, sourceWords...); err != nil {
		return fmt.Errorf("containers.mounts: %w", err)
	}
	for _, name := range s.Images.Owners {
		id, err := userID(name)
		if err != nil {
			return fmt.Errorf("images.owners: %w", err)
		}
		s.Images.owners = append(s.Images.owners, id)
	}
	for _, line := range s.Images.Keys {
		key, err := signed.ParseKey(line)
		if err != nil {
			return fmt.Errorf("images.keys: %w", err)
		}
		s.Images.keys = append(s.Images.keys, *key)
	}
	return nil
}

// sourceWords are sources of mounts that are no path.
var sourceWords = []string{"tmpfs", "umount"}

// sitePlace puts the user's number into a path of the site's.
func sitePlace(path string) (string, error) {
	path = strings.ReplaceAll(path, "%U", strconv.Itoa(os.Geteuid()))
	switch {
	case strings.Contains(path, "%"):
		return "", fmt.Errorf("%q: only %%U, the user's number, can stand for something", path)
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("%q: is not absolute", path)
	}
	return path, nil
}

// checkDirs wants absolute paths, or words, and makes paths plain.
func checkDirs(dirs []string, words ...string) error {
	for i, dir := range dirs {
		if slices.Contains(words, dir) {
			continue
		}
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("%q: is not an absolute path", dir)
		}
		dirs[i] = filepath.Clean(dir)
	}
	return nil
}

// userID is the number of a user of this node, by number or by name. Names are those of /etc/passwd.
func userID(name string) (uint32, error) {
	if id, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(id), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("%q: is no user of /etc/passwd; write the number", name)
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(id), err
}

// forbids is an error that says who forbids what.
func (s *site) forbids(format string, args ...any) error {
	return fmt.Errorf("%s: forbidden here (%s)", fmt.Sprintf(format, args...), s.file)
}

// choices are what a user said, or did not say (nil), about what a site may decide.
type choices struct{ Writable, RemapRoot, MountHome *bool }

// decide completes what the user said by what the site says, and refuses what it forbids, and not to have what it
// forces. What is forced or a default is so for what nothing was said about.
func (s *site) decide(c choices) (writable, remapRoot, mountHome bool, err error) {
	one := func(name string, said *bool, site siteChoice) bool {
		switch {
		case said == nil:
			return site == siteDefault || site == siteForce
		case *said && site == siteForbid:
			err = errors.Join(err, s.forbids("%s", name))
		case !*said && site == siteForce:
			err = errors.Join(err, s.forbids("not %s", name))
		}
		return *said
	}
	writable = one("a writable container", c.Writable, s.Containers.Writable)
	remapRoot = one("to be root inside", c.RemapRoot, s.Containers.RemapRoot)
	mountHome = one("to mount the home directory", c.MountHome, s.Containers.MountHome)
	return writable, remapRoot, mountHome, err
}

// enforce refuses what the site forbids in a spec that is complete but for the site's own mounts, and puts those in
// front. The image's file is not looked at, see openImage.
func (s *site) enforce(spec *runtime.Spec, parser *runtime.MountParser) error {
	c := &s.Containers
	switch {
	case spec.Writable && c.Writable == siteForbid, spec.RemapRoot && c.RemapRoot == siteForbid,
		!spec.Writable && c.Writable == siteForce, !spec.RemapRoot && c.RemapRoot == siteForce:
		_, _, _, err := s.decide(choices{Writable: &spec.Writable, RemapRoot: &spec.RemapRoot})
		return err
	}
	for i, m := range spec.Mounts {
		if err := s.mayMount(m); err != nil {
			return err
		}
		// Names may lead elsewhere by the time that they are used: then the same is looked at again, in what was opened.
		if m.Host() {
			spec.Mounts[i].Within = realDirs(c.Mounts)
		}
	}
	if spec.Dir != "" {
		if err := s.mayRunDir(spec.Dir); err != nil {
			return err
		}
		spec.DirWithin = realDirs(s.Images.Directories)
	}
	own, err := siteMounts(parser)
	if err != nil {
		return err
	}
	spec.Mounts = append(own, spec.Mounts...)
	return nil
}

// mayMount refuses a mount whose source is in none of the site's directories. Links in it are followed first.
func (s *site) mayMount(m runtime.Mount) error {
	allowed := s.Containers.Mounts
	if allowed == nil {
		return nil
	}
	if !m.Host() {
		if slices.Contains(allowed, m.Source) {
			return nil
		}
		return s.forbids("mount %s:%s", m.Source, m.Target)
	}
	dirs := realDirs(allowed)
	if len(dirs) == 0 {
		return s.forbids("mount %s", m.Source)
	}
	source, err := filepath.EvalSymlinks(m.Source)
	if err != nil {
		if m.MayFail() && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("--mounts: source %w", unwrapPath(m.Source, err))
	}
	if !runtime.Below(source, dirs) {
		return s.forbids("mount %s", m.Source)
	}
	return nil
}

// isBelow reports whether a path without links is one of dirs, or below one.
func isBelow(path string, dirs []string) bool { return runtime.Below(path, realDirs(dirs)) }

// realDirs are the directories among dirs and words of the site's, by their paths without links.
func realDirs(dirs []string) (real []string) {
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue
		}
		if to, err := filepath.EvalSymlinks(dir); err == nil {
			dir = to
		}
		real = append(real, dir)
	}
	return real
}

// openImage opens an image that is to be run, if the site lets it be. It looks at the file that it opened, not at its
// name: links count for where they lead. Where images are to be signed, the file is read as it was signed from here on.
func (s *site) openImage(name string) (*openedImage, error) {
	f, err := openImage(name)
	if err != nil {
		return nil, err
	}
	image := &openedImage{File: f}
	if err = s.mayRun(name, f); err == nil && s.Images.Keys != nil {
		if err = image.demand(name, s.Images.keys); err != nil {
			err = s.forbids("image %s: %s", name, err)
		}
	}
	if err != nil {
		image.Close()
		return nil, err
	}
	return image, nil
}

func (s *site) mayRun(name string, f *os.File) error {
	if s.Images.Owners != nil {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if !slices.Contains(s.Images.owners, st.Uid) {
			return s.forbids("image %s: is not of %s", name, strings.Join(s.Images.Owners, ", "))
		}
	}
	if s.Images.Directories != nil {
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if !isBelow(path, s.Images.Directories) {
			return s.forbids("image %s: is not in %s", name, strings.Join(s.Images.Directories, ", "))
		}
	}
	return nil
}

// mayRunDir is for a directory as root file system. Whose files are in it cannot be told.
func (s *site) mayRunDir(dir string) error {
	if s.Images.Owners != nil || s.Images.Keys != nil {
		return s.forbids("a directory as image, %s", dir)
	}
	if s.Images.Directories == nil {
		return nil
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return unwrapPath(dir, err)
	}
	if !isBelow(real, s.Images.Directories) {
		return s.forbids("image %s: is not in %s", dir, strings.Join(s.Images.Directories, ", "))
	}
	return nil
}

// mayImport refuses, before anything is downloaded, an image whose file in dir could not be run.
func (s *site) mayImport(dir string) error {
	if s.Images.Keys != nil {
		return s.forbids("an imported image: images are to be signed")
	}
	if s.Images.Owners != nil && !slices.Contains(s.Images.owners, uint32(os.Geteuid())) {
		return s.forbids("an imported image: images are to be of %s", strings.Join(s.Images.Owners, ", "))
	}
	if s.Images.Directories == nil {
		return nil
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if !isBelow(filepath.Clean(dir), s.Images.Directories) {
		return s.forbids("an imported image: images are to be in %s", strings.Join(s.Images.Directories, ", "))
	}
	return nil
}

// summary says in a line what is limited.
func (s *site) summary() string {
	var words []string
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if s.Images.Directories != nil {
		say("images in %s", cmp.Or(strings.Join(s.Images.Directories, ", "), "no directory"))
	}
	if s.Images.Owners != nil {
		say("images of %s", cmp.Or(strings.Join(s.Images.Owners, ", "), "nobody"))
	}
	if s.Images.Keys != nil {
		say("images signed with %s", cmp.Or(plural(int64(len(s.Images.Keys)), "key"), "no key"))
	}
	c := &s.Containers
	if c.Mounts != nil {
		say("mounts of %s", cmp.Or(strings.Join(c.Mounts, ", "), "nothing"))
	}
	for _, choice := range []struct {
		name  string
		value siteChoice
	}{{"writable", c.Writable}, {"remap-root", c.RemapRoot}, {"mount-home", c.MountHome}, {"devices", c.Devices}} {
		if choice.value != "" && choice.value != siteAllow {
			say("%s %s", choice.name, choice.value)
		}
	}
	if len(words) == 0 {
		return "nothing is limited"
	}
	return strings.Join(words, "; ")
}
