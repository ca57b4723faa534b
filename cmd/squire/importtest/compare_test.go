package importtest

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// TestStacks imports stacks of layers that are hard to merge, and compares what the kernel shows of the image with what
// umoci unpacks, and with an overlay of separately unpacked layers where that means the same.
func TestStacks(t *testing.T) {
	l := newLab(t, "umoci", "tar")
	for _, s := range fixed {
		t.Run(s.name, func(t *testing.T) { testStack(t, l, s) })
	}
}

// TestRandomStacks does the same with random stacks: SQUIRE_SEEDS says how many.
func TestRandomStacks(t *testing.T) {
	l := newLab(t, "umoci", "tar")
	seeds, err := strconv.Atoi(os.Getenv("SQUIRE_SEEDS"))
	if err != nil {
		seeds = 12
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testStack(t, l, randomStack(uint64(seed))) })
	}
}

func testStack(t *testing.T, l *lab, s stack) {
	archives := s.archives(t)
	lay := newLayout(t, l.mkdir(t, root))
	lay.tag(t, "gzip", lay.image(t, "amd64", nil, archives, "gzip"))
	lay.tag(t, "mixed", lay.image(t, "amd64", nil, archives, "zstd", "", "gzip"))

	var want tree
	if s.noUmoci == "" {
		want = l.umoci(t, lay, "gzip")
	}
	if s.noOverlay == "" {
		overlay := l.overlay(t, archives)
		if want == nil {
			want = overlay
		}
		t.Run("umoci and overlay agree", func(t *testing.T) { wantTree(t, "umoci's", overlay, want) })
	}
	for _, tag := range []string{"gzip", "mixed"} {
		i := l.importer(t, root)
		i.must(t, "oci:"+lay.dir+":"+tag, "--arch", "amd64", "--devices")
		got := readTree(t, l.mount(t, i.out))
		wantTree(t, "umoci's, "+tag, got.without(want), want)
	}
}
