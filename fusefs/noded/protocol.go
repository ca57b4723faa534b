// Package noded is the node service: one mount and one block cache for each image of a node, shared by all tasks and
// jobs, that no death of a process of its own takes away.
//
// # Processes
//
// The keeper (this package, Run) holds what must not be lost: the listening socket, the FUSE devices, the opened images.
// It talks to clients and starts the two others again when they end. The mounter (package mounter) has the rights: it
// mounts, and makes clones of mounts for users. The server (package server) reads images, as nobody and without rights,
// and answers the kernel. The keeper understands messages of package wire and nothing else; the mounter only those of
// the keeper; only the server looks at the bytes of an image. None of them ever opens or executes anything on a mount
// that it serves, and no child inherits a device.
//
// A user's own service is the same, without any rights: its mounter lives in a user and a mount namespace of its own.
//
// # Protocol
//
// A client connects to a SOCK_SEQPACKET socket and sends Hello, which is answered with Welcome; then Requests, each
// answered with one Reply before the next is read. All are messages of package wire. A connection is a reference to
// every image that was mounted over it. What else keeps a mount is the kernel: it lives as long as anybody has a clone.
package noded

import (
	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/wire"
)

// Version is that of the protocol. A service answers every version with Welcome and refuses those that it does not
// speak. Hello and Welcome never change.
const Version = 1

// Hello is the first message of a client.
type Hello struct {
	Magic   string // helloMagic
	Version int
	Program string // version of the client's program, for messages
}

const helloMagic = "squire"

// Fields makes it a wire.Message.
func (h *Hello) Fields(c *wire.Coder) {
	wire.String(c, &h.Magic)
	wire.Int(c, &h.Version)
	wire.String(c, &h.Program)
}

// Welcome answers Hello. After one with an Error the service closes the connection.
type Welcome struct {
	Version int    // that the service speaks
	Program string // version of its program
	Error   string
}

// Fields makes it a wire.Message.
func (w *Welcome) Fields(c *wire.Coder) {
	wire.Int(c, &w.Version)
	wire.String(c, &w.Program)
	wire.String(c, &w.Error)
}

// Verb is what a Request asks for.
type Verb int

// What a client may ask for, with the descriptors that go along.
const (
	// VerbMount: serve an image. Files: the image, opened for reading, then Traces files that may have its trace. The
	// reply has the ID, and a detached mount unless NoGrant is set.
	VerbMount Verb = iota + 1
	// VerbAttach: put a mount of the image ID, which this connection mounted, on a directory for a client that may not do
	// so itself. Files: an O_PATH descriptor of the directory.
	VerbAttach
	// VerbDetach: unmount what VerbAttach has put on Base, for the same user. Files: an O_PATH descriptor of its parent.
	VerbDetach
	// VerbReport: what the service does. The reply has a sealed memfd with a Report as JSON: root and the service's own
	// user see everything, others what they themselves use.
	VerbReport
	// VerbMountSigned is VerbMount for an image that is to be what a signature says. Between image and traces comes the
	// list of its hashes, in a file in memory that nobody can change (memfd_create(2), F_SEAL_WRITE).
	VerbMountSigned
)

// Request is one request of a client. Fields that the verb does not need are zero.
type Request struct {
	Do       Verb
	Image    string // name of the image file, for people; the service never opens it
	Offset   int64  // of the image in its file, bytes
	View     View
	Attrs    int // of the mount, as of fsmount(2): MOUNT_ATTR_NOEXEC; for root, without NOSUID and NODEV too
	Traces   int // files that may have the image's trace
	Record   int // the one of them, from 1 on, to be written if none has one; 0: none
	NoGrant  bool
	ID       uint64
	Base     string
	Lazy     bool // of VerbDetach
	Fallback bool // the client can do without: refuse rather than wait for long
	Known    bool // of VerbMount: a reference to what is mounted already, or nothing
	// Signature is the head of package signed's signature, of VerbMountSigned.
	Signature string
}

// Fields makes it a wire.Message.
func (r *Request) Fields(c *wire.Coder) {
	wire.Int(c, &r.Do)
	wire.String(c, &r.Image)
	wire.Int(c, &r.Offset)
	r.View.Fields(c)
	wire.Int(c, &r.Attrs)
	wire.Int(c, &r.Traces)
	wire.Int(c, &r.Record)
	c.Bool(&r.NoGrant)
	wire.Int(c, &r.ID)
	wire.String(c, &r.Base)
	c.Bool(&r.Lazy)
	c.Bool(&r.Fallback)
	c.Bool(&r.Known)
	if r.Do == VerbMountSigned { // others stay as they are for services and clients of other versions
		wire.String(c, &r.Signature)
	}
}

// View is how an image looks. Each has a superblock of its own.
type View struct {
	// Squash shows every file as owned by the caller: "squire run". All users share one superblock where the kernel has
	// idmapped FUSE mounts (Linux 6.12); below that, each has one.
	Squash bool
	// Private lets only the caller's user in, as fusermount3 does: "squire mount" of a user. Without it and Squash
	// everybody gets in, which only root may ask for.
	Private bool
	// Restrict is that of fusefs.Options. Users always get it with Squash.
	Restrict bool
	// Owner, without Squash, is shown as the owner of every file; nil: those of the image.
	Owner *fusefs.Owner
}

// Fields makes it a wire.Message.
func (v *View) Fields(c *wire.Coder) {
	c.Bool(&v.Squash)
	c.Bool(&v.Private)
	c.Bool(&v.Restrict)
	owned := v.Owner != nil
	if c.Bool(&owned); owned {
		if v.Owner == nil {
			v.Owner = new(fusefs.Owner)
		}
		wire.Int(c, &v.Owner.UID)
		wire.Int(c, &v.Owner.GID)
	}
}

// Code says what kind of answer a Reply is.
type Code int

// Codes of replies. Retry, Limit and Draining are no fault of the request: who can do without the service does.
const (
	OK       Code = iota
	Invalid       // the request makes no sense
	Denied        // the caller may not
	BadImage      // the image is not one, or damaged
	Limit         // a limit of the user's or of the service is reached
	Draining      // the service is about to end
	Failed        // something of the service's own did not work
)

// Reply answers a Request.
type Reply struct {
	Code     Code
	Error    string
	ID       uint64
	Size     int64 // of the image, bytes
	Replayed int   // blocks of its trace, if it was mounted anew
	Shared   bool  // it was mounted already
	// More says that this message has only the descriptors of the answer, which follows once the service has let go of
	// them: a mount that is attached and unmounted at once would be busy otherwise.
	More bool
}

// Fields makes it a wire.Message.
func (r *Reply) Fields(c *wire.Coder) {
	wire.Int(c, &r.Code)
	wire.String(c, &r.Error)
	wire.Int(c, &r.ID)
	wire.Int(c, &r.Size)
	wire.Int(c, &r.Replayed)
	c.Bool(&r.Shared)
	c.Bool(&r.More)
}
