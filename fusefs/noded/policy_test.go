package noded

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/squirefs/squire/sqfs/signed"
	"github.com/squirefs/squire/sqfs/signed/signedtest"
)

// What a site limits holds for users, of the node's service, and not for root.
func TestSiteLimits(t *testing.T) {
	key := signedtest.New("site")
	list := make([]byte, 32)
	head := key.Head((&signed.Statement{Size: 7, Block: 4096}).String())
	for _, c := range []struct {
		what   string
		cfg    Config
		user   uint32
		signed string // the head of a signature
		want   Code
	}{
		{"no limits", Config{}, 1000, "", OK},
		{"no limits, signed by anybody", Config{}, 1000, head, OK},
		{"owner", Config{Owners: []uint32{0}}, 1000, "", OK},
		{"other owner", Config{Owners: []uint32{5}}, 1000, "", Denied},
		{"no owner", Config{Owners: []uint32{}}, 1000, "", Denied},
		{"root", Config{Owners: []uint32{5}, Keys: []signed.Key{}}, 0, "", OK},
		{"not signed", Config{Keys: []signed.Key{key.Public(t)}}, 1000, "", Denied},
		{"signed", Config{Keys: []signed.Key{key.Public(t)}}, 1000, head, OK},
		{"no keys", Config{Keys: []signed.Key{}}, 1000, head, Denied},
		{"another key", Config{Keys: []signed.Key{signedtest.New("x").Public(t)}}, 1000, head, Denied},
		{"nonsense", Config{}, 1000, "nonsense", Invalid},
	} {
		k := run(t, newWorld(t), c.cfg)
		if os.Geteuid() != 0 && c.cfg.Owners != nil {
			continue
		}
		client, file := k.as(t, c.user), imageFile(t, c.what)
		m, err := (*Mounted)(nil), error(nil)
		if c.signed == "" {
			m, err = client.Mount(Request{View: View{Squash: true}}, file)
		} else {
			hashes, failed := Sealed("list", list)
			if failed != nil {
				t.Fatal(failed)
			}
			m, err = client.MountSigned(Request{View: View{Squash: true}, Signature: c.signed}, file, hashes)
			hashes.Close()
		}
		if code(err) != c.want {
			t.Errorf("%s: %v", c.what, err)
		}
		if err == nil {
			m.Mount.Close()
			k.w.mu.Lock()
			if got := k.w.images[0].Signed; (got != "") != (c.signed != "") {
				t.Errorf("%s: the server is told %q", c.what, got)
			}
			k.w.mu.Unlock()
		}
	}
}

// Where a file lies is what the kernel calls it, in the service's own mount namespace.
func TestSiteDirectories(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"in/deep", "in2", "..in"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"link": "in", "in/out": dir + "/in2/image", "in2/in": dir + "/in/image"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"image", "in/image", "in/deep/image", "in2/image", "..in/image"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("image "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		dirs []string
		user uint32
		want Code
	}{
		{"image", nil, 1000, OK},
		{"in/image", []string{"/no/such", "in"}, 1000, OK},
		{"in/deep/image", []string{"in"}, 1000, OK},
		{"in/image", []string{"link"}, 1000, OK},
		{"in2/in", []string{"in"}, 1000, OK},
		{"..in/image", []string{"."}, 1000, OK},
		{"image", []string{"in"}, 1000, Denied},
		{"in/out", []string{"in"}, 1000, Denied},
		{"in2/image", []string{"in", "link"}, 1000, Denied},
		{"in/image", []string{}, 1000, Denied},
		{"image", []string{"in"}, 0, OK},
	} {
		cfg := Config{}
		if c.dirs != nil {
			cfg.Directories = []string{}
		}
		for _, d := range c.dirs {
			if !filepath.IsAbs(d) {
				d = filepath.Join(dir, d)
			}
			cfg.Directories = append(cfg.Directories, d)
		}
		k := run(t, newWorld(t), cfg)
		file, err := os.Open(filepath.Join(dir, c.name))
		if err != nil {
			t.Fatal(err)
		}
		m, err := k.as(t, c.user).Mount(Request{View: View{Squash: true}}, file)
		file.Close()
		if code(err) != c.want {
			t.Errorf("%s in %q: %v", c.name, c.dirs, err)
		}
		if err == nil {
			m.Mount.Close()
		}
	}
}

// An image that is signed is another than the same file as it is, and than one that is signed otherwise.
func TestSignedIsAnother(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	file, list := imageFile(t, "one"), make([]byte, 32)
	key := signedtest.New("site")
	ids := map[uint64]string{}
	for what, head := range map[string]string{
		"not signed": "",
		"signed":     key.Head((&signed.Statement{Size: 7, Block: 4096}).String()),
		"otherwise":  key.Head((&signed.Statement{Size: 8, Block: 4096}).String()),
	} {
		var m *Mounted
		var err error
		if head == "" {
			m, err = k.as(t, 1000).Mount(Request{View: View{Squash: true}}, file)
		} else {
			hashes, failed := Sealed("list", list)
			if failed != nil {
				t.Fatal(failed)
			}
			m, err = k.as(t, 1000).MountSigned(Request{View: View{Squash: true}, Signature: head}, file, hashes)
			hashes.Close()
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		m.Mount.Close()
		if other := ids[m.ID]; other != "" {
			t.Errorf("%s shares the mount of %s", what, other)
		}
		ids[m.ID] = what
	}
}
