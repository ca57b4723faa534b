package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// maxMembers is how many files an archive of an image may have.
const maxMembers = 100_000

// tree is where the files of an OCI layout lie: a directory or an archive.
type tree interface {
	// open opens a file, by a clean relative path.
	open(name string) (*io.SectionReader, io.Closer, error)
	io.Closer
}

// dirTree is a directory. Links in it do not lead out of it.
type dirTree struct{ *os.Root }

func (t dirTree) open(name string) (*io.SectionReader, io.Closer, error) {
	f, err := t.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("no regular file")
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return io.NewSectionReader(f, 0, st.Size()), f, nil
}

// tarTree is a tar archive, of which files are read in place.
type tarTree struct {
	file  *os.File
	files map[string]*io.SectionReader
	links map[string]string
}

func (t *tarTree) open(name string) (*io.SectionReader, io.Closer, error) {
	for range 10 { // docker save links a layer that it has already
		if s := t.files[name]; s != nil {
			return io.NewSectionReader(s, 0, s.Size()), io.NopCloser(nil), nil
		}
		to, ok := t.links[name]
		if !ok {
			break
		}
		name = to
	}
	return nil, nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

func (t *tarTree) Close() error { return t.file.Close() }

// indexTar finds out where the files of an archive lie. It closes f if it fails.
func indexTar(f *os.File) (_ *tarTree, err error) {
	t := &tarTree{file: f, files: map[string]*io.SectionReader{}, links: map[string]string{}}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("oci: the archive is no regular file")
	}
	if err := refuseCompressed(f); err != nil {
		return nil, err
	}
	r := tar.NewReader(f) // seeks over contents, as f can do that
	for n := 0; ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			return t, nil
		} else if err != nil {
			return nil, fmt.Errorf("oci: archive: %w", err)
		}
		if n >= maxMembers {
			return nil, fmt.Errorf("oci: the archive has more than %d files", maxMembers)
		}
		if err := t.add(h, st.Size()); err != nil {
			return nil, err
		}
	}
}

func (t *tarTree) add(h *tar.Header, size int64) error {
	name := path.Clean("/" + h.Name)[1:]
	switch h.Typeflag {
	case tar.TypeReg:
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return fmt.Errorf("oci: %.100q in the archive is sparse: refused", name)
			}
		}
		off, err := t.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return fmt.Errorf("oci: archive: %w", err)
		}
		if h.Size < 0 || h.Size > size-off {
			return fmt.Errorf("oci: the archive is cut off in %.100q", name)
		}
		t.files[name] = io.NewSectionReader(t.file, off, h.Size)
		delete(t.links, name)
	case tar.TypeSymlink:
		t.links[name] = path.Clean("/" + path.Join(path.Dir(name), h.Linkname))[1:]
	case tar.TypeLink:
		t.links[name] = path.Clean("/" + h.Linkname)[1:]
	case tar.TypeGNUSparse:
		return fmt.Errorf("oci: %.100q in the archive is sparse: refused", name)
	}
	return nil
}

// refuseCompressed tells of an archive that is compressed as a whole: it cannot be read in place.
func refuseCompressed(f *os.File) error {
	var head [6]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return errors.New("oci: the file is too short for an archive")
	}
	for magic, tool := range map[string]string{"\x1f\x8b": "gzip", "\x28\xb5\x2f\xfd": "zstd", "\xfd7zXZ\x00": "xz", "BZh": "bzip2"} {
		if bytes.HasPrefix(head[:], []byte(magic)) {
			return fmt.Errorf("oci: the archive is compressed as a whole: its layers are read in place, so decompress it first (%s -d)", tool)
		}
	}
	return nil
}

// files is a store in a directory or an archive.
type files struct {
	tree
	src   Source
	top   *document         // of an old archive of docker save
	blobs map[string]string // digest to name, of such an archive
}

