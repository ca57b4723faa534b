package main_test

import (
	"bufio"
	"context"
	"strconv"
	"testing"
)

// testExec adds a command to a container.
func testExec(t *testing.T, l *lab, who user) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	cmd := l.command(ctx, who, l.squire, "run", "--unshare", "ipc", "--set-env", "A=run", l.images["zstd"], "--", "sh", "-c", "touch /dev/shm/first; echo started; exec sleep 60")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "started\n" {
		t.Errorf("%q, %v", line, err)
	}
	r := l.run(t, who, l.squire, "exec", "--set-env", "B=exec", "--workdir", "/usr", strconv.Itoa(cmd.Process.Pid), "--", "python3", "-c", "import os; print(os.getcwd(), os.listdir('/dev/shm'), os.environ['A'], os.environ['B'])")
	if r != (result{stdout: "/usr ['first'] run exec\n"}) {
		t.Errorf("%+v", r)
	}
	cancel()
	_ = cmd.Wait()
	l.wantNothingLeft(t)
}
