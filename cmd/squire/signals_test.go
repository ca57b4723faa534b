package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSignals ends extract and inspect with the status of the signal that came.
func TestSignals(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		ctx, stop := untilSignal(t.Context())
		defer stop()
		if err := unix.Kill(unix.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		if got := interrupted(ctx); int(got) != 128+int(sig) {
			t.Errorf("%v: status %d", sig, got)
		}
		for _, args := range [][]string{{"extract", "-d", filepath.Join(t.TempDir(), "out"), storedImage}, {"inspect", storedImage}} {
			var says bytes.Buffer
			cmd := rootCommand()
			cmd.SetArgs(args)
			cmd.SetErr(&says)
			cmd.SetOut(&says)
			if err := cmd.ExecuteContext(ctx); status(err) != 128+int(sig) || !strings.Contains(says.String(), "interrupted") {
				t.Errorf("%v: %v %s", sig, err, says.String())
			}
		}
		stop()
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if got := interrupted(ctx); got != 130 {
		t.Errorf("status %d", got)
	}
}
