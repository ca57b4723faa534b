package main_test

import (
	"bufio"
	"context"
	"strconv"
	"strings"
	"testing"
)

// packageScript makes a Debian package whose files belong to several users, and which sets owners and modes when
// it is installed, and installs it.
const packageScript = `
set -e
mkdir /srv/build && cd /srv/build
python3 - <<'END'
import io, tarfile
def tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, mode, uid, text in files:
            i = tarfile.TarInfo(name)
            i.mode, i.uid, i.gid, i.size = mode, uid, uid + 9, len(text)
            t.addfile(i, io.BytesIO(text))
    return out.getvalue()
control = b"Package: squire-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
postinst = b"#!/bin/sh\nset -e\nadduser --system --group --no-create-home squiretest\nchown squiretest:shadow /srv/own\nchmod 4711 /srv/own\n"
members = [("debian-binary", b"2.0\n"),
    ("control.tar", tar([("./control", 0o644, 0, control), ("./postinst", 0o755, 0, postinst)])),
    ("data.tar", tar([("./srv/own", 0o755, 33, b"own\n"), ("./srv/secret", 0o600, 1234, b"x")]))]
with open("t.deb", "wb") as f:
    f.write(b"!<arch>\n")
    for name, data in members:
        f.write(b"%-16s%-12d%-6d%-6d%-8s%-10d\x60\n" % (name.encode(), 0, 0, 0, b"100644", len(data)) + data + b"\n" * (len(data) % 2))
END
apt-get install -y --no-install-recommends ./t.deb >log 2>&1 || { cat log; exit 1; }
grep -i -E 'warn|sandbox' log || true
cat /srv/own
stat -c '%a %u:%g' /srv/own
dpkg-query -W -f '${Status}\n' squire-test
`

// testPackages installs a package as who, who looks like root inside.
func testPackages(t *testing.T, l *lab, who user) {
	r := l.run(t, who, l.squire, "run", "--writable", "--remap-root", "--unshare", "net", "--set-env", "DEBIAN_FRONTEND=noninteractive", l.images["zstd"], "--", "sh", "-c", packageScript)
	const end = "\ninstall ok installed\n"
	if r.status != 0 || !strings.HasSuffix(r.stdout, end) || who.cred != nil && r.stdout != "own\n4711 0:0"+end {
		t.Errorf("%+v", r)
	}
	l.wantNothingLeft(t)
}

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
