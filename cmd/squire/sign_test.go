package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs/signed"
	"github.com/squirefs/squire/sqfs/signed/signedtest"
)

// copyImage puts a copy of the tests' image into a directory.
func copyImage(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(testImage)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "image.sqsh")
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func putFile(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// The signatures of squire sign are those that squire verify wants, with a key of OpenSSH.
func TestSign(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("needs ssh-keygen (openssh-client)")
	}
	dir := t.TempDir()
	image, key := copyImage(t, dir), filepath.Join(dir, "key")
	for _, kind := range []string{"ed25519", "ecdsa"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "of tests", "-f", key+kind).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	out, says, err := squire2(t, "sign", "--key", key+"ed25519", image)
	if err != nil || out != image+".sig\n" || says != "" {
		t.Fatalf("sign: %q, %q, %v", out, says, err)
	}
	out, says, err = squire2(t, "verify", "--key", key+"ed25519.pub", image)
	if err != nil || !strings.Contains(out, "signed by SHA256:") || !strings.Contains(out, "of tests") || says != "" {
		t.Errorf("verify: %q, %q, %v", out, says, err)
	}
	sig, err := os.ReadFile(image + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	for what, args := range map[string][]string{
		"a key of another type": {"--key", key + "ecdsa", image},
		"no key":                {image},
		"a missing key":         {"--key", key + "none", image},
		"a missing image":       {"--key", key + "ed25519", image + "none"},
		"a directory":           {"--key", key + "ed25519", dir},
	} {
		if _, _, err := squire2(t, append([]string{"sign"}, args...)...); status(err) != 125 {
			t.Errorf("sign with %s: %v", what, err)
		}
	}
	if _, _, err := squire2(t, "sign", "--key", key+"none", image); err == nil || err.Error() != "--key "+key+"none: no such file or directory" {
		t.Errorf("sign with a missing key: %v", err)
	}
	if _, _, err := squire2(t, "verify", "--key", key+"ed25519", image); err == nil || !strings.Contains(err.Error(), "a private key") {
		t.Errorf("verify with the private key: %v", err)
	}
	if now, err := os.ReadFile(image + ".sig"); err != nil || string(now) != string(sig) {
		t.Errorf("the signature that was there is another: %v", err)
	}
}

// What squire verify says of images that are not what was signed.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	useSite(t, nil)
	image, key := copyImage(t, dir), signedtest.New("the site's \x1b[2J")
	public := putFile(t, filepath.Join(dir, "keys"), "# ours\n\n"+signedtest.New("other").Line+"\n"+key.Line+"\n")
	key.Sign(t, image)
	verify := func(image string) (string, int) {
		t.Helper()
		out, says, err := squire2(t, "verify", "--key", public, image)
		if strings.Contains(out+says, "\x1b") {
			t.Errorf("control characters: %q", out+says)
		}
		return out + says, status(err)
	}
	if says, st := verify(image); st != 0 || !strings.Contains(says, "signed by") {
		t.Errorf("%d: %s", st, says)
	}
	link := filepath.Join(t.TempDir(), "link.sqsh")
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	if says, st := verify(link); st != 0 {
		t.Errorf("by a link: %d: %s", st, says)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := os.ReadFile(image + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what       string
		image, sig string
		want       string
	}{
		{"a byte more", string(b) + "x", string(sig), "not what was signed"},
		{"a byte less", string(b[:len(b)-1]), string(sig), "not what was signed"},
		{"a byte changed", string(b[:5000]) + "\x00\x01\x02" + string(b[5003:]), string(sig), "not what was signed"},
		{"a list cut", string(b), string(sig[:len(sig)-1]), "not what was signed"},
		{"a list that is longer", string(b), string(sig) + "x", "not what was signed"},
		{"another key", string(b), string(sig[:strings.Index(string(sig), "-----")]) + signedtest.New("else").Armor("x", signed.Namespace), "another key"},
		{"another text", string(b), string(sig[:strings.Index(string(sig), "-----")]) + key.Armor("x", signed.Namespace), "wrong"},
		{"nothing", string(b), "", "not a signature"},
	} {
		putFile(t, image, tt.image)
		putFile(t, image+".sig", tt.sig)
		if says, st := verify(image); st != 1 || !strings.Contains(says, tt.want) {
			t.Errorf("%s: %d: %s", tt.what, st, says)
		}
	}
	if err := os.Remove(image + ".sig"); err != nil {
		t.Fatal(err)
	}
	if says, st := verify(image); st != 1 || !strings.Contains(says, "is not signed") {
		t.Errorf("without a signature: %d: %s", st, says)
	}
	if _, _, err := squire2(t, "verify", image); status(err) != 125 || !strings.Contains(err.Error(), "which keys count?") {
		t.Errorf("without keys: %v", err)
	}
	if _, _, err := squire2(t, "verify", "--key", image, image); status(err) != 125 {
		t.Errorf("with a file that has no keys: %v", err)
	}
}

// Where a site has keys, what opens an image to run it demands a signature, and the file is read by it.
func TestPolicyKeys(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	image, key := copyImage(t, dir), signedtest.New("site")
	useSite(t, map[string]string{policyName: "[images]\nkeys = ['" + key.Line + "']\n"})
	s, err := siteConfig()
	if err != nil {
		t.Fatal(err)
	}
	if f, err := s.openImage(image); err == nil {
		f.Close()
		t.Error("an image is opened that is not signed")
	}
	signedtest.New("stranger").Sign(t, image)
	if f, err := s.openImage(image); err == nil {
		f.Close()
		t.Error("an image is opened that a stranger has signed")
	}
	head, list := key.Sign(t, image)
	f, err := s.openImage(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(list)+1)
	if n, _ := f.list.ReadAt(got, 0); string(got[:n]) != string(list) || f.head != head || !strings.HasPrefix(head, f.statement) {
		t.Errorf("opened with %q, %q, a list of %d bytes", f.head, f.statement, n)
	}
	if _, err = f.list.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the list can be changed")
	}
	if err = s.mayImport(dir); err == nil {
		t.Error("an image may be imported, that nobody has signed")
	}
	if err = s.mayRunDir(dir); err == nil {
		t.Error("a directory may be run")
	}
	if !strings.Contains(s.summary(), "signed with 1 key") {
		t.Error(s.summary())
	}
	if out, _, err := squire2(t, "verify", image); err != nil || !strings.Contains(out, "site") {
		t.Errorf("with the site's keys: %q, %v", out, err)
	}
}

