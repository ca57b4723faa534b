// Package server is the process of the node service that reads images and answers the kernel: one for all images of the
// node, with one cache, as nobody and without rights. It may die at any time, and another one goes on where it was.
//
// The keeper's side is Client. Both talk over a SOCK_SEQPACKET socket, see message.go. The process ends when that is
// closed; the mounts do not.
package server

import (
	"github.com/squirefs/squire/fusefs"
)

// Name is argv[0] of the stage, which has the keeper's socket as descriptor 3. A program that uses Start calls Main when
// it finds itself called so.
const Name = "squire-server"

// Config is what all images share.
type Config struct {
	Cache    int64 // bytes of decoded blocks
	Metadata int64 // bytes of expanded metadata, of all images
	NoResend bool  // the devices are clones: what the last server had taken has failed by itself
}

// Image is one image to serve.
type Image struct {
	ID       uint64 // not 0, and no other image's of this process
	Name     string // for messages
	Offset   int64
	User     uint32 // who asked for it: what share it gets
	Common   bool   // several users have it: it gets a share as if it were of one that is none of them
	Restrict bool
	Owner    *fusefs.Owner // shown for every file; nil: the image's
	IDMap    bool          // INIT asks for idmapped mounts
	Init     []byte        // Info.Init of the server that has served its mount before; nil: nobody has
	// Signed is the signed.Statement that what is read of it must agree with, in text; "": it is read as it is.
	Signed string
	Traces int // files that may have its trace
	Record int // the one of them, from 1 on, to be written if none has one; 0: none
}

// Info is what the server found out about an image.
type Info struct {
	Size       int64 // bytes that the image uses
	Superblock string
	Replayed   int    // blocks of its trace
	Init       []byte // what a later server needs to go on; the keeper keeps it and does not look at it
	Flags      uint64 // that INIT was answered with: FUSE_ALLOW_IDMAP
}

// ImageError is an image that the server refuses: the message names what is wrong with it.
type ImageError struct{ Text string }

func (e *ImageError) Error() string { return e.Text }

// Stats are those of the process.
type Stats struct {
	Memory int64 // resident bytes
	Images map[uint64]ImageStats
}

// ImageStats are those of one image.
type ImageStats struct {
	fusefs.Stats
	ReadFrom uint64 // bytes from storage
	Kept     int64  // bytes in the cache
}
