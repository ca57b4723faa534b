package main

import (
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/oci"
)

// enrootRC is what enroot 3.5 makes of an image.
const enrootRC = `# enroot-provenance: docker://registry-1.docker.io#library/x:1

mkdir -p "/work" 2> /dev/null
cd "/work" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec 'entry' "$@"
else
    exec 'entry' 'it'\''s'
fi
`

func TestImageConfig(t *testing.T) {
	type files map[string]string
	for _, tt := range []struct {
		name  string
		files files
		want  *runtime.Config // nil: an error or nothing
		err   string
	}{
		{name: "nothing"},
		{name: "another's rc", files: files{"/etc/rc": "#!/bin/sh\nexec init\n"}},
		{
			name:  "enroot",
			files: files{"/etc/rc": enrootRC, "/etc/environment": "A=1\n"},
			want:  &runtime.Config{Entrypoint: []string{"entry"}, Cmd: []string{"it's"}, WorkingDir: "/work"},
		},
		{
			name: "record",
			files: files{"/etc/rc": enrootRC, "/" + oci.RecordPath: `{"version": 1, "source": "docker://x", "config":
				{"Env": ["A=two\nlines"], "Cmd": ["c"]}}`},
			want: &runtime.Config{Env: []string{"A=two\nlines"}, Cmd: []string{"c"}},
		},
		{
			name:  "record without variables",
			files: files{"/etc/environment": "A=1", "/" + oci.RecordPath: `{"version": 1, "source": "docker://x", "config": {}}`},
			want:  &runtime.Config{Env: []string{}},
		},
		{name: "no JSON", files: files{"/" + oci.RecordPath: "x"}, err: oci.RecordPath},
		{name: "of the future", files: files{"/" + oci.RecordPath: `{"version": 99}`}, err: "version 99"},
		{name: "unreadable", files: files{"/" + oci.RecordPath: "!"}, err: "operation not permitted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := imageConfig(func(name string) ([]byte, error) {
				text, ok := tt.files[name]
				switch {
				case !ok:
					return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ENOENT}
				case text == "!":
					return nil, unix.EPERM
				}
				return []byte(text), nil
			})
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v, want %#v", got, tt.want)
			}
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want one with %q", err, tt.err)
			}
		})
	}
}

// What inspect shows people of a hostile record is printable and bounded.
func TestPrintRecordHostile(t *testing.T) {
	long := strings.Repeat("\x1b[2J\u202e", 100000)
	rec := &oci.Record{Source: long, Digest: long, Platform: "a\nb", Config: oci.Config{
		Entrypoint: slices.Repeat([]string{long}, 1000), Cmd: []string{"it's", ""}, User: long, WorkingDir: long,
		Labels: map[string]string{}, Volumes: map[string]struct{}{long: {}},
	}}
	for i := range 1000 {
		rec.Config.Labels[fmt.Sprint(long, i)] = long
	}
	var b strings.Builder
	rows := 0
	printRecord(rec, func(name string, value any) {
		rows++
		fmt.Fprintf(&b, "%s: %v\n", name, value)
	})
	if rows > 40 || b.Len() > 40000 || strings.ContainsAny(b.String(), "\x1b\u202e") || strings.Count(b.String(), "\n") != rows {
		t.Errorf("%d rows, %d bytes", rows, b.Len())
	}
	if !strings.Contains(b.String(), `Command: 'it'\134''s' ''`) {
		t.Error(b.String())
	}
}
