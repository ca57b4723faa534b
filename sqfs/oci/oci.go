// Package oci finds container images: in registries, in files and directories, in the
// stores of container engines. It gives their layers, verified, and keeps their
// configuration in squashfs images in the form that Squire and enroot read.
//
// A [Source] is named as users name it:
//
//	docker://[USER@]REGISTRY/IMAGE[:TAG|@DIGEST]   or enroot's REGISTRY#IMAGE; without a registry Docker Hub
//	oci:DIR[:TAG|@DIGEST]                          a directory with an OCI layout
//	oci-archive:FILE[:TAG|@DIGEST]                 the same in a tar archive
//	docker-archive:FILE[:NAME]                     of docker save, podman save
//	dockerd://IMAGE, podman://IMAGE                what an engine on this machine has
//
// [Open] asks for the manifest and the configuration; [Image.Layers] are then read like files,
// several at once, and fetched, resumed, cached and verified underneath.
//
// Credentials are looked for in this order; the first that has any for the registry is used:
//
//   - $REGISTRY_AUTH_FILE; $DOCKER_CONFIG/config.json or else ~/.docker/config.json;
//     $XDG_RUNTIME_DIR/containers/auth.json; ~/.config/containers/auth.json: in Docker's form,
//     with credential helpers.
//   - $ENROOT_CONFIG_PATH/.credentials or ~/.config/enroot/.credentials: lines "machine HOST login
//     USER password SECRET". A SECRET that begins with $ is what the shell makes of it:
//     $TOKEN, $(command). USER@ in the source chooses among several lines.
//
// Certificates are the system's ($SSL_CERT_FILE), Options.CACerts, and what lies in
// /etc/containers/certs.d/HOST and /etc/docker/certs.d/HOST, as for Podman and Docker. Proxies are
// taken from the environment.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/squirefs/squire/sqfs/layer"
)

// Options say how an image is found.
type Options struct {
	Arch        string              // of the image, as Go, Docker or uname name it; "" is this machine's
	Insecure    []string            // registries (HOST[:PORT]) that may be spoken to by plain HTTP, or with any certificate
	Mirrors     map[string][]string // by registry: others that are asked first
	CACerts     []string            // files with certificates that are trusted beside the system's
	CacheDir    string              // layers are kept there; "" keeps none
	CacheSize   int64               // bytes of the cache at most; 0 is 20 GiB
	Connections int                 // at most so many downloads at once; 0 is 8
	Timeout     time.Duration       // without a byte after which a transfer is tried again; 0 is 30 s
	Retries     int                 // of a transfer; 0 is 5, -1 none
	Event       func(Event)         // hears of layers and retries; any goroutine may call it; may be nil
	UserAgent   string              // what registries are told; "" is squire

	backoff time.Duration // before the first retry; 0 is 500 ms
}

// Event tells of progress with a layer.
type Event struct {
	Layer   int   // 0 is the lowest; -1: not about a layer
	Bytes   int64 // that came so far, compressed
	Used    int64 // of these: that whoever reads the layer has had; less than before is not news
	Total   int64 // 0: not known
	Cached  bool  // comes from the cache
	Done    bool
	Message string // a retry, a fallback; for people
}

// Image is a container image that was found. Its layers have not been read yet.
type Image struct {
	Record Record

	o        *Options
	store    store
	cache    *cache // nil: none
	uncached bool   // it has no room for the layers
	layers   []*imageLayer
	slots    chan struct{}
	cancel   context.CancelFunc
}

