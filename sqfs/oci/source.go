package oci

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Kinds of sources.
const (
	kindDocker        = "docker"
	kindOCI           = "oci"
	kindOCIArchive    = "oci-archive"
	kindDockerArchive = "docker-archive"
	kindDockerd       = "dockerd"
	kindPodman        = "podman"
)

// hub is what Docker Hub is called here, whatever a user calls it.
const hub = "docker.io"

// Source is a place where a container image lies, as [ParseSource] understood it.
type Source struct {
	Kind       string // docker, oci, oci-archive, docker-archive, dockerd, podman
	User       string // of docker: whose credentials are used; never shown
	Registry   string // of docker: HOST[:PORT]; Docker Hub is docker.io
	Repository string // of docker: with "library/" where Docker Hub wants it
	Path       string // of oci and the archives: a directory or a file
	Name       string // of dockerd and podman, as the engine takes it
	Tag        string // "latest" if a registry's image names neither tag nor digest; in an archive a name, too
	Digest     string // algorithm:hex; goes before Tag
}

// String returns the source as Squire writes it: without the user, so that it can be kept
// in images and shown.
func (s Source) String() string {
	switch s.Kind {
	case kindDocker:
		sep := "/"
		if !isRegistry(s.Registry) { // only enroot's form says that it is one
			sep = "#"
		}
		return "docker://" + s.Registry + sep + s.Repository + suffix(":", s.Tag) + suffix("@", s.Digest)
	case kindDockerd, kindPodman:
		return s.Kind + "://" + s.Name
	}
	return s.Kind + ":" + s.Path + suffix(":", s.Tag) + suffix("@", s.Digest)
}

func suffix(sep, s string) string {
	if s == "" {
		return ""
	}
	return sep + s
}

// ParseSource understands the name of a source. Without a scheme it is an image of a
// registry, as for docker://. Nothing is looked up; errors show no user and no password.
func ParseSource(source string) (Source, error) {
	for _, c := range source {
		if c < ' ' || c == 0x7f {
			return Source{}, errors.New("oci: the name of the image has control characters")
		}
	}
	if kind, rest, ok := strings.Cut(source, "://"); ok {
		switch kind {
		case kindDocker:
			return parseDocker(rest)
		case kindDockerd, kindPodman:
			return parseEngine(kind, rest)
		case "http", "https":
			return Source{}, fmt.Errorf("oci: %s:// names no image: a registry is written docker://REGISTRY/IMAGE[:TAG]", kind)
		}
		return Source{}, fmt.Errorf("oci: unknown kind of source %q: docker://, oci:, oci-archive:, docker-archive:, dockerd:// and podman:// are container images, tar: and dir: root file systems", kind)
	}
	if kind, rest, ok := strings.Cut(source, ":"); ok {
		switch kind {
		case kindOCI, kindOCIArchive, kindDockerArchive:
			return parsePath(kind, rest)
		case kindDockerd, kindPodman, kindDocker:
			return Source{}, fmt.Errorf("oci: %s: is written %s://IMAGE", kind, kind)
		case "tar", "dir":
			return Source{}, fmt.Errorf("oci: %s: is no container image", kind)
		case "docker-daemon":
			return Source{}, errors.New("oci: docker-daemon: is written dockerd://IMAGE")
		case "containers-storage":
			return Source{}, errors.New("oci: containers-storage: is written podman://IMAGE")
		}
	}
	if hint := looksLikeFile(source); hint != "" {
		return Source{}, errors.New("oci: " + hint)
	}
	return parseDocker(source)
}

// looksLikeFile says why a name without a scheme is rather a file than an image.
func looksLikeFile(s string) string {
	for _, e := range []string{".sqsh", ".squashfs", ".sqfs", ".sif"} {
		if strings.HasSuffix(s, e) {
			return fmt.Sprintf("%q looks like an image file, not like the name of an image in a registry: it needs no import", s)
		}
	}
	for _, e := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"} {
		if strings.HasSuffix(s, e) {
			return fmt.Sprintf("%q looks like an archive: write docker-archive:, oci-archive: or tar: before it", s)
		}
	}
	for _, p := range []string{"/", "./", "../", "~"} {
		if strings.HasPrefix(s, p) {
			return fmt.Sprintf("%q looks like a path: write oci:, oci-archive:, docker-archive:, tar: or dir: before it", s)
		}
	}
	if s == "." || s == ".." {
		return fmt.Sprintf("%q looks like a directory: write oci: or dir: before it", s)
	}
	return ""
}

