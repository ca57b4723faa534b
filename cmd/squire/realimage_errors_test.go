package main_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Exit statuses of squire itself.
const (
	statusFailed   = 125
	statusCannot   = 126
	statusNotFound = 127
)

// wantError wants a command of squire to end with status, to say why in exactly one line with all of words in it, and
// to leave nothing behind.
func wantError(t *testing.T, l *lab, r result, status int, words ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("status %d, want %d", r.status, status)
	}
	if r.stdout != "" {
		t.Errorf("stdout %q, want nothing", r.stdout)
	}
	line, rest, _ := strings.Cut(r.stderr, "\n")
	if !strings.HasPrefix(line, "squire: ") || rest != "" {
		t.Errorf("stderr %q, want one line that begins with squire", r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("stderr %q, want it to name %q", line, w)
		}
	}
	l.wantNothingLeft(t)
}

func testBadInput(t *testing.T, l *lab, who user) {
	image, err := os.ReadFile(l.images["zstd"])
	if err != nil {
		t.Fatal(err)
	}
	version3 := bytes.Clone(image[:1<<20])
	binary.LittleEndian.PutUint16(version3[28:], 3) // squashfs_fs.h: struct squashfs_super_block, s_major
	binary.LittleEndian.PutUint16(version3[30:], 1)
	unknown := bytes.Clone(image[:1<<20])
	binary.LittleEndian.PutUint16(unknown[20:], 77) // compression

	text := l.file(t, "text", bytes.Repeat([]byte("this is no image\n"), 1000))
	closed := l.file(t, "closed", image[:4096])
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		image string
		words []string
		skip  bool
		super int // status of inspect, which can show the superblock all the same
	}{
		{name: "not a squashfs", image: text, words: []string{"squashfs"}},
		{name: "empty", image: l.file(t, "empty", nil)},
		{name: "short", image: l.file(t, "short", image[:50])},
		{name: "old version", image: l.file(t, "version3", version3), words: []string{"3.1", "4.0"}},
		{name: "unknown compressor", image: l.file(t, "unknown", unknown), words: []string{"77"}, super: statusFailed},
		{name: "truncated", image: l.file(t, "truncated", image[:len(image)/2]), super: 1},
		{name: "missing", image: filepath.Join(l.dir, "missing"), words: []string{"no such file"}},
		{name: "closed", image: closed, words: []string{"permission denied"}, skip: who.cred == nil},
	}
	for _, tt := range tests {
		words := append(tt.words, filepath.Base(tt.image))
		for verb, argv := range map[string][]string{
			"run":     {"run", tt.image, "--", "true"},
			"mount":   {"mount", tt.image, l.mountPoint(t, who)},
			"inspect": {"inspect", tt.image},
			"ls":      {"ls", tt.image},
			"cat":     {"cat", tt.image, "/etc/passwd"},
		} {
			t.Run(tt.name+"/"+verb, func(t *testing.T) {
				if tt.skip {
					t.Skip("root may read everything")
				}
				r, status := l.run(t, who, append([]string{l.squire}, argv...)...), statusFailed
				if verb == "inspect" && tt.super != 0 {
					if status = tt.super; !strings.Contains(r.stdout, "squashfs 4.0") {
						t.Errorf("stdout %q, want the superblock", r.stdout)
					}
					r.stdout = ""
				}
				wantError(t, l, r, status, words...)
			})
		}
	}

	dir := l.mkdir(t, who)
	for _, tt := range []struct {
		name   string
		argv   []string
		status int
		words  []string
	}{
		{"mount a directory", []string{"mount", l.dir, dir}, statusFailed, []string{l.dir}},
		{"mount on a file", []string{"mount", l.images["zstd"], text}, statusFailed, []string{text}},
		{"mount on nothing", []string{"mount", l.images["zstd"], filepath.Join(l.dir, "none")}, statusFailed, []string{"none"}},
		{"unmount what is not mounted", []string{"umount", dir}, statusFailed, []string{dir}},
		{"no such command", []string{"run", l.images["zstd"], "--", "no-such-command"}, statusNotFound, []string{"no-such-command"}},
		{"no such path", []string{"run", l.images["zstd"], "--", "/no/such"}, statusNotFound, []string{"/no/such"}},
		{"not executable", []string{"run", l.images["zstd"], "--", "/etc/passwd"}, statusCannot, []string{"/etc/passwd"}},
		{"a directory", []string{"run", l.images["zstd"], "--", "/etc"}, statusCannot, []string{"/etc"}},
		{"no such mount source", []string{"run", "--mounts", "/no/such:/mnt", l.images["zstd"], "--", "true"}, statusFailed, []string{"/no/such"}},
		{"no such directory to work in", []string{"run", "--workdir", "/no/such", l.images["zstd"], "--", "true"}, statusFailed, []string{"/no/such"}},
		{"no such flag", []string{"run", "--no-such-flag", l.images["zstd"], "--", "true"}, statusFailed, []string{"no-such-flag"}},
		{"no such file to print", []string{"cat", l.images["zstd"], "/no/such"}, 1, []string{"/no/such"}},
		{"a directory to print", []string{"cat", l.images["zstd"], "/etc"}, 1, []string{"/etc"}},
		{"no such path to list", []string{"ls", l.images["zstd"], "/no/such"}, 1, []string{"/no/such"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantError(t, l, l.run(t, who, append([]string{l.squire}, tt.argv...)...), tt.status, tt.words...)
		})
	}
}

