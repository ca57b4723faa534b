package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
)

// stepAccount is what a step of a job used on a node: one line for administrators, where squire.toml has [accounting].
// The user's own process writes it, so that they could write something else. A nil one does nothing.
type stepAccount struct {
	Job      int64
	ArrayJob int64
	Step     int64
	Node     string
	UID      int
	Tasks    int     // on the node
	Seconds  float64 // that there was a container

	Image   string
	Digest  string  // of the container image that it was made from, "" if that is not known
	Bytes   int64   // of the image
	MountMS float64 // until it was served
	Service string  // node, own, or server: one for this step; directory: none is needed

	// What was read of the image while the step ran, by whoever uses the same mount: steps of one node share it.
	Read    uint64  // bytes from storage
	Wanted  uint64  // blocks that programs asked for
	HitRate float64 // the share of these that was decoded already; not if none was asked for

	site    *siteAccounting
	begin   time.Time
	image   *containerImage
	mount   uint64 // its number at the service
	before  figures
	counted bool // Read and Wanted are known
	written sync.Once
}

// newStepAccount begins the account of a step with this image. Nil without an error: the site wants none.
func newStepAccount(order *slurmOrder, image string) (*stepAccount, error) {
	site, err := siteConfig()
	if err != nil || !site.Accounting.wanted() {
		return nil, err
	}
	a := &stepAccount{
		Job: order.Job, ArrayJob: order.ArrayJob, Step: order.Step, UID: order.UID, Tasks: order.Tasks,
		Image: image, Service: "directory", site: &site.Accounting, begin: time.Now(),
	}
	if abs, err := filepath.Abs(image); err == nil {
		a.Image = abs
	}
	return a, nil
}

// served notes that the image is served, by a service under this number, or by a server of its own.
func (a *stepAccount) served(i *containerImage, mount uint64) {
	if a == nil {
		return
	}
	a.MountMS = float64(time.Since(a.begin).Microseconds()) / 1000
	a.image, a.mount, a.Service = i, mount, "server"
	a.Bytes, _ = fileSize(i.file.File)
	if i.client != nil {
		a.Service = "node"
		a.before, _ = a.figures()
	}
}

// figures asks the service what it counted for the image.
func (a *stepAccount) figures() (f figures, err error) {
	report, err := a.image.client.Report()
	if err != nil {
		return f, err
	}
	if report.Own {
		a.Service = "own"
	}
	for i := range report.Images {
		if img := &report.Images[i]; img.ID == a.mount {
			return figuresOf(img), nil
		}
	}
	return f, errors.New("the service does not have the image any more")
}

// holds notes what the image said of itself.
func (a *stepAccount) holds(held *runtime.Held) {
	if a != nil {
		a.Digest = held.Digest
	}
}

// write ends the account, and writes it, once. The service must still be connected. The first node of a step writes for
// all where one is enough.
func (a *stepAccount) write(first bool) {
	if a == nil {
		return
	}
	a.written.Do(func() {
		a.Seconds = time.Since(a.begin).Seconds()
		if a.image != nil && a.image.client != nil {
			if now, err := a.figures(); err == nil {
				a.count(&now)
			}
		}
		if err := a.tell(first); err != nil {
			slog.Warn("accounting", "error", err)
		}
	})
}

// count computes what was counted since the image was served for the step.
func (a *stepAccount) count(now *figures) {
	r := ratesBetween(a.before, *now, time.Since(a.begin))
	a.counted, a.Read, a.Wanted = true, r.Storage, r.Wanted
	if a.Wanted > 0 {
		a.HitRate = r.hitRate()
	}
}

// tell writes the account wherever the site wants it.
func (a *stepAccount) tell(first bool) error {
	var line bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&line, nil))
	log.LogAttrs(context.Background(), slog.LevelInfo, "step", a.attrs()...)
	var errs []error
	if a.site.File != "" {
		errs = append(errs, appendLine(a.site.File, line.Bytes()))
	}
	if a.site.Syslog {
		errs = append(errs, writeSyslog(syslogSocket, line.Bytes()))
	}
	if a.site.Scontrol != "" && first {
		errs = append(errs, a.comment())
	}
	return errors.Join(errs...)
}

