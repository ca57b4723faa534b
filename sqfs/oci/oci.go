// Package oci finds container images: in registries, in files and directories, in the
// stores of container engines. It gives their layers, verified, and keeps their
// configuration in squashfs images in the form that Squire and enroot read.
package oci

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/layer"
	"github.com/squirefs/squire/sqfs/pack"
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
}

// Event tells of progress with a layer.
type Event struct {
	Layer   int   // 0 is the lowest; -1: not about a layer
	Bytes   int64 // read so far, compressed
	Total   int64 // 0: not known
	Cached  bool  // comes from the cache
	Done    bool
	Message string // a retry, a fallback; for people
}

// Image is a container image that was found. Its layers have not been read yet.
type Image struct {
	Record Record
}

// Open finds the image that source names: docker://, oci:, oci-archive:, docker-archive:,
// dockerd://, podman://. tar: and dir: are not container images, see package pack and layer.
func Open(ctx context.Context, source string, o Options) (*Image, error) {
	return nil, errors.New("oci: skeleton")
}

// Layers returns the layers, lowest first. What they give is verified: a layer whose
// digest or length is not the manifest's, or whose contents are not what the
// configuration says, ends with an error in place of io.EOF.
func (i *Image) Layers() []layer.Layer { return nil }

// Size returns what is to be transferred, in bytes, compressed, without what the cache has.
func (i *Image) Size() int64 { return 0 }

// Close lets go of what Open opened.
func (i *Image) Close() error { return nil }

// Record is what a squashfs image keeps of the container image that it was made from: in
// the file RecordPath, in JSON.
type Record struct {
	Version      int           `json:"version"`                // 1
	Source       string        `json:"source"`                 // as named, without credentials
	Digest       string        `json:"digest,omitempty"`       // of the manifest of this platform
	Index        string        `json:"index_digest,omitempty"` // of the list that it was chosen from
	ConfigDigest string        `json:"config_digest,omitempty"`
	Platform     string        `json:"platform,omitempty"` // os/arch[/variant]
	Created      time.Time     `json:"created,omitzero"`
	Layers       []RecordLayer `json:"layers,omitempty"` // lowest first
	Config       Config        `json:"config"`
	History      []History     `json:"history,omitempty"`
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

// Install puts the record into the tree: RecordPath for Squire, and for enroot /etc/rc,
// /etc/environment, /etc/fstab and /etc/rc.local.
func (r *Record) Install(root *pack.Inode, w *pack.Writer) error { return errors.New("oci: skeleton") }

// ReadRecord returns the record of an image, nil if it has none. The file is not
// trusted: its size is bounded, and what cannot be understood is an error.
func ReadRecord(img *sqfs.Image) (*Record, error) { return nil, errors.New("oci: skeleton") }

var _ io.Closer = (*Image)(nil)