func TestPolicyKeysRefused(t *testing.T) {
	needRoot(t)
	for _, line := range []string{"", "ssh-rsa AAAA", "/etc/keys", "ssh-ed25519 AAAAC3"} {
		useSite(t, map[string]string{policyName: "[images]\nkeys = ['" + line + "']\n"})
		if _, err := siteConfig(); err == nil || !strings.Contains(err.Error(), "images.keys: ") {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// The service of a node has the rules of its site, and of lists that are empty none that lets anything through.
func TestDaemonPolicy(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		policy       string
		keys, owners int // -1: no rule
	}{
		{"", -1, -1},
		{"[images]\nowners = ['root', '5']", -1, 2},
		{"[images]\nkeys = []\nowners = []", 0, 0},
		{"[images]\nkeys = ['" + signedtest.New("a").Line + "']", 1, -1},
	} {
		useSite(t, map[string]string{policyName: tt.policy})
		var o daemonOptions
		if err := o.limit(); err != nil {
			t.Fatal(err)
		}
		if (o.Keys != nil) != (tt.keys >= 0) || len(o.Keys) != max(tt.keys, 0) || (o.Owners != nil) != (tt.owners >= 0) || len(o.Owners) != max(tt.owners, 0) {
			t.Errorf("%q: keys %v, owners %v", tt.policy, o.Keys, o.Owners)
		}
	}
}
