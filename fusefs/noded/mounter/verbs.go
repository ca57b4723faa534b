package mounter

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
)

// do does what a request asks, which has the files that it needs. Those that are to go back are put into back.
func (m *mounter) do(r *request, files []*os.File, out *reply, back *[]*os.File) (err error) {
	switch r.Do {
	case doMount:
		*back, out.Number, err = m.mount(r)
	case doGrant:
		*back, err = m.home.grant(r.ID, files[0], Grantee{r.Owner, r.Root, r.IDMap, r.Attrs})
	case doAttach:
		err = m.patient(func(deadline time.Time) (err error) {
			out.Number, err = m.attach(files[0], files[1], files[2], r.Owner, deadline)
			return err
		})
	case doDetach:
		err = m.patient(func(deadline time.Time) (err error) {
			out.Number, err = m.detach(files[0], files[1], r, deadline)
			return err
		})
	case doAttached:
		out.IDs, out.Numbers, err = m.host.attached(r.IDs, r.Numbers)
	case doClear:
		err = m.patient(func(deadline time.Time) error { return m.host.clear(r.Numbers, deadline) })
	case doDrop:
		m.home.drop(r.ID)
	}
	return err
}

// patience is how long a request may wait for a foreign file system and then still have an effect. It is less than the
// keeper waits.
const patience = callTimeout - time.Second

// patient runs what may wait for a foreign file system for ever, unless too many do so already.
func (m *mounter) patient(do func(deadline time.Time) error) error {
	select {
	case m.waiting <- struct{}{}:
	default:
		return fmt.Errorf("%d directories on file systems that do not answer: %w", maxWaiting, unix.EBUSY)
	}
	defer func() { <-m.waiting }()
	return do(time.Now().Add(patience))
}

// mount makes a superblock. The files are its device and its mount.
func (m *mounter) mount(r *request) (files []*os.File, number uint64, err error) {
	dev, err := m.host.openFUSE()
	if err != nil {
		return nil, 0, err
	}
	o := fusefs.MountOptions{Source: strings.ToValidUTF8(r.Source, "?"), AllowOther: r.Everybody}
	switch {
	case m.home.own: // the only ids that there are here
	case !r.Everybody:
		o.UID, o.GID = int(r.Owner.UID), int(r.Owner.GID)
	}
	mount, err := o.Detached(dev)
	if err != nil {
		dev.Close()
		return nil, 0, fmt.Errorf("mount: %w", err)
	}
	files = []*os.File{dev, mount}
	// Without asking the file system: nobody serves it yet.
	var st unix.Statx_t
	if err = unix.Statx(int(mount.Fd()), "", emptyPath|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		closeFiles(files)
		return nil, 0, fmt.Errorf("number of a new mount: %w", err)
	}
	return files, unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

// emptyPath is for a descriptor that is itself meant, as it is: nothing is mounted on the way.
const emptyPath = unix.AT_EMPTY_PATH | unix.AT_NO_AUTOMOUNT
