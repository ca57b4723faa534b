package runtime

import (
	"reflect"
	"strings"
	"testing"
)

func testMountParser() *MountParser {
	env := map[string]string{"HOME": "/home/u", "DATA": "/lustre/a:b,c", "REL": "./here", "WORD": "word", "EMPTY": ""}
	return &MountParser{Dir: "/cwd", Getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
}

func TestParseMounts(t *testing.T) {
	tests := []struct {
		arg  string
		want []Mount
		err  string
	}{
		{arg: "/a", want: []Mount{{Source: "/a", Target: "/a"}}},
		{arg: "/a:/b", want: []Mount{{Source: "/a", Target: "/b"}}},
		{arg: "/a:/b:", want: []Mount{{Source: "/a", Target: "/b"}}},
		{arg: "/a:/b:ro", want: []Mount{{Source: "/a", Target: "/b", Flags: []string{"ro"}}}},
		{arg: "/a:/b:ro+private,/c", want: []Mount{{Source: "/a", Target: "/b", Flags: []string{"ro", "private"}}, {Source: "/c", Target: "/c"}}},
		{arg: "./x:/x", want: []Mount{{Source: "/cwd/x", Target: "/x"}}},
		{arg: "./x", want: []Mount{{Source: "/cwd/x", Target: "/x"}}},
		{arg: "../x:./y", want: []Mount{{Source: "/x", Target: "/y"}}},
		{arg: "/a:/b/../../c", want: []Mount{{Source: "/a", Target: "/c"}}},
		{arg: "~", want: []Mount{{Source: "/home/u", Target: "/home/u"}}},
		{arg: "~/x:/root", want: []Mount{{Source: "/home/u/x", Target: "/root"}}},
		{arg: "/x:~/x", want: []Mount{{Source: "/x", Target: "/home/u/x"}}},
		{arg: "/~/x", want: []Mount{{Source: "/~/x", Target: "/~/x"}}},
		{arg: "$HOME/x", want: []Mount{{Source: "/home/u/x", Target: "/home/u/x"}}},
		{arg: "${HOME}x:/$WORD.$WORD:ro", want: []Mount{{Source: "/home/ux", Target: "/word.word", Flags: []string{"ro"}}}},
		{arg: "$DATA:/data", want: []Mount{{Source: "/lustre/a:b,c", Target: "/data"}}},
		{arg: "$REL", want: []Mount{{Source: "/cwd/here", Target: "/here"}}},
		{arg: `/a\$HOME:/b$:ro`, want: []Mount{{Source: "/a$HOME", Target: "/b$", Flags: []string{"ro"}}}},
		{arg: "/a/$1", want: []Mount{{Source: "/a/$1", Target: "/a/$1"}}},
		{arg: "/a:/b:x-create=file+noatime+rslave", want: []Mount{{Source: "/a", Target: "/b", Flags: []string{"x-create=file", "noatime", "rslave"}}}},
		{arg: "tmpfs:/scratch", want: []Mount{{Source: "tmpfs", Target: "/scratch"}}},
		{arg: "tmpfs:$HOME/s:size=10%+mode=700+huge=within_size+x-create=dir,/a", want: []Mount{{Source: "tmpfs", Target: "/home/u/s", Flags: []string{"size=10%", "mode=700", "huge=within_size", "x-create=dir"}}, {Source: "/a", Target: "/a"}}},
		{arg: "umount:/tmp", want: []Mount{{Source: "umount", Target: "/tmp"}}},
		{arg: "umount:/tmp:nofail", want: []Mount{{Source: "umount", Target: "/tmp", Flags: []string{"nofail"}}}},

		{arg: "/a:", err: "destination must be"},
		{arg: "a:/b", err: "source must be"},
		{arg: "/a:b", err: "destination must be"},
		{arg: "$WORD:/b", err: "source must be"},
		{arg: "/a:$WORD", err: "destination must be"},
		{arg: "", err: "source must be"},
		{arg: "/a,,/b", err: "source must be"},
		{arg: "/a,ro", err: "flags are joined by +"},
		{arg: "/a:/b:r0", err: `unknown flag "r0"`},
		{arg: "/a:/b:ro+", err: `unknown flag ""`},
		{arg: "/a:/b:size=1", err: `unknown flag "size=1"`},
		{arg: "/a:/b:ro:x", err: `unknown flag "ro:x"`},
		{arg: "/a:/", err: "the root itself"},
		{arg: "/a:/b/..", err: "the root itself"},
		{arg: "/", err: "the root itself"},
		{arg: "/a\x00:/b", err: "source must be"},
		{arg: "tmpfs", err: "destination must be"},
		{arg: "tmpfs:/a:rbind", err: `unknown flag "rbind"`},
		{arg: "tmpfs:/a:size=", err: `unknown flag "size="`},
		{arg: "umount:/", err: "the root itself"},
		{arg: "umount:/a:ro", err: `unknown flag "ro"`},
		{arg: "$NOSUCH/x:/x", err: "the variable NOSUCH is not set"},
		{arg: "/a/${EMPTY}:/x", err: "the variable EMPTY is not set or empty"},
		{arg: "${HOME:/x", err: "want ${NAME}"},
		{arg: "${}:/x", err: "want ${NAME}"},
		{arg: "${HOME-x}:/x", err: "want ${NAME}"},
		{arg: "~other/x", err: "source must be"},
	}
	for _, tt := range tests {
		t.Run(tt.arg, func(t *testing.T) {
			got, err := testMountParser().Parse(tt.arg)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestParseFstab(t *testing.T) {
	text := `# of the site
/lustre
	/lustre  /data
/lustre ro,nosuid
/a /b none x-create=dir,rbind,ro 0 -1
/a /b bind
/a /b none bind
tmpfs /scratch
tmpfs /scratch tmpfs size=10G,mode=1777 0 0
/with\040blank\134 /b\011c none rw

none /tmp none x-detach,nofail
${HOME}/.config $HOME/c nofail
$NOSUCH /x none nofail
`
	want := []FstabMount{
		{Mount{Source: "/lustre", Target: "/lustre"}, 2},
		{Mount{Source: "/lustre", Target: "/data"}, 3},
		{Mount{Source: "/lustre", Target: "/lustre", Flags: []string{"ro", "nosuid"}}, 4},
		{Mount{Source: "/a", Target: "/b", Flags: []string{"x-create=dir", "rbind", "ro"}}, 5},
		{Mount{Source: "/a", Target: "/b", Flags: []string{"bind"}}, 6},
		{Mount{Source: "/a", Target: "/b", Flags: []string{"bind"}}, 7},
		{Mount{Source: "tmpfs", Target: "/scratch"}, 8},
		{Mount{Source: "tmpfs", Target: "/scratch", Flags: []string{"size=10G", "mode=1777"}}, 9},
		{Mount{Source: "/with blank\\", Target: "/b\tc", Flags: []string{"rw"}}, 10},
		{Mount{Source: "umount", Target: "/tmp", Flags: []string{"nofail"}}, 12},
		{Mount{Source: "/home/u/.config", Target: "/home/u/c", Flags: []string{"nofail"}}, 13},
	}
	got, err := testMountParser().ParseFstab(text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\ngot  %v\nwant %v", err, got, want)
	}
	for text, message := range map[string]string{
		"\n/a /b ext4 ro\n":        "line 2: ",
		"/a /b none r0":            `line 1: unknown flag "r0"`,
		"/a /b none ro 0 0 0":      "too many fields",
		"/a /b none x-move":        `unknown flag "x-move"`,
		"sysfs /sys sysfs ro":      "want SRC DST TYPE OPTIONS",
		"$NOSUCH /b none ro":       "the variable NOSUCH is not set",
		"/a /":                     "the root itself",
		"/a\\000 /b":               "source must be",
		"proc /proc proc defaults": "want SRC DST TYPE OPTIONS",
	} {
		if got, err := testMountParser().ParseFstab(text); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%q: %v, %v; want an error with %q", text, got, err, message)
		}
	}
}

// Whatever is written, what comes out can be planned, and lies inside.
func FuzzMounts(f *testing.F) {
	for _, s := range []string{"/a:/b:ro+x-create=file,tmpfs:/x:size=1", "umount:~/$HOME", "/a /b none bind 0 -1\ntmpfs /x", `\134\044 ${HOME}`, "${", "$", "~"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := testMountParser()
		ms, _ := p.Parse(s)
		lines, _ := p.ParseFstab(s)
		for _, l := range lines {
			ms = append(ms, l.Mount)
		}
		for _, m := range ms {
			inside := strings.HasPrefix(m.Target, "/") && m.Target != "/" && !strings.Contains(m.Target+"/", "/../")
			if !inside || m.Host() && !strings.HasPrefix(m.Source, "/") || strings.ContainsRune(m.Source+m.Target, 0) {
				t.Errorf("%q: %+v", s, m)
			}
		}
		if _, err := Plan(&Spec{Mounts: ms}, &Host{}); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	})
}
