package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
)

// slurmReply is what a task has to do to be in the container. It goes over a SOCK_STREAM socket: a sign, "+", and the length
// of what follows, in 8 hexadecimal digits, that all descriptors come with; then records, each a letter and a text that
// ends with NUL:
//
//	k  ask before you end, see slurmStep.supervise
//	n  a namespace to join, by its kind; the descriptors are in the order of these
//	s  NAME=VALUE, a variable to set
//	u  NAME, a variable to unset
//	w  the directory to be in
//	c  give up capabilities, but those of a hexadecimal mask, and getting others
//	f  a filter of system calls, struct sock_filter[] as 16 hexadecimal digits each: code, jt, jf, k
//
// They are obeyed in their order. The sign "-" is for an error, whose text follows the length: empty, when another task
// of the node tells it.
type slurmReply struct {
	namespaces   []runtime.Namespace
	set, unset   []string
	dir          string
	capabilities uint64
	filter       string // see filterText
	supervised   bool
}

// maxReply bounds a reply, in bytes. The plugin has the same.
const maxReply = 4 << 20

// replyHead is what a reply begins with.
func replyHead(sign byte, length int) string { return fmt.Sprintf("%c%08x", sign, length) }

// encode returns the bytes.
func (r *slurmReply) encode() ([]byte, error) {
	b := append(make([]byte, 0, 4<<10), replyHead('+', 0)...)
	head, records := len(b), 0
	add := func(letter byte, text string) {
		b = append(append(append(b, letter), text...), 0)
		records++
	}
	if r.supervised {
		add('k', "")
	}
	for _, n := range r.namespaces {
		add('n', n.Kind)
	}
	for _, kv := range r.set {
		add('s', kv)
	}
	for _, name := range r.unset {
		add('u', name)
	}
	if r.dir != "" {
		add('w', r.dir)
	}
	if len(r.namespaces) > 0 {
		add('c', strconv.FormatUint(r.capabilities, 16))
	}
	if r.filter != "" {
		add('f', r.filter)
	}
	size := len(b) - head
	switch {
	case bytes.Count(b[head:], []byte{0}) != records:
		return nil, errors.New("the environment of the container has a NUL byte in it")
	case size > maxReply:
		return nil, fmt.Errorf("the environment of the task is too large for the container (%s)", sizeString(int64(size)))
	}
	copy(b, replyHead('+', size))
	return b, nil
}

// filterText is a filter in hexadecimal digits.
func filterText(filter []unix.SockFilter) string {
	var b strings.Builder
	for _, f := range filter {
		fmt.Fprintf(&b, "%04x%02x%02x%08x", f.Code, f.Jt, f.Jf, f.K)
	}
	return b.String()
}

// send sends the reply.
func (r *slurmReply) send(to *os.File) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	var files []*os.File
	for _, n := range r.namespaces {
		files = append(files, n.File)
	}
	return sendReply(to, b, files)
}

// sendReply sends bytes, and files with the first of them.
func sendReply(to *os.File, b []byte, files []*os.File) error {
	timeout := unix.NsecToTimeval(replyTimeout.Nanoseconds())
	fd := int(to.Fd())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return fmt.Errorf("answer a task: %w", err)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	for len(b) > 0 {
		n, err := unix.SendmsgN(fd, b, rights, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("answer a task: %w", err)
		}
		b, rights = b[n:], nil
	}
	return nil
}