func openLayout(src Source) (store, error) {
	if src.Tag != "" { // a directory that has a colon in its name
		if st, err := os.Stat(src.Path + ":" + src.Tag); err == nil && st.IsDir() {
			src.Path, src.Tag = src.Path+":"+src.Tag, ""
		}
	}
	root, err := os.OpenRoot(src.Path)
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	f := &files{tree: dirTree{root}, src: src}
	if _, err := root.Stat("index.json"); err != nil {
		root.Close()
		return nil, fmt.Errorf("oci: no layout of an OCI image, which has an index.json: %w", err)
	}
	return f, nil
}

func openArchive(src Source) (store, error) {
	if src.Tag != "" {
		if st, err := os.Stat(src.Path + ":" + src.Tag); err == nil && st.Mode().IsRegular() {
			src.Path, src.Tag = src.Path+":"+src.Tag, ""
		}
	}
	f, err := os.OpenFile(src.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	return newArchive(src, f)
}

// newArchive owns f, also if it fails.
func newArchive(src Source, f *os.File) (store, error) {
	t, err := indexTar(f)
	if err != nil {
		return nil, err
	}
	s := &files{tree: t, src: src}
	if t.files["index.json"] == nil {
		if err := s.readDocker(); err != nil {
			t.Close()
			return nil, err
		}
	}
	return s, nil
}

// read reads a small file.
func (s *files) read(name string, limit int64) ([]byte, error) {
	r, c, err := s.open(name)
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	defer c.Close()
	return readSmall(r, limit)
}

func (s *files) root(ctx context.Context) (*document, error) {
	if s.top != nil {
		return s.top, nil
	}
	body, err := s.read("index.json", maxManifest)
	if err != nil {
		return nil, err
	}
	d, err := parseDocument(body, "")
	if err != nil {
		return nil, err
	}
	if !d.list() {
		return nil, errors.New("oci: index.json is no list of manifests")
	}
	return s.pick(ctx, d)
}

// Names that tools give to images in an index.json: the specification's, and containerd's,
// which has the whole name.
const (
	refName  = "org.opencontainers.image.ref.name"
	fullName = "io.containerd.image.name"
)

// pick returns the image of an index.json that the source names. Without a name the index has
// to have one image only, or images of several platforms.
func (s *files) pick(ctx context.Context, index *document) (*document, error) {
	var names []string
	var found []descriptor
	for _, m := range index.Manifests {
		if isAttestation(m) {
			continue
		}
		ref, full := m.Annotations[refName], m.Annotations[fullName]
		if n := cmp.Or(full, ref); n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
		switch tag := s.src.Tag; {
		case s.src.Digest != "" && s.src.Digest != m.Digest:
		case tag == "", tag == ref, full != "" && sameName(tag, full), full != "" && tag == baseTag(full):
			found = append(found, m)
		}
	}
	there := fmt.Sprintf("there is %.1000s", strings.Join(names, ", "))
	if len(names) == 0 {
		there = "its images have no names"
	}
	switch {
	case len(found) == 0 && s.src.Digest != "":
		return s.manifest(ctx, descriptor{Digest: s.src.Digest, Size: maxManifest})
	case len(found) == 0 && s.src.Tag != "":
		return nil, fmt.Errorf("oci: no image is called %q: %s", s.src.Tag, there)
	case len(found) == 0:
		return nil, errors.New("oci: there is no image in it")
	case len(found) == 1:
		return s.manifest(ctx, found[0])
	case s.src.Tag == "" && len(names) > 1:
		return nil, fmt.Errorf("oci: several images: name one, as in %s:%s:TAG: %s", s.src.Kind, s.src.Path, there)
	}
	return &document{mediaType: typeIndex, Manifests: found}, nil
}

// sameName compares names of images as a user writes them.
func sameName(a, b string) bool {
	x, err := parseDocker(a)
	y, err2 := parseDocker(b)
	return a == b || err == nil && err2 == nil && x == y
}

func (s *files) manifest(_ context.Context, d descriptor) (*document, error) {
	name, err := s.where(d)
	if err != nil {
		return nil, err
	}
	body, err := s.read(name, maxManifest)
	if err != nil {
		return nil, err
	}
	if err = verify(body, d.Digest); err != nil {
		return nil, err
	}
	doc, err := parseDocument(body, d.MediaType)
	if err != nil {
		return nil, err
	}
	doc.digest = d.Digest
	return doc, nil
}

// where says what contents are called.
func (s *files) where(d descriptor) (string, error) {
	if name, ok := s.blobs[d.Digest]; ok {
		return name, nil
	}
	if err := checkDigest(d.Digest); err != nil {
		return "", err
	}
	return "blobs/" + strings.Replace(d.Digest, ":", "/", 1), nil
}

// section is a part of a file.
type section struct {
	io.Reader
	io.Closer
}

func (s *files) blob(_ context.Context, d descriptor, from int64) (io.ReadCloser, error) {
	name, err := s.where(d)
	if err != nil {
		return nil, err
	}
	r, c, err := s.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, permanent("oci: %s is not there: not all of the image is", d.Digest)
	} else if err != nil {
		return nil, permanentError{fmt.Errorf("oci: %w", err)}
	}
	if r.Size() != d.Size {
		c.Close()
		return nil, permanent("oci: %s has %d bytes, and the manifest says %d", d.Digest, r.Size(), d.Size)
	}
	if _, err := r.Seek(from, io.SeekStart); err != nil {
		c.Close()
		return nil, fmt.Errorf("oci: %w", err)
	}
	return section{r, c}, nil
}