// Open finds the image that source names: docker://, oci:, oci-archive:, docker-archive:,
// dockerd://, podman://. tar: and dir: are not container images, see package pack and layer.
//
// Of a registry it asks for the manifest and the configuration only. An image for another
// architecture than this machine's is an error if Options.Arch asked for one or if there is a
// list to choose from, and otherwise a message, as for enroot. The context is that of the
// whole transfer: when it ends, readers of layers end with its cause.
func Open(ctx context.Context, source string, o Options) (*Image, error) {
	src, err := ParseSource(source)
	if err != nil {
		return nil, err
	}
	want, err := parseArch(o.Arch)
	if err == nil {
		err = o.check()
	}
	if err != nil {
		return nil, err
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	i := &Image{o: &o, cancel: cancel, slots: make(chan struct{}, 8)}
	if o.Connections > 0 {
		i.slots = make(chan struct{}, o.Connections)
	}
	if err := i.open(ctx, src, want); err != nil {
		i.Close()
		if outer.Err() != nil {
			err = context.Cause(outer)
		}
		return nil, fmt.Errorf("%s: %w", src, err)
	}
	return i, nil
}

// check finds names of registries that can be none: they would be good for nothing, and nobody
// would be told.
func (o *Options) check() error {
	named := slices.Concat(o.Insecure, slices.Sorted(maps.Keys(o.Mirrors)))
	for _, m := range slices.Concat(slices.Collect(maps.Values(o.Mirrors))...) {
		host, _, _ := strings.Cut(m, "/")
		named = append(named, host)
	}
	for _, named := range named {
		if _, err := checkRegistry(named); err != nil {
			return err
		}
	}
	return nil
}

func (i *Image) open(ctx context.Context, src Source, want platform) (err error) {
	if src.Kind == kindDocker {
		if i.cache, err = openCache(ctx, i.o); err != nil {
			return err
		}
	}
	if i.store, err = openStore(ctx, src, i.o, i.cache); err != nil {
		return err
	}
	i.Record = Record{Version: recordVersion, Source: src.String()}
	doc, err := i.find(ctx, want)
	if err != nil {
		return err
	}
	conf, err := i.configure(ctx, doc)
	if err != nil {
		return err
	}
	if err := i.checkPlatform(conf, want); err != nil {
		return err
	}
	return i.plan(doc, conf)
}

func openStore(ctx context.Context, src Source, o *Options, c *cache) (store, error) {
	switch src.Kind {
	case kindDocker:
		return openRegistry(src, o, c)
	case kindOCI:
		return openLayout(src)
	case kindOCIArchive, kindDockerArchive:
		return openArchive(src)
	}
	return openEngine(ctx, src, o)
}

// find returns the manifest of a platform.
func (i *Image) find(ctx context.Context, want platform) (*document, error) {
	doc, err := i.store.root(ctx)
	if err != nil {
		return nil, err
	}
	if doc.list() {
		i.Record.Index = doc.digest
		c := &chooser{get: i.store.manifest, want: want}
		if doc, err = c.choose(ctx, doc); err != nil {
			return nil, err
		}
		if doc == nil {
			return nil, c.none()
		}
		if doc.list() {
			return nil, errors.New("oci: a list of manifests is where a manifest should be")
		}
	}
	i.Record.Digest = doc.digest
	return doc, nil
}

// configure reads the configuration into the record.
func (i *Image) configure(ctx context.Context, doc *document) (*imageConfig, error) {
	body, err := i.readConfig(ctx, doc.Config)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(body, len(doc.Layers))
	if err != nil {
		return nil, err
	}
	r := &i.Record
	r.ConfigDigest, r.Created, r.Config = doc.Config.Digest, c.Created.Time, c.Config
	r.Platform = c.String()
	for n, l := range doc.Layers {
		r.Layers = append(r.Layers, RecordLayer{Digest: l.Digest, DiffID: c.RootFS.DiffIDs[n], Size: l.Size})
	}
	for _, h := range c.History {
		r.History = append(r.History, History{Created: h.Created.Time, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, EmptyLayer: h.EmptyLayer})
	}
	return c, nil
}

func (i *Image) readConfig(ctx context.Context, d descriptor) ([]byte, error) {
	if i.cache != nil {
		if b := i.cache.small(d.Digest, maxConfig); b != nil {
			return b, nil
		}
	}
	var body []byte
	err := i.o.again(ctx, func() error {
		r, err := i.store.blob(ctx, d, 0)
		if err != nil {
			return err
		}
		defer r.Close()
		body, err = readSmall(r, d.Size)
		return err
	})
	if err == nil {
		err = verify(body, d.Digest)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration of the image: %w", err)
	}
	if i.cache != nil {
		i.cache.keepSmall(d.Digest, body)
	}
	return body, nil
}

func (i *Image) checkPlatform(c *imageConfig, want platform) error {
	switch {
	case c.OS != "" && c.OS != want.OS:
		return fmt.Errorf("oci: the image is for %.50q, not for %s", c.OS, want.OS)
	case c.Architecture == "" || c.Architecture == want.Architecture:
		return nil
	case i.o.Arch != "":
		return fmt.Errorf("oci: the image is for %.100s, not for %s", c.platform, want)
	}
	i.o.say("the image is for %.100s, and this machine is %s", c.platform, want)
	return nil
}

// plan makes the layers, and decides whether there is room to cache them.
func (i *Image) plan(doc *document, c *imageConfig) error {
	for n, d := range doc.Layers {
		i.layers = append(i.layers, &imageLayer{img: i, index: n, desc: d, diffID: c.RootFS.DiffIDs[n]})
	}
	if i.cache == nil {
		return nil
	}
	var need int64
	for _, l := range i.layers {
		if !i.cache.has(l.desc.Digest, l.desc.Size) {
			need += l.desc.Size
		}
	}
	if free := i.cache.free(); need > 0 && need+cacheMargin > free {
		i.uncached = true
		i.o.say("the layers are not cached: they have %d MiB, and %s has %d MiB free", need>>20, i.cache.dir, free>>20)
	} else if need > i.cache.max {
		i.uncached = true
		i.o.say("the layers are not cached: they have %d MiB, and the cache at most %d MiB", need>>20, i.cache.max>>20)
	}
	return nil
}

// Layers returns the layers, lowest first. What they give is verified: a layer whose
// digest or length is not the manifest's, or whose contents are not what the
// configuration says, ends with an error in place of io.EOF.
func (i *Image) Layers() []layer.Layer {
	all := make([]layer.Layer, len(i.layers))
	for n, l := range i.layers {
		all[n] = l
	}
	return all
}

// Size returns what is to be transferred, in bytes, compressed, without what the cache has.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.layers {
		if i.cache == nil || !i.cache.has(l.desc.Digest, l.desc.Size) {
			n += l.desc.Size
		}
	}
	return n
}

