package mountinfo

import (
	"os"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	const table = `21 1 0:20 / / rw,relatime shared:1 master:2 - overlay overlay rw,lowerdir=/a
26 21 0:36 / /odd\040name\134040\011\012 rw - fuse a\040b ro,user_id=10001
27 21 0:37 / /x` + "\v-\vfuse.squire\v" + ` rw - tmpfs  rw
28 21 0:38 / /no-dash rw tmpfs tmpfs rw
- tmpfs tmpfs rw
29 21 0:39 / /short - tmpfs tmpfs rw
x 21 0:40 / /no-id rw - tmpfs tmpfs rw
30 21 0:41 / /` + "cut \\04" + ` rw - tmpfs

31 21 0:42 /root /last rw - ext4 /dev/sda1 rw`
	want := []Mount{
		{21, "0:20", "/", "overlay", "overlay", "rw,lowerdir=/a"},
		{26, "0:36", "/odd name\\040\t\n", "fuse", "a b", "ro,user_id=10001"},
		{27, "0:37", "/x\v-\vfuse.squire\v", "tmpfs", "", "rw"},
		{31, "0:42", "/last", "ext4", "/dev/sda1", "rw"},
	}
	if got := Parse(table); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestSelf(t *testing.T) {
	list, err := Self()
	if err != nil {
		t.Skip("needs /proc: ", err)
	}
	for _, m := range list {
		if m.Type == "proc" && m.Point == "/proc" {
			return
		}
	}
	if _, err := os.Stat("/proc/self"); err == nil {
		t.Errorf("no /proc in %+v", list)
	}
}

func TestUnescape(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "/a": "/a", `\040`: " ", `a\134b`: `a\b`, `\04`: `\04`, `\0400`: " 0", `\999`: `\999`, `\400`: `\400`, `\`: `\`, `\\040`: `\ `,
	} {
		if got := Unescape(s); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}