// readDocker reads the manifest.json of docker save: Docker image specification 1.2, "Combined
// Image JSON + Filesystem Changeset Format". It says nothing of digests: those of the layers are
// their diff ids, unless they are compressed.
func (s *files) readDocker() error {
	body, err := s.read("manifest.json", maxManifest)
	if err != nil {
		return fmt.Errorf("oci: no archive of a container image, which has a manifest.json or an index.json: %w", err)
	}
	var all []dockerImage
	if err = json.Unmarshal(body, &all); err != nil {
		return fmt.Errorf("oci: manifest.json: %w", err)
	}
	img, err := s.pickDocker(all)
	if err != nil {
		return err
	}
	if len(img.Layers) > maxLayers {
		return fmt.Errorf("oci: the image has %d layers: at most %d", len(img.Layers), maxLayers)
	}
	config, err := s.read(path.Clean("/" + img.Config)[1:], maxConfig)
	if err != nil {
		return err
	}
	conf, err := parseConfig(config, len(img.Layers))
	if err != nil {
		return err
	}
	s.top = &document{mediaType: typeDocker, Config: descriptor{Digest: digestOf(config), Size: int64(len(config))}}
	s.blobs = map[string]string{s.top.Config.Digest: path.Clean("/" + img.Config)[1:]}
	for n, name := range img.Layers {
		name = path.Clean("/" + name)[1:]
		r, c, err := s.open(name)
		if err != nil {
			return fmt.Errorf("oci: %w", err)
		}
		var head [4]byte
		_, _ = r.ReadAt(head[:], 0) // shorter ones are not compressed
		c.Close()
		d := descriptor{Digest: conf.RootFS.DiffIDs[n], Size: r.Size()}
		d.loose = string(head[:2]) == "\x1f\x8b" || string(head[:]) == "\x28\xb5\x2f\xfd"
		s.top.Layers = append(s.top.Layers, d)
		s.blobs[d.Digest] = name
	}
	return nil
}

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *files) pickDocker(all []dockerImage) (dockerImage, error) {
	var names []string
	for _, img := range all {
		for _, n := range img.RepoTags {
			if s.src.Tag != "" && (sameName(s.src.Tag, n) || s.src.Tag == baseTag(n)) {
				return img, nil
			}
			names = append(names, n)
		}
	}
	there := fmt.Sprintf("there is %.1000s", strings.Join(names, ", "))
	switch {
	case s.src.Digest != "":
		return dockerImage{}, errors.New("oci: an archive of docker save does not say digests")
	case s.src.Tag != "":
		return dockerImage{}, fmt.Errorf("oci: no image is called %q: %s", s.src.Tag, there)
	case len(all) == 0:
		return dockerImage{}, errors.New("oci: there is no image in it")
	case len(all) > 1:
		return dockerImage{}, fmt.Errorf("oci: several images: name one, as in %s:%s:TAG: %s", s.src.Kind, s.src.Path, there)
	}
	return all[0], nil
}
