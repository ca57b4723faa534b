package signed_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs/signed"
	"github.com/squirefs/squire/sqfs/signed/signedtest"
)

// content is what an image might be, of n bytes.
func content(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{7})
	_, _ = src.Read(b)
	return b
}

func hash(t *testing.T, b []byte) (*signed.Statement, []byte) {
	t.Helper()
	s, list, err := signed.Hash(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return s, list
}

func TestSignature(t *testing.T) {
	s, _ := hash(t, content(300_000))
	key, other := signedtest.New("release"), signedtest.New("other")
	head := key.Head(s.String())
	sig, err := signed.Parse(append([]byte(head), "the list"...))
	if err != nil {
		t.Fatal(err)
	}
	if sig.Statement != *s || sig.Head != head {
		t.Errorf("parsed %+v of %q", sig.Statement, sig.Head)
	}
	by, err := sig.Verify([]signed.Key{other.Public(t), key.Public(t)})
	if err != nil || !strings.HasSuffix(by.String(), " release") || !strings.HasPrefix(by.String(), "SHA256:") {
		t.Errorf("verified: %v, %v", by, err)
	}
	if _, err = sig.Verify([]signed.Key{other.Public(t)}); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("with another key: %v", err)
	}
	if _, err = sig.Verify(nil); err == nil {
		t.Error("without keys it is verified")
	}
}

// TestForged tries heads that say more or other than what was signed.
func TestForged(t *testing.T) {
	s, _ := hash(t, content(300_000))
	key := signedtest.New("release")
	keys := []signed.Key{key.Public(t)}
	text, armor := s.String(), key.Armor(s.String(), signed.Namespace)
	if _, err := mustParse(t, text+armor).Verify(keys); err != nil {
		t.Fatal(err)
	}
	larger := strings.Replace(text, "size 300000", "size 300001", 1)
	for name, head := range map[string]string{
		"another size":        larger + armor,
		"another hash":        text[:len(text)-3] + flip(text[len(text)-3:len(text)-1]) + "\n" + armor,
		"upper case":          strings.ToUpper(text) + armor,
		"a plus":              strings.Replace(text, "size ", "size +", 1) + armor,
		"zeros":               strings.Replace(text, "size ", "size 0", 1) + armor,
		"a line more":         text + "size 5\n" + armor,
		"carriage returns":    strings.ReplaceAll(text, "\n", "\r\n") + armor,
		"another namespace":   text + key.Armor(text, "file"),
		"a signature of else": text + key.Armor("else", signed.Namespace),
		"no armor":            text,
		"no end":              text + strings.TrimSuffix(armor, "SIGNATURE-----\n"),
		"end before begin":    endOf(armor) + text + armor,
		"no statement":        armor,
		"not base64":          text + strings.Replace(armor, "U1NI", "!!!!", 1),
		"cut":                 text + strings.Replace(armor, "U1NI", "", 1),
		"behind the bound":    text + strings.Replace(armor, "U1NI", strings.Repeat("\n", signed.MaxHead)+"U1NI", 1),
		"tiny blocks":         key.Head((&signed.Statement{Size: 5, Block: 1}).String()),
		"odd blocks":          key.Head((&signed.Statement{Size: 5, Block: 5000}).String()),
		"an endless list":     key.Head((&signed.Statement{Size: 1 << 40, Block: 4096}).String()),
		"negative":            key.Head((&signed.Statement{Size: -1, Block: 4096}).String()),
	} {
		sig, err := signed.Parse([]byte(head))
		if err != nil {
			continue
		}
		if _, err = sig.Verify(keys); err == nil {
			t.Errorf("%s: is taken", name)
		}
	}
}

// More behind any part of a signature or a key makes it none: there is one way to write each.
func TestTrailing(t *testing.T) {
	s, _ := hash(t, content(1000))
	text := s.String()
	token := &signedtest.Token{Application: "ssh:a", Flags: 1, Counter: 3} // its keys' signatures are not of whole groups of base64
	for kind, key := range map[string]*signedtest.Key{
		"ed25519": signedtest.New("release"), "sk ed25519": token.Ed25519("release"), "sk ecdsa": token.ECDSA(t, "release"),
	} {
		for part, armor := range longer(t, key.Armor(text, signed.Namespace)) {
			sig, err := signed.Parse([]byte(text + armor))
			if err == nil {
				_, err = sig.Verify([]signed.Key{key.Public(t)})
			}
			if taken := err == nil; taken != (part == "nothing") {
				t.Errorf("%s, more behind %s: %v", kind, part, err)
			}
		}
		fields := strings.Fields(key.Line)
		fields[1] = base64.StdEncoding.EncodeToString(append(decode(t, fields[1]), 0))
		if _, err := signed.ParseKey(strings.Join(fields, " ")); err == nil {
			t.Errorf("%s: a key with a byte more is taken", kind)
		}
	}
}