// CacheDir is where layers are kept, "" if they are not: there is no room, or they lie on
// this machine already.
func (i *Image) CacheDir() string {
	if i.cache == nil || i.uncached {
		return ""
	}
	return i.cache.dir
}

// Close lets go of what Open opened, and ends what is still being fetched: what the cache has
// of it is a beginning for the next time.
func (i *Image) Close() error {
	i.cancel()
	if i.cache != nil {
		i.cache.close()
	}
	if i.store != nil {
		return i.store.Close()
	}
	return nil
}

// Record is what a squashfs image keeps of the container image that it was made from: in
// the file RecordPath, in JSON.
type Record struct {
	Version      int               `json:"version"`                // 1
	Source       string            `json:"source"`                 // as named, without credentials
	Digest       string            `json:"digest,omitempty"`       // of the manifest of this platform
	Index        string            `json:"index_digest,omitempty"` // of the list that it was chosen from
	ConfigDigest string            `json:"config_digest,omitempty"`
	Platform     string            `json:"platform,omitempty"` // os/arch[/variant]
	Created      time.Time         `json:"created,omitzero"`
	Layers       []RecordLayer     `json:"layers,omitempty"`  // lowest first
	Options      map[string]string `json:"options,omitempty"` // of the import, which make the image another
	Config       Config            `json:"config"`
	History      []History         `json:"history,omitempty"`
}

// RecordLayer is a layer of a Record.
type RecordLayer struct {
	Digest string `json:"digest"`  // compressed
	DiffID string `json:"diff_id"` // expanded
	Size   int64  `json:"size"`    // compressed
}

// Config is how a container of the image is run: the fields of the OCI image
// specification, config.md.
type Config struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	Shell        []string            `json:"Shell,omitempty"`
}

// History is a step in which the image was made.
type History struct {
	Created    time.Time `json:"created,omitzero"`
	CreatedBy  string    `json:"created_by,omitempty"`
	Author     string    `json:"author,omitempty"`
	Comment    string    `json:"comment,omitempty"`
	EmptyLayer bool      `json:"empty_layer,omitempty"`
}

// RecordPath is where an image keeps its Record.
const RecordPath = "etc/squire/image.json"

var _ io.Closer = (*Image)(nil)