// attrs are the fields of the account.
func (a *stepAccount) attrs() []slog.Attr {
	attrs := []slog.Attr{
		slog.Int64("job", a.Job), slog.Int64("step", a.Step), slog.String("node", a.Node), slog.Int("uid", a.UID),
		slog.Int("tasks", a.Tasks), slog.Float64("seconds", a.Seconds), slog.String("image", a.Image),
		slog.Int64("bytes", a.Bytes), slog.Float64("mount_ms", a.MountMS), slog.String("service", a.Service),
	}
	if a.ArrayJob != 0 && a.ArrayJob != a.Job {
		attrs = append(attrs, slog.Int64("array_job", a.ArrayJob))
	}
	if a.Digest != "" {
		attrs = append(attrs, slog.String("digest", a.Digest))
	}
	if a.counted {
		attrs = append(attrs, slog.Uint64("read", a.Read), slog.Uint64("blocks", a.Wanted))
	}
	if a.Wanted > 0 {
		attrs = append(attrs, slog.Float64("hit_rate", a.HitRate))
	}
	return attrs
}

// appendLine adds a line to a file that root has made for it, and that users may write to. One write(2) to a file that
// is open for appending does not mix with others.
func appendLine(name string, line []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return unwrapPath(name, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != 0 {
		return fmt.Errorf("%s: not a plain file of root's", name)
	}
	if _, err = f.Write(line); err != nil {
		return unwrapPath(name, err)
	}
	return nil
}

// syslogSocket is where syslog listens (syslog(3), systemd-journald.service(8)). Only tests change it.
var syslogSocket = "/dev/log"

// syslogTimeout bounds the wait for a log that is full.
const syslogTimeout = time.Second

// writeSyslog sends one line, as facility daemon and priority info (RFC 3164, 4.1.1).
func writeSyslog(socket string, line []byte) error {
	conn, err := net.DialTimeout("unixgram", socket, syslogTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = conn.SetDeadline(time.Now().Add(syslogTimeout)); err != nil {
		return err
	}
	const daemonInfo = 3<<3 | 6
	_, err = fmt.Fprintf(conn, "<%d>squire[%d]: %s", daemonInfo, os.Getpid(), bytes.TrimSpace(line))
	return err
}

// scontrolTimeout bounds what the end of a step waits for slurmctld.
const scontrolTimeout = 5 * time.Second

// comment is for the first node of a step. What others have written into the job's comment stays; that of an earlier
// step goes.
func (a *stepAccount) comment() error {
	old, err := a.scontrol("show", "job", "--oneliner", fmt.Sprint(a.Job))
	if err != nil {
		return err
	}
	if !isOurComment(old) {
		return nil
	}
	_, err = a.scontrol("update", fmt.Sprintf("JobId=%d", a.Job), "Comment="+a.words())
	return err
}

// commentPrefix begins a comment of ours.
const commentPrefix = "squire: "

// isOurComment reports whether what "scontrol show job --oneliner" says has no comment, or one of ours.
func isOurComment(job string) bool {
	_, comment, there := strings.Cut(job, " Comment=")
	return !there || comment == "" || strings.ContainsAny(comment[:1], " \n") || strings.HasPrefix(comment, commentPrefix)
}

// words is the account as a comment.
func (a *stepAccount) words() string {
	text := fmt.Sprintf("step %d: image %s", a.Step, a.Image)
	if a.Digest != "" {
		text += " " + a.Digest
	}
	text += fmt.Sprintf(", mounted in %.1f ms by %s", a.MountMS, a.Service)
	if a.counted {
		text += ", read " + sizeString(int64(a.Read))
	}
	if a.Wanted > 0 {
		text += fmt.Sprintf(", %.1f %% of blocks from the cache", 100*a.HitRate)
	}
	return commentPrefix + printable(text)
}

// scontrol runs Slurm's program, as the user, with nothing of their environment but where Slurm's configuration is.
func (a *stepAccount) scontrol(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), scontrolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.site.Scontrol, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	if conf, ok := os.LookupEnv("SLURM_CONF"); ok {
		cmd.Env = append(cmd.Env, "SLURM_CONF="+conf)
	}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &limitedWriter{&out, 1 << 20}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", a.site.Scontrol, args[0], err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}
