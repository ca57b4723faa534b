package fusefs

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// restrictAttr hides privilege from attributes. A mount may be nosuid and nodev, but overlayfs copies mode bits up
// into a directory that is not, and a detached mount may lose its flags: what is not shown cannot be used.
//
// A device node becomes an empty regular file that nobody may open (root may, and reads nothing). That is better than
// to leave it out: names in the listing stay what the image has, and the file can still be a target for a bind mount.
// A node of device 0:0 would be worse: it is how overlayfs marks deleted files.
func restrictAttr(ino *sqfs.Inode, out *fuse.Attr) {
	if isDevice(ino.Type) {
		out.Mode, out.Rdev, out.Size, out.Blocks = unix.S_IFREG, 0, 0, 0
		return
	}
	out.Mode &^= unix.S_ISUID | unix.S_ISGID
}

func isDevice(t sqfs.Type) bool { return t == sqfs.TypeBlock || t == sqfs.TypeChar }

// hidden reports whether an extended attribute does not exist under Options.Restrict. File capabilities and labels
// would be privilege from an untrusted source; trusted.* and user.overlay.* steer an overlayfs on top.
func (f *FS) hidden(name string) bool {
	return f.restrict && (strings.HasPrefix(name, "security.") || isTrusted(name) ||
		strings.HasPrefix(name, "user.overlay."))
}

func isTrusted(name string) bool { return strings.HasPrefix(name, "trusted.") }