// parseDocker understands [USER@]REGISTRY/IMAGE[:TAG][@DIGEST], with enroot's # in place of
// the first /, and what Docker takes for an image of Docker Hub.
func parseDocker(s string) (Source, error) {
	src := Source{Kind: kindDocker}
	if i := strings.LastIndexByte(s, '@'); i >= 0 && (strings.HasPrefix(s[i+1:], "sha256:") || strings.HasPrefix(s[i+1:], "sha512:")) {
		s, src.Digest = s[:i], s[i+1:]
		if err := checkDigest(src.Digest); err != nil {
			return Source{}, err
		}
	}
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		src.User, s = s[:i], s[i+1:]
		if src.User == "" {
			return Source{}, errors.New("oci: there is no user before the @")
		}
		if strings.Contains(src.User, ":") {
			return Source{}, errors.New("oci: a password has no place in the name of an image, where others can see it: " + hintLogin)
		}
		if strings.ContainsAny(src.User, "/#") {
			return Source{}, errors.New("oci: what stands before the @ is no user")
		}
	}
	image := s
	if reg, rest, ok := strings.Cut(s, "#"); ok {
		src.Registry, image = reg, rest
		if reg == "" {
			return Source{}, errors.New("oci: there is no registry before the #")
		}
	} else if reg, rest, ok := strings.Cut(s, "/"); ok && isRegistry(reg) {
		src.Registry, image = reg, rest
	}
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		src.Tag, image = image[i+1:], image[:i]
		if err := checkTag(src.Tag); err != nil {
			return Source{}, err
		}
	}
	if src.Tag == "" && src.Digest == "" {
		src.Tag = "latest"
	}
	var err error
	if src.Registry, err = checkRegistry(src.Registry); err != nil {
		return Source{}, err
	}
	src.Repository = image
	if src.Registry == hub && !strings.Contains(image, "/") && image != "" {
		src.Repository = "library/" + image
	}
	return src, checkRepository(image)
}

// isRegistry says whether the first part of a name is a registry, as Docker has it.
func isRegistry(s string) bool { return strings.ContainsAny(s, ".:") || s == "localhost" }

// parsePath understands PATH[:TAG][@DIGEST]. Like for skopeo, the first colon ends the path.
func parsePath(kind, s string) (Source, error) {
	src := Source{Kind: kind, Path: s}
	if i := strings.LastIndexByte(s, '@'); i >= 0 && checkDigest(s[i+1:]) == nil {
		src.Path, src.Digest = s[:i], s[i+1:]
	}
	if p, tag, ok := strings.Cut(src.Path, ":"); ok {
		src.Path, src.Tag = p, tag
		if tag == "" {
			return Source{}, fmt.Errorf("oci: there is no tag behind the colon of %q", s)
		}
	}
	if src.Path == "" {
		return Source{}, fmt.Errorf("oci: %s: needs the name of a %s", kind, map[bool]string{true: "directory", false: "file"}[kind == kindOCI])
	}
	return src, nil
}

// parseEngine understands what container engines call an image: the characters that they
// allow, so that nothing of it is anything but a name in a path of their API.
func parseEngine(kind, s string) (Source, error) {
	if s == "" {
		return Source{}, fmt.Errorf("oci: %s:// needs the name of an image", kind)
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && !strings.ContainsRune("/._:@-", rune(c)) {
			return Source{}, fmt.Errorf("oci: %q is not allowed in the name of an image", c)
		}
	}
	if s[0] == '-' || s[0] == '/' || strings.Contains(s, "..") || strings.Contains(s, "//") {
		return Source{}, fmt.Errorf("oci: %q is no name of an image", s)
	}
	return Source{Kind: kind, Name: s}, nil
}

