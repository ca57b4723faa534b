package trace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// newStore returns a store and the directory that its files are in.
func newStore(t *testing.T) (*Store, string) {
	t.Helper()
	cache := filepath.Join(t.TempDir(), "squire")
	s, err := OpenStore(cache, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, filepath.Join(cache, "traces")
}

func TestStore(t *testing.T) {
	s, dir := newStore(t)
	k := Key{1, 2, 3}
	if _, err := s.Open(k); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no trace: %v", err)
	}
	f, err := s.Record(k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.Record(k); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("second recorder: %v", err)
	}
	if err = sample().Write(f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if f, err = s.Record(k); err != nil {
		t.Fatalf("after the first recorder: %v", err)
	}
	f.Close()
	wantTouches(t, s, k, 6)
	less := sample()
	less.Touches = less.Touches[:2]
	if err := s.Put(k, less); err != nil {
		t.Fatal(err)
	}
	wantTouches(t, s, k, 2)
	if p := s.Path(k); filepath.Dir(p) != dir || !isName(filepath.Base(p)) {
		t.Errorf("path %s", p)
	}
	if err := s.Remove(k); err != nil {
		t.Error(err)
	}
	if err := s.Remove(k); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove twice: %v", err)
	}
}

// wantTouches wants the trace of an image to have n touches.
func wantTouches(t *testing.T, s *Store, k Key, n int) {
	t.Helper()
	f, err := s.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := Read(f); err != nil || len(got.Touches) != n {
		t.Errorf("%v, %+v", err, got)
	}
}

func TestStoreModes(t *testing.T) {
	s, dir := newStore(t)
	f, err := s.Record(Key{})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	dirMode, fileMode := os.FileMode(0o700), os.FileMode(0o600)
	if os.Geteuid() == 0 {
		dirMode, fileMode = 0o755, 0o644
	}
	for name, want := range map[string]os.FileMode{dir: dirMode, filepath.Dir(dir): dirMode, s.Path(Key{}): fileMode} {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, err, fi.Mode(), want)
		}
	}
}

// What others have put there, or could, is not used.
func TestStoreUnsafe(t *testing.T) {
	s, dir := newStore(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link, fifo := Key{1}, Key{2}
	if err := os.Symlink(outside, filepath.Join(dir, link.name())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, fifo.name()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range []Key{link, fifo} {
		if _, err := s.Open(k); err == nil {
			t.Errorf("%v was opened", k)
		}
		if _, err := s.Record(k); err == nil {
			t.Errorf("%v was opened for writing", k)
		}
	}
	if b, _ := os.ReadFile(outside); string(b) != "precious" {
		t.Errorf("the file outside is %q now", b)
	}
	for _, name := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(name, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenStore(filepath.Dir(dir), true); err == nil || !strings.Contains(err.Error(), "others can write") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Chmod(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(filepath.Dir(dir), true); err == nil {
		t.Error("a link was followed to the directory")
	}
}

func TestStoreOfAnother(t *testing.T) {
	testenv.NeedRoot(t, "to give a directory away")
	_, dir := newStore(t)
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(filepath.Dir(dir), true); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Error(err)
	}
}

// Where there is nothing nothing is made, unless asked for.
func TestStoreMissing(t *testing.T) {
	base := t.TempDir()
	cache := filepath.Join(base, "a", "b")
	if _, err := OpenStore(cache, false); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := OpenStore(cache, true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made from nothing: %v", err)
	}
	if names, _ := os.ReadDir(base); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
	// Nobody can make a directory here, root included.
	if _, err := OpenStore("/proc/self/squire", true); err == nil || !strings.Contains(err.Error(), "mkdir /proc/self/squire: ") {
		t.Errorf("not to be made: %v", err)
	}
}

// The oldest traces go, and nothing else of the directory.
func TestPrune(t *testing.T) {
	s, dir := newStore(t)
	notes := filepath.Join(dir, "notes.trace")
	if err := os.WriteFile(notes, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	touch := func(name string, i int) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, make([]byte, min(i, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(time.Duration(i-1000) * time.Second)
		if err := os.Chtimes(name, when, when); err != nil {
			t.Fatal(err)
		}
	}
	touch(".left"+ext, 0)
	for i := range 300 {
		touch(Key{byte(i), byte(i >> 8)}.name(), i+1)
	}
	for i := range 10 { // nothing was recorded here
		touch(Key{14: byte(i + 1)}.name(), 0)
	}
	f, err := s.Record(Key{15: 1})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	all, err := s.list()
	if err != nil || len(all) != maxFiles || all[0].name != (Key{15: 1}).name() || all[1].name != (Key{45}).name() {
		t.Errorf("%v: %d are left, the oldest %v", err, len(all), all[:2])
	}
	// Long ones go as well.
	for i := range 40 {
		if err := os.Truncate(filepath.Join(dir, all[200+i].name), MaxSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(Key{15: 2}, sample()); err != nil {
		t.Fatal(err)
	}
	all, _ = s.list()
	sum := int64(0)
	for _, k := range all {
		sum += k.size
	}
	if sum > maxBytes || sum < maxBytes-2*MaxSize {
		t.Errorf("%d bytes are left", sum)
	}
	if n, err := s.Clear(); n != len(all) || err != nil {
		t.Errorf("%d cleared of %d: %v", n, len(all), err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left: %v", names)
	}
}

func TestKeyOf(t *testing.T) {
	head := bytes.Repeat([]byte("head"), 24)
	tail := bytes.Repeat([]byte("tail"), 24)
	image := func(magic string, end []byte) []byte {
		return append(append(append([]byte(magic), head[4:]...), make([]byte, 1000)...), end...)
	}
	keys := map[Key]string{}
	for _, b := range [][]byte{image("hsqs", tail), image("hsqt", tail), image("HSQS", tail), image("HSQS", head)} {
		k, err := KeyOf(bytes.NewReader(b), 0, int64(len(b)))
		if err != nil || keys[k] != "" {
			t.Errorf("%v: key %v of %q, again", err, k, b[:4])
		}
		keys[k] = fmt.Sprintf("%q", b[:4])
		shifted := append(make([]byte, 512), b...)
		if again, err := KeyOf(bytes.NewReader(shifted), 512, int64(len(b))); err != nil || again != k {
			t.Errorf("at another offset: %v, %v", again, err)
		}
	}
	if _, err := KeyOf(bytes.NewReader(head[:50]), 0, 50); err == nil {
		t.Error("50 bytes have a key")
	}
}
