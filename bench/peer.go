package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Peer is a way to have the files of an image in a directory.
type Peer struct {
	Name string
	// Argv is the command that mounts and returns when the mount is there. IMAGE and DIR in its words stand for what
	// they say. Empty for the directory that the image is unpacked into.
	Argv []string
	// rootOnly says that an ordinary user cannot mount so.
	rootOnly bool
	// path is where the program of Argv was found.
	path string
}

const (
	// KernelPeer is the one that all are compared with, if it is there.
	KernelPeer = "kernel"
	// squirePeer is ours.
	squirePeer = "squire"
	// directoryPeer is no mount: the image unpacked.
	directoryPeer = "directory"
)

// knownPeers are those that need no description.
var knownPeers = []Peer{
	{KernelPeer, []string{"mount", "-t", "squashfs", "-o", "loop,ro", "IMAGE", "DIR"}, true, "mount"},
	{"squashfuse", []string{"squashfuse", "IMAGE", "DIR"}, false, ""},
	{"squashfuse_ll", []string{"squashfuse_ll", "IMAGE", "DIR"}, false, ""},
	{squirePeer, []string{"squire", "mount", "IMAGE", "DIR"}, false, ""},
	{directoryPeer, nil, false, ""},
}

// PeerNames are the names of the peers that need no description.
func PeerNames() []string {
	var names []string
	for _, p := range knownPeers {
		names = append(names, p.Name)
	}
	return names
}

// ParsePeer reads NAME=COMMAND: words separated by blanks, among them IMAGE and DIR.
func ParsePeer(text string) (Peer, error) {
	name, command, _ := strings.Cut(text, "=")
	p := Peer{Name: strings.TrimSpace(name), Argv: strings.Fields(command)}
	switch {
	case p.Name == "" || len(p.Argv) == 0:
		return p, fmt.Errorf("peer %q: want NAME=COMMAND", text)
	case strings.ContainsAny(p.Name, ",\t\n/"):
		return p, fmt.Errorf("peer %q: a name without commas and slashes is wanted", p.Name)
	case !strings.Contains(command, "IMAGE") || !strings.Contains(command, "DIR"):
		return p, fmt.Errorf("peer %q: the command has no IMAGE or no DIR", p.Name)
	}
	return p, nil
}

// words are the command for an image and a directory.
func (p Peer) words(image, dir string) []string {
	argv := slices.Clone(p.Argv)
	argv[0] = p.path
	r := strings.NewReplacer("IMAGE", image, "DIR", dir)
	for i, word := range argv[1:] {
		argv[i+1] = r.Replace(word)
	}
	return argv
}

// findPeers finds the peers that were asked for, or all that can be used here. What cannot is told and left out,
// unless it was asked for.
func (b *comparison) findPeers() ([]Peer, error) {
	all := slices.Concat(knownPeers, b.Extra)
	var names []string
	for _, p := range all {
		if slices.Contains(names, p.Name) {
			return nil, fmt.Errorf("there are two peers %q", p.Name)
		}
		names = append(names, p.Name)
	}
	for _, name := range b.Peers {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("no peer %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	var peers []Peer
	for _, p := range all {
		wanted := b.wanted(p)
		if len(b.Peers) > 0 && !wanted {
			continue
		}
		found, err := b.usable(p)
		switch {
		case err == nil:
			peers = append(peers, found)
		case wanted || p.Name == squirePeer && !errors.Is(err, errNoFusermount):
			return nil, fmt.Errorf("peer %s: %w", p.Name, err)
		default:
			b.leaveOut(p.Name, err)
		}
	}
	if len(peers) == 0 {
		return nil, noPeer()
	}
	return peers, nil
}

// wanted says that a peer was asked for: that it cannot be measured is a failure.
func (b *comparison) wanted(p Peer) bool {
	return slices.Contains(b.Peers, p.Name) || slices.ContainsFunc(b.Extra, func(e Peer) bool { return e.Name == p.Name })
}

// tryPeers leaves out peers that do not mount here, unless they were asked for: root in a container may have no loop
// devices, and fusermount3 refuses users without an account.
func (b *comparison) tryPeers(ctx context.Context) error {
	b.peers = slices.DeleteFunc(b.peers, func(p Peer) bool {
		if len(p.Argv) == 0 || b.wanted(p) || ctx.Err() != nil {
			return false
		}
		m, err := b.open(ctx, p)
		if err != nil {
			b.leaveOut(p.Name, err)
			return true
		}
		m.unmount()
		return false
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// The directory by itself says nothing of mounts.
	if !slices.ContainsFunc(b.peers, func(p Peer) bool { return len(p.Argv) > 0 || b.wanted(p) }) {
		return noPeer()
	}
	return nil
}

// noPeer says that nothing can be measured, and to an ordinary user how it can be: in a namespace of the user's own FUSE
// mounts without fusermount3, which may be missing, and which refuses who has no account.
func noPeer() error {
	if ordinary {
		return errors.New("there is no peer to measure; without fusermount3, or without an account, try: unshare --map-root-user --mount squire bench")
	}
	return errors.New("there is no peer to measure")
}

var errNoFusermount = errors.New("an ordinary user mounts with fusermount3, which is not installed (package fuse3)")

// usable finds a peer's program. The error says why the peer cannot be measured here.
func (b *comparison) usable(p Peer) (Peer, error) {
	if len(p.Argv) == 0 {
		return p, b.roomToUnpack()
	}
	program := p.Argv[0]
	if p.Name == squirePeer {
		program = b.Squire
	}
	if p.rootOnly && ordinary {
		return p, errors.New("only root mounts so")
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return p, err
	}
	if p.path, err = filepath.Abs(path); err != nil {
		return p, err
	}
	if _, err := exec.LookPath("fusermount3"); err != nil && ordinary {
		return p, errNoFusermount
	}
	return p, nil
}

// version asks a peer for its version; "" if it does not tell. squashfuse says it in front of its usage.
func (p Peer) version(ctx context.Context) string {
	switch {
	case len(p.Argv) == 0:
		return ""
	case p.Name == KernelPeer:
		return "Linux " + kernelRelease()
	}
	arg := "--help"
	if p.Name == squirePeer {
		arg = "version"
	}
	out, _ := runProgram(ctx, 5*time.Second, nil, p.path, arg)
	line, _, _ := strings.Cut(string(out), "\n")
	line, _, _ = strings.Cut(line, " (c)")
	if !strings.ContainsAny(line, "0123456789") || len(line) > 80 {
		return ""
	}
	return strings.TrimSpace(line)
}

// reference is the peer that all are compared with: the kernel, or the first that is a mount.
func reference(peers []Peer) string {
	for _, p := range peers {
		if p.Name == KernelPeer {
			return p.Name
		}
	}
	for _, p := range peers {
		if len(p.Argv) > 0 {
			return p.Name
		}
	}
	return peers[0].Name
}

// leaveOut notes what is not measured.
func (b *comparison) leaveOut(what string, why error) {
	message := fmt.Sprintf("left out %s: %v", what, why)
	b.leftOut = append(b.leftOut, message)
	b.Note(message)
}

// userName is who measured, for reports.
func userName() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return "ordinary"
}
