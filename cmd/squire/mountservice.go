package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/rights"
)

// wantsOwnServer reports whether an option is about the server, or is one that a
// service grants to root alone. Root of a user namespace is not root for it.
func (o *mountOptions) wantsOwnServer(mo fusefs.MountOptions, cfg serverConfig) bool {
	if os.Geteuid() == 0 {
		return o.foreground || cfg.Cache != 0 || !rights.AllIDsMapped()
	}
	return o.foreground || cfg.Cache != 0 || mo.AllowOther || cfg.Owner != nil
}

// fromService mounts with the service of the node, and reports whether it did: where
// there is none, or it is at its limits, that is no error.
func (o *mountOptions) fromService(dir string, mo fusefs.MountOptions, cfg serverConfig, traced bool) (bool, error) {
	mode := o.service
	if mode == "" {
		var err error
		if mode, err = servicesWanted(); err != nil {
			return false, err
		}
	}
	if o.wantsOwnServer(mo, cfg) {
		return false, nil
	}
	client, err := dialNode(mode)
	if err != nil {
		return false, nil
	}
	defer client.Close()
	file, err := openMountable(cfg.Image, dir)
	if err != nil {
		return false, err
	}
	defer file.Close()
	traces := tracesInTime(cfg.Image, file.File, cfg.Offset, traced)
	defer closeAll(traces.files)
	return o.mountServed(client, dir, mo, noded.Request{
		Image: cfg.Image, Offset: cfg.Offset, View: noded.View{Restrict: cfg.Restrict, Owner: cfg.Owner},
		Traces: len(traces.files), Record: traces.record, Fallback: true,
	}, file, traces.files)
}

// openMountable opens an image that is to be mounted on dir.
func openMountable(image, dir string) (*openedImage, error) {
	site, err := siteConfig()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 { // root can mount by other means, and lists images in fstab(5)
		anything := *site
		anything.Images = siteImages{}
		site = &anything
	}
	file, err := site.openImage(image)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err == nil {
		if there, _ := isMounted(abs); there {
			err = fmt.Errorf("%s: an image is mounted there already; unmount it first", dir)
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// mountServed has the service mount on dir for an ordinary user, who may not; root
// does it with a mount that it is given. It reports whether the service served the
// image, which is then there to stay. An error is to be told.
func (o *mountOptions) mountServed(c *noded.Client, dir string, mo fusefs.MountOptions, r noded.Request, image *openedImage, traces []*os.File) (bool, error) {
	if err := fusefs.CheckDir(dir); err != nil {
		return false, err
	}
	at, err := openPath(dir)
	if err != nil {
		return false, err
	}
	defer at.Close()
	user := os.Geteuid() != 0
	if r.Attrs = mo.Attributes(); user {
		r.View.Private, r.NoGrant, r.Attrs = true, true, r.Attrs&unix.MOUNT_ATTR_NOEXEC
	}
	m, err := image.mount(c, r, traces)
	switch {
	case isFinal(err):
		return false, imageError(r.Image, err)
	case err != nil:
		return false, nil
	case !user:
		err = fusefs.Attach(m.Mount, dir)
		m.Mount.Close()
		return true, err
	}
	// It may have been done even if no answer came.
	err = c.Attach(m.ID, at, r.Attrs)
	var refused *noded.ServiceError
	if errors.As(err, &refused) && refused.Fallback() {
		o.refused = refused
		return false, nil
	}
	if err != nil {
		err = fmt.Errorf("mount on %s: %w", dir, err)
	}
	return true, err
}

// openPath opens a directory as a place, without any right to it.
func openPath(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// unmountServed has the service unmount what it put on dir, and reports whether it
// did: it may be a mount of somebody else's, which is no error.
func unmountServed(dir string, lazy bool) (bool, error) {
	client, err := dialNode(serviceNode)
	if err != nil {
		return false, nil
	}
	defer client.Close()
	parent, err := openPath(filepath.Dir(dir))
	if err != nil {
		return false, nil
	}
	defer parent.Close()
	err = client.Detach(parent, filepath.Base(dir), lazy)
	var refused *noded.ServiceError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &refused) && refused.Code == noded.Failed:
		return false, fmt.Errorf("unmount %s: %w", dir, err)
	}
	return false, nil
}
