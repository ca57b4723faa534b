package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
)

func testAccount(site *siteAccounting) *stepAccount {
	a := &stepAccount{
		Job: 12, Step: 3, Node: "n1", UID: 1000, Tasks: 8, Image: "/images/a\nb.sqsh", Digest: "sha256:ab", Bytes: 1 << 20, MountMS: 1.5,
		Service: "node", site: site, begin: time.Now(),
	}
	a.before = figures{fusefs.Stats{Wanted: 10, Missed: 10}, 100}
	a.count(&figures{fusefs.Stats{Wanted: 30, Missed: 15}, 1124})
	return a
}

// A line in the file and one to syslog tell the same, each in one piece, however an image is called.
func TestAccount(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "steps"), filepath.Join(dir, "log")
	if err := os.WriteFile(file, []byte("before\n"), 0o622); err != nil {
		t.Fatal(err)
	}
	log, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	was := syslogSocket
	syslogSocket = socket
	defer func() { syslogSocket = was }()

	a := testAccount(&siteAccounting{Syslog: true, File: file})
	a.write(true)
	a.write(true) // once is enough
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, line, ok := bytes.Cut(text, []byte("\n"))
	if !ok || string(first) != "before" || bytes.Count(line, []byte("\n")) != 1 {
		t.Fatalf("the file holds %q", text)
	}
	var got struct {
		Job, Step, Tasks, Bytes, Read, Blocks int64
		Node, Image, Digest, Service          string
		HitRate                               float64 `json:"hit_rate"`
	}
	if err = json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	if got.Job != 12 || got.Step != 3 || got.Node != "n1" || got.Image != a.Image || got.Digest != "sha256:ab" ||
		got.Read != 1024 || got.Blocks != 20 || got.HitRate != 0.75 || got.Service != "node" {
		t.Errorf("%+v", got)
	}
	b := make([]byte, 4096)
	if err = log.SetReadDeadline(time.Now().Add(testBound)); err != nil {
		t.Fatal(err)
	}
	n, err := log.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "<30>squire[") || !bytes.HasSuffix(b[:n], bytes.TrimSpace(line)) {
		t.Errorf("syslog got %q, %v", b[:n], err)
	}
	if words := a.words(); !strings.HasPrefix(words, commentPrefix+"step 3: image ") || strings.Contains(words, "\n") ||
		!strings.Contains(words, "75.0 %") {
		t.Errorf("comment %q", words)
	}
}

// A line goes only to a plain file that root has made: not through a link, not into a pipe that nobody reads.
func TestAccountFile(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine")
	if err := os.WriteFile(mine, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(string) error{
		"link":    func(name string) error { return os.Symlink(mine, name) },
		"pipe":    func(name string) error { return unix.Mkfifo(name, 0o666) },
		"missing": func(string) error { return nil },
		"theirs": func(name string) error {
			if err := os.WriteFile(name, nil, 0o666); err != nil {
				return err
			}
			return os.Chown(name, 12345, 0)
		},
	} {
		name = filepath.Join(dir, name)
		if err := make(name); err != nil {
			t.Fatal(err)
		}
		if err := appendLine(name, []byte("x\n")); err == nil {
			t.Errorf("%s: written to", name)
		}
	}
	if text, err := os.ReadFile(mine); err != nil || len(text) > 0 {
		t.Errorf("%q, %v", text, err)
	}
}

func TestIsOurComment(t *testing.T) {
	for _, tt := range []struct {
		job  string
		want bool
	}{
		{"JobId=1 JobName=x WorkDir=/x StdErr=/y\n", true},
		{"JobId=1 WorkDir=/x Comment= Power= \n", true},
		{"JobId=1 WorkDir=/x Comment=\n", true},
		{"JobId=1 WorkDir=/x Comment=squire: step 0: image /i Power=", true},
		{"JobId=1 WorkDir=/x Comment=two words Power=", false},
		{"JobId=1 WorkDir=/x Comment=squire", false},
		{"JobId=1 WorkDir=/x AdminComment=squire: x Comment=mine", false},
	} {
		if got := isOurComment(tt.job); got != tt.want {
			t.Errorf("%q: %v", tt.job, got)
		}
	}
}
