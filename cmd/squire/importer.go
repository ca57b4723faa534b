package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// importer is a site's program that has images, as of pyxis: "PROGRAM get URI" prints the path of a squashfs file, what it
// says on standard error is for the user, and "PROGRAM release" is its end. It runs as the user.
type importer struct {
	program string   // absolute
	env     []string // beside that of this process
}

// get has the program get an image, which errors call name.
func (p *importer) get(ctx context.Context, source, name string, progress *os.File) (*importedImage, error) {
	cmd := p.command(ctx, "get", source)
	cmd.Stderr = progress
	out, err := cmd.Output()
	path := strings.TrimSpace(string(out))
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && path == "":
		err = errors.New("has printed no path")
	case err == nil && !filepath.IsAbs(path):
		err = fmt.Errorf("has printed %.200s: want an absolute path", printable(path))
	}
	i := &importedImage{Path: path, Source: source, importer: p}
	if err != nil {
		i.release()
		return nil, importFailed(name, fmt.Errorf("%s: %w", p.program, err))
	}
	return i, nil
}

func (p *importer) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.WaitDelay = time.Second
	return cmd
}

// maxRelease bounds how long a step's end waits for the program.
const maxRelease = 20 * time.Second

// release tells the program that the image is not needed any more. It may be called for every image, once.
func (i *importedImage) release() {
	if i.importer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxRelease)
	defer cancel()
	_ = i.importer.command(ctx, "release").Run() // there is nobody to tell
}