// longer returns signatures that have something more behind each of the parts of one. All lengths are right.
func longer(t *testing.T, armor string) map[string]string {
	t.Helper()
	begin, end := strings.Index(armor, "\n")+1, strings.Index(armor, "-----END")
	code := strings.TrimSpace(armor[begin:end])
	enarmor := func(code string) string { return armor[:begin] + code + "\n" + armor[end:] }
	const head = len("SSHSIG") + 4
	b := string(decode(t, code))
	outer, rest := parts(b[head:], 5) // the key, the namespace, one that is reserved, the hash, the signature
	inner, more := parts(outer[4], 2) // its type and value; what a security key says
	if rest != "" {
		t.Fatalf("%q is behind a signature", rest)
	}
	encode := func(behind, key, value, signature string) string {
		inside := joined(inner[0], inner[1]+value) + more + signature
		all := b[:head] + joined(outer[0]+key, outer[1], outer[2], outer[3], inside) + behind
		return enarmor(base64.StdEncoding.EncodeToString([]byte(all)))
	}
	forms := map[string]string{
		"nothing":       encode("", "", "", ""),
		"all":           encode("\x00", "", "", ""),
		"all, a part":   encode(joined("part"), "", "", ""),
		"the key":       encode("", "\x00", "", ""),
		"the value":     encode("", "", "\x00", ""),
		"the signature": encode("", "", "", "\x00"),
	}
	if whole := strings.TrimRight(code, "="); whole != code { // the bits of its last digit that count for nothing are 0
		forms["the last bit"] = enarmor(whole[:len(whole)-1] + string(whole[len(whole)-1]+1) + code[len(whole):])
	}
	return forms
}

