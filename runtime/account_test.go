package runtime

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Who is in no file of the host's is who their variables say; the image's files stay as they are.
func TestRunAccount(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if hostAccount(userFile, w.uid) != "" && w.uid != 0 {
			t.Skip("has an account")
		}
		id := strconv.Itoa(w.uid)
		const passwd, group = "root:x:0:0:root:/root:/bin/sh\nd:x:2:2::/:/bin/sh\n", "root:x:0:\n"
		env := []string{"USER=me", "HOME=/home/me", "SHELL=/bin/zsh"}
		tests := []struct {
			name          string
			passwd, group string
			spec          Spec
			wantP, wantG  string // of an ordinary user; root is in every image
		}{
			{
				name: "unknown", passwd: passwd, group: group, spec: Spec{Environ: env},
				wantP: "me:x:" + id + ":" + id + "::/home/me:/bin/sh\n" + passwd, wantG: "me:x:" + id + ":\n" + group,
			},
			{
				name: "writable", passwd: passwd, group: group, spec: Spec{Environ: append(env[:2:2], "SHELL=/bin/cat"), Writable: true},
				wantP: "me:x:" + id + ":" + id + "::/home/me:/bin/cat\n" + passwd, wantG: "me:x:" + id + ":\n" + group,
			},
			{
				name: "by another name", passwd: passwd + "you:x:" + id + ":1::/:/bin/sh\n", group: group + "ours:x:" + id + ":\n", spec: Spec{Environ: env},
				wantP: "me:x:" + id + ":" + id + "::/home/me:/bin/sh\n" + passwd + "you:x:" + id + ":1::/:/bin/sh\n", wantG: group + "ours:x:" + id + ":\n",
			},
			{name: "known", passwd: "me:x:" + id + ":1:a:/b:/c\n", group: group, spec: Spec{Environ: env}, wantP: "me:x:" + id + ":1:a:/b:/c\n", wantG: "me:x:" + id + ":\n" + group},
			{name: "root's variables", passwd: passwd, group: group, spec: Spec{Environ: []string{"USER=root", "HOME=/root"}}, wantP: passwd, wantG: group},
			{name: "nonsense", passwd: passwd, group: group, spec: Spec{Environ: []string{"USER=a:b\nc", "LOGNAME="}}, wantP: passwd, wantG: group},
			{name: "looks like root", passwd: passwd, group: group, spec: Spec{Environ: env, RemapRoot: true}, wantP: passwd, wantG: group},
			{name: "mounted", passwd: passwd, group: group, spec: Spec{Environ: env, Mounts: []Mount{{Source: "/etc/hostname", Target: "/etc/passwd"}}}, wantP: "", wantG: "me:x:" + id + ":\n" + group},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				p, g := filepath.Join(root, "etc/passwd"), filepath.Join(root, "etc/group")
				for file, text := range map[string]string{p: tt.passwd, g: tt.group} {
					if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if w.uid == 0 {
					tt.wantP, tt.wantG = tt.passwd, tt.group
				}
				tt.spec.Dir = root
				if len(tt.spec.Mounts) > 0 {
					host, err := os.ReadFile("/etc/hostname")
					if err != nil {
						t.Skip(err)
					}
					tt.wantP = string(host)
				}
				if got, want := sh(t, w, tt.spec, "cat /etc/passwd; echo; cat /etc/group"), strings.Trim(tt.wantP+"\n"+tt.wantG, "\n"); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				for file, text := range map[string]string{p: tt.passwd, g: tt.group} {
					if got, err := os.ReadFile(file); err != nil || string(got) != text {
						t.Errorf("%s is %q, %v", file, got, err)
					}
				}
			})
		}
	})
}

// What is no plain file is left alone, and the container starts.
func TestRunAccountHostile(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		p := filepath.Join(root, "etc/passwd")
		for name, mk := range map[string]func() error{
			"missing":   func() error { return nil },
			"pipe":      func() error { return unix.Mkfifo(p, 0o644) },
			"directory": func() error { return os.Mkdir(p, 0o755) },
			"device":    func() error { return os.Symlink("/dev/zero", p) },
			"loop":      func() error { return os.Symlink("passwd", p) },
			"outside":   func() error { return os.Symlink("../../../../../../etc/hostname", p) },
			"huge":      func() error { return os.WriteFile(p, make([]byte, accountsLimit+1), 0o644) },
			"no lines":  func() error { return os.WriteFile(p, []byte(":::::\n\x00\xff:x:-1:9999999999999999999999:"), 0o644) },
		} {
			t.Run(name, func(t *testing.T) {
				if err := mk(); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(p)
				if got := sh(t, w, Spec{Dir: root, Environ: []string{"USER=me"}}, "echo runs"); got != "runs" {
					t.Errorf("%q", got)
				}
			})
		}
	})
}

func TestAccountOf(t *testing.T) {
	long := strings.Repeat(" ", 1<<16) + "x:x:5:1:::\n"
	text := "# comment\na:x:1:1:::\nshort:x:2\n" + long + "b:x:3:1:B:/b:/bin/b\nc:x:3:1:C:/c:/bin/c\nlast:x:4:"
	for id, want := range map[int]string{0: "", 1: "a:x:1:1:::", 2: "", 3: "b:x:3:1:B:/b:/bin/b", 4: "last:x:4:", 5: ""} {
		if got := accountOf(strings.NewReader(text), id); got != want {
			t.Errorf("%d: %q, want %q", id, got, want)
		}
	}
}
