package servicetest

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Kernels without idmapped FUSE mounts: every user has a superblock of their own, and everything else is as with them.
func TestWithoutIDMap(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--no-idmap")
	var held []*holding
	for i := range 4 {
		held = append(held, d.hold(t, users[i%2], l.image))
	}
	if n := len(d.report(t).Images); n != 2 {
		t.Errorf("%d images, want one for each user", n)
	}
	for i := range users {
		d.wantRun(t, users[i], l.image, "hash", "/", "0")
	}
	d.kill(serverName)
	d.kill(mounterName)
	for i := range users {
		d.wantRun(t, users[i], l.image, "cold", "/", "0")
	}
	for _, h := range held {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	}
}

// Kernels without FUSE_NOTIFY_RESEND: a caller whose request the dead server had gets ECONNABORTED, page reads are tried
// again by the kernel, and nobody hangs.
func TestWithoutResend(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--no-resend")
	h := d.hold(t, users[0], l.image)
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for i := range 4 {
		cmd := d.run(t, users[i], l.image, "cold", "/", "2")
		out := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	for range 8 {
		time.Sleep(200 * time.Millisecond)
		d.kill(serverName)
		forgetNames()
	}
	for i, cmd := range cmds {
		out := outs[i]
		within(t, bound, "a reader", func() { _ = cmd.Wait() })
		if cmd.ProcessState != nil && !cmd.ProcessState.Success() && !strings.Contains(out.String(), "connection abort") {
			t.Errorf("reader %d: %v\n%s", i, cmd.ProcessState, out)
		}
	}
	d.wantRun(t, users[1], l.image, "cold", "/", "0")
	if err := h.end(); err != nil {
		t.Error(err)
	}
}