// testBadHost runs squire as an ordinary user where the host lacks what it needs.
func testBadHost(t *testing.T, l *lab) {
	who := users[1]
	command := strings.Join([]string{l.squire, "run", l.images["zstd"], "--", "true"}, " ")
	t.Run("closed /dev/fuse", func(t *testing.T) {
		// In a mount namespace of its own, so that nobody else notices.
		r := l.run(t, user{}, "unshare", "--mount", "--propagation", "private", "sh", "-ec",
			`mount -t tmpfs none /mnt && mknod /mnt/fuse c 10 229 && chmod 0600 /mnt/fuse && mount --bind /mnt/fuse /dev/fuse && umount /mnt
			exec setpriv --reuid 12345 --regid 12345 --clear-groups `+command)
		wantError(t, l, r, statusFailed, "/dev/fuse", "permission denied")
	})
	t.Run("no user namespaces", func(t *testing.T) {
		// The limit is that of a user namespace of the test's own: in it nobody can make another.
		r := l.run(t, who, "unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-ec",
			`echo 0 >/proc/sys/user/max_user_namespaces
			exec setpriv --inh-caps=-all --ambient-caps=-all `+command)
		wantError(t, l, r, statusFailed, "user namespace", "max_user_namespaces")
	})
}

// testSign signs as somebody whom no account exists for, too: ssh-keygen by itself does nothing for them.
func testSign(t *testing.T, l *lab, who user) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("needs ssh-keygen (openssh-client)")
	}
	dir := l.mkdir(t, who)
	defer os.RemoveAll(dir)
	key, image := dir+"/key", dir+"/image.sqsh"
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	err := errors.Join(os.WriteFile(image, []byte("what is signed need be no image"), 0o644), os.Chmod(dir, 0o755))
	if who.cred != nil {
		err = errors.Join(err, os.Chown(key, int(who.cred.Uid), int(who.cred.Gid)))
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := l.run(t, who, l.squire, "sign", "--key", key, image); r.status != 0 || r.stderr != "" {
		t.Errorf("sign: %+v", r)
	}
	if r := l.run(t, who, l.squire, "verify", "--key", key+".pub", image); r.status != 0 {
		t.Errorf("verify: %+v", r)
	}
	// Where no user namespace can be made either, it says what is missing.
	if who.cred == nil {
		return
	}
	script := "echo 0 >/proc/sys/user/max_user_namespaces && exec " + l.squire + " sign --key " + key + " " + image
	if r := l.run(t, who, "unshare", "-U", "--map-user=12345", "--map-group=12345", "--keep-caps", "sh", "-c", script); r.status != 125 || !strings.Contains(r.stderr, "12345, in /etc/passwd") {
		t.Errorf("without user namespaces: %+v", r)
	}
}