func decode(t *testing.T, code string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(code, "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parts takes n strings of RFC 4251 from the front of s.
func parts(s string, n int) (all []string, rest string) {
	for range n {
		size := 4 + binary.BigEndian.Uint32([]byte(s))
		all, s = append(all, s[4:size]), s[size:]
	}
	return all, s
}

// joined writes what parts reads.
func joined(all ...string) string {
	var b []byte
	for _, s := range all {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return string(b)
}

func mustParse(t *testing.T, head string) *signed.Signature {
	t.Helper()
	sig, err := signed.Parse([]byte(head))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// flip returns two other digits.
func flip(digits string) string {
	if digits == "00" {
		return "11"
	}
	return "00"
}

func endOf(armor string) string { return armor[strings.Index(armor, "-----END"):] }

// A security key's signature counts if somebody touched it, and for what it says.
func TestSecurityKeys(t *testing.T) {
	s, _ := hash(t, content(300_000))
	text := s.String()
	for kind, token := range map[string]func(*signedtest.Token) *signedtest.Key{
		"ed25519": func(t *signedtest.Token) *signedtest.Key { return t.Ed25519("release") },
		"ecdsa":   func(token *signedtest.Token) *signedtest.Key { return token.ECDSA(t, "release") },
	} {
		key := token(&signedtest.Token{Application: "ssh:", Flags: 1, Counter: 4711})
		public := key.Public(t)
		for name, tt := range map[string]struct {
			armor string
			taken bool
		}{
			"touched":             {key.Armor(text, signed.Namespace), true},
			"verified by PIN too": {token(&signedtest.Token{Application: "ssh:", Flags: 5}).Armor(text, signed.Namespace), true},
			"nobody was there":    {token(&signedtest.Token{Application: "ssh:", Flags: 0}).Armor(text, signed.Namespace), false},
			"only a PIN":          {token(&signedtest.Token{Application: "ssh:", Flags: 4}).Armor(text, signed.Namespace), false},
			"another namespace":   {key.Armor(text, "file"), false},
			"of something else":   {key.Armor("else", signed.Namespace), false},
			"another application": {token(&signedtest.Token{Application: "ssh:x", Flags: 1}).Armor(text, signed.Namespace), false},
			"of another type":     {signedtest.New("release").As(key).Armor(text, signed.Namespace), false}, // the same secret
			"no security key's":   {signedtest.New("release").Armor(text, signed.Namespace), false},
			"another counter":     {altered(t, key.Armor(text, signed.Namespace), -1), false},
			"another flag":        {altered(t, key.Armor(text, signed.Namespace), -5), false},
			"another signature":   {altered(t, key.Armor(text, signed.Namespace), -6), false},
		} {
			sig, err := signed.Parse([]byte(text + tt.armor))
			if err == nil {
				_, err = sig.Verify([]signed.Key{public})
			}
			if (err == nil) != tt.taken {
				t.Errorf("%s, %s: %v", kind, name, err)
			}
		}
		named := token(&signedtest.Token{Application: "ssh:images", Flags: 1})
		sig, err := signed.Parse([]byte(named.Head(text)))
		if err == nil {
			_, err = sig.Verify([]signed.Key{named.Public(t)})
		}
		if err != nil {
			t.Errorf("%s, of an application of its own: %v", kind, err)
		}
		// OpenSSH agrees.
		if says := opensshVerifies(t, key.Line, text, key.Armor(text, signed.Namespace)); says != "" {
			t.Errorf("%s: %s", kind, says)
		}
	}
}

// altered changes a byte of a signature, counted from its end.
func altered(t *testing.T, armor string, at int) string {
	t.Helper()
	begin, end := strings.Index(armor, "\n"), strings.Index(armor, "-----END")
	b := decode(t, armor[begin:end])
	b[len(b)+at] ^= 0x80
	return armor[:begin+1] + base64.StdEncoding.EncodeToString(b) + "\n" + armor[end:]
}

// opensshVerifies returns what ssh-keygen has against a signature: nothing, too, where there is no ssh-keygen.
func opensshVerifies(t *testing.T, line, message, armor string) string {
	t.Helper()
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		return ""
	}
	dir := t.TempDir()
	put := func(name, text string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	cmd := exec.Command("ssh-keygen", "-Y", "verify", "-n", signed.Namespace, "-I", "me", "-f", put("signers", "me "+line+"\n"), "-s", put("sig", armor))
	cmd.Stdin = strings.NewReader(message)
	if out, err := cmd.CombinedOutput(); err != nil {
		return string(out) + err.Error()
	}
	return ""
}

func TestParseKey(t *testing.T) {
	line := signedtest.New("a name").Line
	ecdsa := new(signedtest.Token).ECDSA(t, "a name").Line
	if _, err := signed.ParseKey(ecdsa); err != nil {
		t.Errorf("%q: %v", ecdsa, err)
	}
	if key, err := signed.ParseKey(line); err != nil || key.Comment != "a name" {
		t.Errorf("%q: %v, %v", line, key, err)
	}
	for _, line := range []string{
		"", "ssh-ed25519", "ssh-rsa AAAA", "ssh-ed25519 AAAA", "ssh-ed25519 !",
		strings.Replace(line, "AAAAC3", "AAAAD3", 1), line[:40],
		"sk-" + line, strings.Replace(line, "ssh-ed25519 ", "sk-ssh-ed25519@openssh.com ", 1), ecdsa[:80],
		strings.Replace(ecdsa, "bmlzdHAyNTY", "bmlzdHAyNTU", 1),
	} {
		if _, err := signed.ParseKey(line); err == nil {
			t.Errorf("%q is taken for a key", line)
		}
	}
}

// TestReader reads in pieces of all kinds, and after each byte of the image was changed.
func TestReader(t *testing.T) {
	image := content(3*128<<10 + 777)
	s, list := hash(t, image)
	r, err := signed.NewReader(bytes.NewReader(image), int64(len(image)), s, list)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		off, n := random.IntN(len(image)+10), random.IntN(300_000)
		if random.IntN(3) == 0 {
			off &^= 128<<10 - 1
		}
		p := make([]byte, n)
		got, err := r.ReadAt(p, int64(off))
		want := min(n, max(0, len(image)-off))
		if got != want || !bytes.Equal(p[:got], image[min(off, len(image)):][:want]) || (err == nil) != (got == n) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("read %d bytes at %d: %d, %v", n, off, got, err)
		}
	}
	if err = r.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
	if _, err = r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is read")
	}
}

// altering is an image in which a byte is another from some time on.
type altering struct {
	image []byte
	at    int
}

func (a *altering) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(a.image).ReadAt(p, off)
	if i := int64(a.at) - off; a.at >= 0 && i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	return n, err
}

func TestAltered(t *testing.T) {
	image := content(2*128<<10 + 5000)
	s, list := hash(t, image)
	for _, at := range []int{0, 1, 128<<10 - 1, 128 << 10, 200_000, len(image) - 1} {
		src := &altering{image, -1}
		r, err := signed.NewReader(src, int64(len(image)), s, list)
		if err != nil {
			t.Fatal(err)
		}
		if err = r.Check(); err != nil {
			t.Fatalf("before: %v", err)
		}
		src.at = at
		if err = r.Check(); !errors.Is(err, signed.ErrAltered) {
			t.Errorf("byte %d: check: %v", at, err)
		}
		for _, read := range [][2]int{{at, 1}, {0, len(image)}, {at &^ (128<<10 - 1), 128 << 10}, {max(at-100, 0), 200}} {
			p := make([]byte, read[1])
			if n, err := r.ReadAt(p, int64(read[0])); !errors.Is(err, signed.ErrAltered) || n != 0 {
				t.Errorf("byte %d: read %v: %d bytes, %v", at, read, n, err)
			}
		}
	}
}

