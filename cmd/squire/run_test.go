package main

import (
	"os"
	"testing"

	"github.com/squirefs/squire/runtime"
)

// Who may not change what others have in a directory is told so.
func TestOthersFiles(t *testing.T) {
	dir, me := t.TempDir(), os.Getuid()
	for _, tt := range []struct {
		spec runtime.Spec
		host runtime.Host
		want bool
	}{
		{runtime.Spec{Dir: dir, Writable: true}, runtime.Host{UID: me + 1}, true},
		{runtime.Spec{Dir: dir, Writable: true}, runtime.Host{UID: me}, false},
		{runtime.Spec{Dir: dir}, runtime.Host{UID: me + 1}, false},
		{runtime.Spec{Dir: dir, Writable: true}, runtime.Host{UID: me + 1, Root: true}, false},
	} {
		if got := othersFiles(&tt.spec, &tt.host); (got != "") != tt.want {
			t.Errorf("%+v, %+v: %q", tt.spec, tt.host, got)
		}
	}
}