// DefaultName returns the file that an image goes to if the user names none: what enroot
// would call it, IMAGE+TAG.sqsh.
func DefaultName(source string) (string, error) {
	s, err := ParseSource(source)
	if err != nil {
		return "", err
	}
	plus := strings.NewReplacer("/", "+").Replace
	switch s.Kind {
	case kindDocker:
		image := s.Repository
		if s.Registry == hub {
			image = strings.TrimPrefix(image, "library/")
		}
		tag := s.Tag
		if s.Digest != "" {
			tag = s.Digest
		}
		return plus(image) + "+" + tag + ".sqsh", nil
	case kindDockerd, kindPodman:
		return strings.NewReplacer("/", "+", ":", "+").Replace(s.Name) + ".sqsh", nil
	}
	base := filepath.Base(filepath.Clean(s.Path))
	if s.Kind != kindOCI {
		for _, e := range []string{".tar", ".oci", ".docker"} {
			base = strings.TrimSuffix(base, e)
		}
	}
	if base == "." || base == ".." || base == "/" || base == "" {
		base = "image"
	}
	return base + plus(suffix("+", s.Tag)) + ".sqsh", nil
}

// checkRegistry returns HOST[:PORT] in the one form that is used here: in lower case, and
// Docker Hub by one name.
func checkRegistry(s string) (string, error) {
	switch s = strings.ToLower(s); s {
	case "", hub, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return hub, nil
	}
	bad := fmt.Errorf("oci: %q is no registry: HOST or HOST:PORT", s)
	host, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", bad
		}
		if a, err := netip.ParseAddr(s[1:end]); err != nil || !a.Is6() || a.Zone() != "" {
			return "", bad
		}
		host, port = "", s[end+1:]
		if port != "" && port[0] != ':' {
			return "", bad
		}
		port = strings.TrimPrefix(port, ":")
	} else if h, p, ok := strings.Cut(s, ":"); ok {
		if host, port = h, p; h == "" || p == "" {
			return "", bad
		}
	}
	for i := range len(host) {
		if c := host[i]; !isAlnum(c) && c != '-' && c != '.' && c != '_' {
			return "", bad
		}
	}
	if strings.HasPrefix(host, "-") || strings.HasPrefix(host, ".") || strings.Contains(host, "..") || len(host) > 253 {
		return "", bad
	}
	if port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", bad
		}
	}
	return s, nil
}

// checkRepository checks the grammar of the distribution specification:
// [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*, components joined by slashes.
func checkRepository(s string) error {
	if s == "" {
		return errors.New("oci: the name of the image is missing")
	}
	if len(s) > 255 {
		return errors.New("oci: the name of the image is too long")
	}
	if l := strings.ToLower(s); l != s && checkRepository(l) == nil {
		return fmt.Errorf("oci: %q: names of images are in lower case: %q", s, l)
	}
	for part := range strings.SplitSeq(s, "/") {
		if !isComponent(part) {
			return fmt.Errorf("oci: %q is no name of an image: [USER@][REGISTRY/]IMAGE[:TAG|@DIGEST]", s)
		}
	}
	return nil
}

func isComponent(s string) bool {
	if s == "" || !isLowerAlnum(s[0]) || !isLowerAlnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if isLowerAlnum(s[i]) {
			i++
			continue
		}
		n := i
		for n < len(s) && s[n] == s[i] {
			n++
		}
		switch sep := s[i:n]; {
		case sep == ".", sep == "_", sep == "__", s[i] == '-':
		default:
			return false
		}
		if i = n; !isLowerAlnum(s[i]) {
			return false
		}
	}
	return true
}

func checkTag(s string) error {
	ok := s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-'
	for i := range len(s) {
		c := s[i]
		ok = ok && (isAlnum(c) || c == '_' || c == '.' || c == '-')
	}
	if !ok {
		return fmt.Errorf("oci: %q is no tag", s)
	}
	return nil
}

// checkDigest checks that a digest is of an algorithm that is computed here, and of its
// length. It becomes a part of paths.
func checkDigest(s string) error {
	alg, hex, ok := strings.Cut(s, ":")
	want := map[string]int{"sha256": 64, "sha512": 128}[alg]
	if !ok || want == 0 {
		return fmt.Errorf("oci: %.100q is no digest: sha256:HEX is", s)
	}
	if len(hex) != want {
		return fmt.Errorf("oci: %.150q is no digest: %d digits, not %d", s, len(hex), want)
	}
	for i := range len(hex) {
		if c := hex[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("oci: %.150q is no digest: %q is no digit", s, c)
		}
	}
	return nil
}

func isAlnum(c byte) bool { return isLowerAlnum(c) || c >= 'A' && c <= 'Z' }

func isLowerAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// baseTag returns the tag of a full name, "latest" if it has none.
func baseTag(name string) string {
	if _, tag, ok := strings.Cut(path.Base(name), ":"); ok {
		return tag
	}
	return "latest"
}
