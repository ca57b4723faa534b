package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// openEngine gets an image out of a container engine. Engines write an archive in which the
// layers come in any order, so it has to be kept for the time of the import: in a file without
// a name, in the directory of the cache or else in the one for temporary files.
func openEngine(ctx context.Context, src Source, o *Options) (store, error) {
	e, err := findEngine(ctx, src)
	if err != nil {
		return nil, err
	}
	defer e.close()
	dir := o.CacheDir
	if dir == "" || os.MkdirAll(dir, 0o700) != nil {
		dir = os.TempDir()
	}
	var st unix.Statfs_t
	if err = unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("oci: %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < e.size+e.size/16+16<<20 {
		return nil, fmt.Errorf("oci: the image has to be written to %s for the time of the import: it has %d MiB, and %d MiB are free: set TMPDIR or the directory of the cache to one with more", dir, e.size>>20, free>>20)
	}
	o.say("%d MiB are written to %s for the time of the import: %s gives layers in any order", e.size>>20, dir, e.name)
	f, err := tempFile(dir)
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	if err := e.save(ctx, f); err != nil {
		f.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("oci: %s: %w", e.name, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("oci: %w", err)
	}
	return newArchive(Source{Kind: kindDockerArchive, Path: src.Name}, f)
}

// tempFile returns a file that is gone when it is closed, however the process ends.
func tempFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "(image)")), nil
	}
	f, err := os.CreateTemp(dir, ".squire-image-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// engine is a container engine that has the image.
type engine struct {
	name  string
	size  int64 // of the image, in bytes
	save  func(ctx context.Context, to io.Writer) error
	close func()
}

// findEngine asks the engine's socket, and if there is none its command.
func findEngine(ctx context.Context, src Source) (*engine, error) {
	command := map[string]string{kindDockerd: "docker", kindPodman: "podman"}[src.Kind]
	var tried []string
	for _, path := range engineSockets(src.Kind) {
		e, err := askSocket(ctx, command, path, src.Name)
		var answer *answerError
		switch {
		case err == nil:
			return e, nil
		case errors.As(err, &answer) || ctx.Err() != nil:
			return nil, err
		}
		tried = append(tried, err.Error())
	}
	path, err := exec.LookPath(command)
	if err != nil {
		return nil, fmt.Errorf("oci: %s cannot be reached: %s; and there is no command %s", command, strings.Join(tried, "; "), command)
	}
	return askCommand(ctx, command, path, src.Name)
}

// engineSockets returns where an engine listens: what the environment says, or the places that
// its documentation names.
func engineSockets(kind string) []string {
	variable, rest := "DOCKER_HOST", []string{"/var/run/docker.sock"}
	user := "docker.sock"
	if kind == kindPodman {
		variable, rest, user = "CONTAINER_HOST", []string{"/run/podman/podman.sock"}, "podman/podman.sock"
	}
	if host := os.Getenv(variable); host != "" {
		if path, ok := strings.CutPrefix(host, "unix://"); ok {
			return []string{path}
		}
		return nil // over a network: the command knows how
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		rest = append([]string{filepath.Join(dir, user)}, rest...)
	}
	return rest
}

// askSocket speaks the Engine API of Docker, which Podman has as well.
func askSocket(ctx context.Context, engineName, path, image string) (*engine, error) {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("the engine redirects")
	}}
	get := func(ctx context.Context, what string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/images/"+image+"/"+what, nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, cleanError(err))
		}
		if resp.StatusCode == http.StatusOK {
			return resp, nil
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		resp.Body.Close()
		return nil, &answerError{resp.StatusCode, fmt.Sprintf("oci: %s answered %s: %s", engineName, resp.Status, printable(string(body), 300))}
	}
	short, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := get(short, "json")
	if err != nil {
		t.CloseIdleConnections()
		return nil, err
	}
	body, err := readSmall(resp.Body, maxConfig)
	resp.Body.Close()
	var inspect struct{ Size int64 }
	if err == nil {
		err = json.Unmarshal(body, &inspect)
	}
	if err != nil {
		t.CloseIdleConnections()
		return nil, fmt.Errorf("oci: %s: %w", engineName, err)
	}
	return &engine{
		name: engineName,
		size: max(0, inspect.Size),
		save: func(ctx context.Context, to io.Writer) error {
			resp, err := get(ctx, "get")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(to, resp.Body)
			return err
		},
		close: t.CloseIdleConnections,
	}, nil
}

// askCommand uses the engine's command line.
func askCommand(ctx context.Context, engineName, path, image string) (*engine, error) {
	run := func(ctx context.Context, to io.Writer, args ...string) error {
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.WaitDelay = 5 * time.Second
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = to, &limitedWriter{&said, 4096}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", engineName, args[0], err, printable(strings.TrimSpace(said.String()), 300))
		}
		return nil
	}
	var out strings.Builder
	if err := run(ctx, &limitedWriter{&out, 4096}, "image", "inspect", "--format", "{{.Size}}", image); err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	size, err := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
	if err != nil || size < 0 {
		return nil, fmt.Errorf("oci: %s does not say how large the image is", engineName)
	}
	return &engine{
		name: engineName, size: size, close: func() {},
		save: func(ctx context.Context, to io.Writer) error { return run(ctx, to, "save", image) },
	}, nil
}

// limitedWriter keeps the beginning.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
