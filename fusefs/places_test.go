package fusefs

import (
	"testing"

	"github.com/squirefs/squire/sqfs"
)

// TestPlacesAreBounded: all images together remember so many directories, each the last it came by.
func TestPlacesAreBounded(t *testing.T) {
	before := placesKept.Load()
	var many, few places
	for i := range sqfs.InodeRef(2 * maxPlaces) {
		if !many.enter(i, place{dir: i, pos: 1}) {
			t.Fatalf("directory %d was found in another place", i)
		}
		if i%1000 == 0 && many.enter(i, place{dir: i, pos: 2}) {
			t.Fatalf("directory %d has two places", i)
		}
	}
	if n := placesKept.Load() - before; n > maxPlaces || n < minPlaces/2 {
		t.Errorf("%d directories are remembered, at most %d should be", n, maxPlaces)
	}
	for i := range sqfs.InodeRef(40) {
		few.enter(i, place{dir: i, pos: 1})
	}
	for i := range sqfs.InodeRef(40) {
		if few.enter(i, place{dir: i, pos: 2}) {
			t.Errorf("a small image has forgotten directory %d", i)
		}
	}
	many.close()
	few.close()
	if n := placesKept.Load(); n != before {
		t.Errorf("%d directories are counted that nobody remembers", n-before)
	}
}