func TestNewReaderRefuses(t *testing.T) {
	image := content(200_000)
	s, list := hash(t, image)
	bad := bytes.Clone(list)
	bad[33] ^= 1
	for name, tt := range map[string]struct {
		size int64
		list []byte
	}{
		"longer file":  {200_001, list},
		"shorter file": {199_999, list},
		"another list": {200_000, bad},
		"shorter list": {200_000, list[:32]},
		"longer list":  {200_000, append(bytes.Clone(list), list...)},
		"no list":      {200_000, nil},
	} {
		if _, err := signed.NewReader(bytes.NewReader(image), tt.size, s, tt.list); !errors.Is(err, signed.ErrAltered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A file that is cut later is an error, not the end.
	r, err := signed.NewReader(bytes.NewReader(image[:150_000]), 200_000, s, list)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, 10), 190_000); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read behind a cut: %v", err)
	}
}

func TestHashRefuses(t *testing.T) {
	for _, size := range []int64{0, -1, signed.MaxSize + 1} {
		if _, _, err := signed.Hash(bytes.NewReader(nil), size); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
	}
	if _, _, err := signed.Hash(bytes.NewReader(make([]byte, 10)), 11); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is cut meanwhile: %v", err)
	}
}

// TestOpenSSH has OpenSSH make a signature, and verify one of ours.
func TestOpenSSH(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("needs ssh-keygen (openssh-client)")
	}
	dir := t.TempDir()
	run := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command(keygen, args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("ssh-keygen %v: %v", args, err)
		}
		return string(out)
	}
	run("", "-q", "-t", "ed25519", "-N", "", "-C", "build", "-f", "key")
	line, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := hash(t, content(1000))
	sig, err := signed.Parse([]byte(s.String() + run(s.String(), "-Y", "sign", "-n", signed.Namespace, "-f", "key")))
	if err != nil {
		t.Fatal(err)
	}
	key, err := signed.ParseKey(string(line))
	if err != nil {
		t.Fatal(err)
	}
	if by, err := sig.Verify([]signed.Key{*key}); err != nil || by.Comment != "build" {
		t.Errorf("OpenSSH's signature: %v, %v", by, err)
	}
	ours := signedtest.New("ours")
	for name, text := range map[string]string{"sig": ours.Armor(s.String(), signed.Namespace), "allowed": "ours " + ours.Line + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out := run(s.String(), "-Y", "verify", "-n", signed.Namespace, "-f", "allowed", "-I", "ours", "-s", "sig"); !strings.Contains(out, "Good") {
		t.Errorf("our signature: %s", out)
	}
}

// FuzzParse: whatever the head says, it is one that says the same again, and is within bounds.
func FuzzParse(f *testing.F) {
	key := signedtest.New("release")
	good := key.Head((&signed.Statement{Size: 5, Block: 4096}).String())
	token := signedtest.Token{Application: "ssh:", Flags: 1}
	f.Add([]byte(token.Ed25519("release").Head((&signed.Statement{Size: 5, Block: 4096}).String())))
	f.Add([]byte(token.ECDSA(f, "release").Head((&signed.Statement{Size: 5, Block: 4096}).String())))
	for _, s := range []string{good, good[:100], "", strings.Replace(good, "U1NI", "AAAA", 1)} {
		f.Add([]byte(s))
	}
	public, _ := signed.ParseKey(key.Line)
	f.Fuzz(func(t *testing.T, b []byte) {
		sig, err := signed.Parse(b)
		if err != nil {
			return
		}
		if !strings.HasPrefix(sig.Head, sig.Statement.String()) || len(sig.Head) > signed.MaxHead || sig.ListSize() > 16<<20 {
			t.Errorf("%q is taken for %+v", b, sig.Statement)
		}
		if _, err := sig.Verify([]signed.Key{*public}); err == nil && sig.Statement.String() != good[:len(sig.Statement.String())] {
			t.Errorf("%q is verified", b)
		}
	})
}

// BenchmarkReadAt reads an image in memory in order: as data is read, in blocks, and as metadata is, in pieces.
func BenchmarkReadAt(b *testing.B) {
	image := content(64 << 20)
	s, list, err := signed.Hash(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		b.Fatal(err)
	}
	checked, err := signed.NewReader(bytes.NewReader(image), int64(len(image)), s, list)
	if err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		name string
		r    io.ReaderAt
		n    int
	}{{"blocks", checked, 128 << 10}, {"pieces", checked, 3 << 10}, {"unchecked", bytes.NewReader(image), 128 << 10}} {
		b.Run(bb.name, func(b *testing.B) {
			p := make([]byte, bb.n)
			b.SetBytes(int64(bb.n))
			for i := 0; b.Loop(); i++ {
				if _, err := bb.r.ReadAt(p, int64(i*bb.n%(len(image)-bb.n))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
