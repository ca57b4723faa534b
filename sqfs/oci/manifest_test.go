package oci

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseDocument(t *testing.T) {
	desc := `{"mediaType":"` + typeConfig + `","digest":"sha256:` + hex64 + `","size":5}`
	layerDesc := func(typ, digest string, size int64) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, typ, digest, size)
	}
	good := "sha256:" + hex64
	tarType := "application/vnd.oci.image.layer.v1.tar"
	manifest := func(layers ...string) string {
		return `{"schemaVersion":2,"config":` + desc + `,"layers":[` + strings.Join(layers, ",") + `]}`
	}
	for _, c := range []struct{ body, served, want string }{
		{manifest(), typeManifest, ""},
		{manifest(layerDesc(tarType+"+gzip", good, 1)), "application/octet-stream", ""},
		{manifest(layerDesc("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", good, 1)), typeDocker, ""},
		{`{"schemaVersion":2,"manifests":[]}`, typeIndex + "; charset=utf-8", ""},
		{`{"schemaVersion":2,"manifests":null,"config":` + desc + `}`, "", ""},
		{`{"schemaVersion":2,"manifests":[],"layers":[]}`, "", "as well"},
		{`{"schemaVersion":2,"manifests":[],"config":` + desc + `}`, "", "as well"},
		{`{"mediaType":"` + typeManifest + `","manifests":[]}`, "", "which it is not"},
		{`{"mediaType":"` + typeIndex + `","config":` + desc + `}`, "", "which it is not"},
		{`{"mediaType":"x/y","config":` + desc + `}`, "", "which it is not"},
		{manifest(), typeIndex, "which it is not"},
		{`{"schemaVersion":1,"fsLayers":[]}`, "", "schema 1"},
		{`{}`, "", "neither"},
		{`[]`, "", "manifest"},
		{manifest(layerDesc(tarType, "sha256:../../../x", 1)), "", "digest"},
		{manifest(layerDesc(tarType, "md5:"+hex64, 1)), "", "digest"},
		{manifest(layerDesc(tarType, good, -1)), "", "not allowed"},
		{manifest(layerDesc(tarType, good, 1<<50)), "", "not allowed"},
		{manifest(layerDesc(tarType+"+encrypted", good, 1)), "", "no layer"},
		{manifest(layerDesc("application/vnd.cncf.helm.chart", good, 1)), "", "no layer"},
		{manifest(strings.Split(strings.Repeat(layerDesc(tarType, good, 1)+";", maxLayers+1), ";")[:maxLayers+1]...), "", "at most"},
		{`{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + good + `","size":1}}`, "", "no container image"},
	} {
		_, err := parseDocument([]byte(c.body), c.served)
		if c.want == "" {
			if err != nil {
				t.Errorf("%.200s: %v", c.body, err)
			}
			continue
		}
		wantError(t, err, c.want)
	}
}

func TestParseConfig(t *testing.T) {
	good := `{"os":"linux","created":"10000-01-01","config":{"Labels":null,"Volumes":{"/x":{"a":1}}},"rootfs":{"diff_ids":["sha256:` + hex64 + `"]}}`
	c, err := parseConfig([]byte(good), 1)
	if err != nil || !c.Created.IsZero() || len(c.Config.Volumes) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	for body, want := range map[string]string{
		`{"rootfs":{"diff_ids":[]}}`:                                   "1 layers",
		`{"rootfs":{"diff_ids":["sha256:.."]}}`:                        "digest",
		strings.Replace(good, `null`, `5`, 1):                          "configuration",
		strings.Replace(good, `"Labels"`, `"Env":["A=\u0000"],"L"`, 1): "NUL",
		`nonsense`: "configuration",
	} {
		_, err := parseConfig([]byte(body), 1)
		wantError(t, err, want)
	}
}

func TestParseArch(t *testing.T) {
	for in, want := range map[string]string{
		"x86_64": "linux/amd64", "aarch64": "linux/arm64", "arm64/v8": "linux/arm64/v8", "armv7l": "linux/arm/v7", "armhf": "linux/arm/v7",
		"ppc64le": "linux/ppc64le", "ppc64el": "linux/ppc64le", "linux/amd64": "linux/amd64", "i686": "linux/386", "ARM64": "linux/arm64",
	} {
		if p, err := parseArch(in); err != nil || p.String() != want {
			t.Errorf("%s is %s, %v, want %s", in, p, err, want)
		}
	}
	for _, bad := range []string{"/", "a/b/c", "windows/amd64/x"} {
		if p, err := parseArch(bad); err == nil {
			t.Errorf("%s is %s", bad, p)
		}
	}
}

// list makes an index, and puts it where the registry has manifests.
func (s *server) list(t *testing.T, repo, tag string, entries ...map[string]any) []byte {
	b := encode(t, map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": entries})
	s.put(t, "/v2/"+repo+"/manifests/"+tag, typeIndex, b)
	return b
}

func entry(typ string, body []byte, platform ...string) map[string]any {
	e := map[string]any{"mediaType": typ, "digest": digestOf(body), "size": len(body)}
	if len(platform) > 0 {
		p := map[string]string{"os": platform[0], "architecture": platform[1]}
		if len(platform) > 2 {
			p["variant"] = platform[2]
		}
		e["platform"] = p
	}
	return e
}

func TestChoose(t *testing.T) {
	bare(t)
	s := serve(t, false)
	var m [6]*picture
	for n := range m {
		m[n] = paint(t, Config{Env: []string{fmt.Sprint("N=", n)}}, tarOf(t, uint64(n), 10))
		m[n].config = []byte(strings.Replace(string(m[n].config), `"amd64"`, `"`+[]string{"amd64", "arm64", "arm", "arm", "unknown", "amd64"}[n]+`"`, 1))
		m[n].blobs[digestOf(m[n].config)] = m[n].config
		m[n].seal(t)
		s.push(t, "x", fmt.Sprint("m", n), m[n])
	}
	attested := entry(typeManifest, m[4].manifest, "unknown", "unknown")
	list := s.list(t, "x", "list", attested,
		entry(typeManifest, m[5].manifest, "linux", "amd64", "v3"),
		entry(typeManifest, m[0].manifest, "linux", "amd64"),
		entry(typeManifest, m[1].manifest, "linux", "arm64", "v8"),
		entry(typeManifest, m[2].manifest, "linux", "arm", "v6"),
		entry(typeManifest, m[3].manifest, "linux", "arm", "v7"),
		entry(typeManifest, m[4].manifest, "windows", "amd64"))
	nested := s.list(t, "x", "nested", entry(typeIndex, list))
	s.list(t, "x", "bare", attested, entry(typeManifest, m[0].manifest))
	s.list(t, "x", "attested", attested)
	for _, c := range []struct {
		tag, arch string
		want      int
	}{
		{"list", "amd64", 0},
		{"list", "x86_64", 0},
		{"list", "amd64/v3", 5},
		{"list", "aarch64", 1},
		{"list", "arm64", 1},
		{"list", "arm", 3},
		{"list", "arm/v6", 2},
		{"list", "armv7l", 3},
		{"list", "arm/v8", 2},
		{"nested", "arm64", 1},
		{"bare", "amd64", 0},
	} {
		o := quick(s)
		o.Arch = c.arch
		img := open(t, "docker://"+s.host+"/x:"+c.tag, o)
		if got := img.Record.Config.Env[0]; got != fmt.Sprint("N=", c.want) {
			t.Errorf("%s of %s is %s, want %d", c.arch, c.tag, got, c.want)
		}
		if img.Record.Index == "" || img.Record.Digest != digestOf(m[c.want].manifest) {
			t.Errorf("record %+v", img.Record)
		}
	}
	for _, c := range []struct{ tag, arch, want string }{
		{"list", "s390x", "there is linux/amd64/v3, linux/amd64, linux/arm64/v8"},
		{"nested", "s390x", "linux/arm64/v8"},
		{"attested", "amd64", "names no image"},
		{"bare", "arm64", "is for linux/amd64"},
		{"m1", "amd64", "is for linux/arm64"},
	} {
		o := quick(s)
		o.Arch = c.arch
		_, err := Open(within(t), "docker://"+s.host+"/x:"+c.tag, o)
		wantError(t, err, c.want)
	}
	// Without a wish, an image of another kind of machine is a matter of a warning.
	o := quick(s)
	o.Arch = ""
	heard := listen(&o)
	open(t, "docker://"+s.host+"/x:m4", o)
	if !strings.Contains(heard(), "linux/unknown") {
		t.Errorf("messages %q", heard())
	}
	// Lists in lists end.
	for n := range 20 {
		nested = s.list(t, "x", fmt.Sprint("deep", n), entry(typeIndex, nested))
	}
	_, err := Open(within(t), "docker://"+s.host+"/x:deep19", quick(s))
	wantError(t, err, "too many lists")
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:`+hex64+`","size":1},"layers":[{"digest":"sha256:`+hex64+`","size":1}]}`), typeManifest)
	f.Add([]byte(`{"manifests":[{"digest":"sha256:`+hex64+`","platform":{"os":"linux","architecture":"amd64"}}]}`), typeIndex)
	f.Fuzz(func(t *testing.T, body []byte, served string) {
		d, err := parseDocument(body, served)
		if err != nil {
			return
		}
		for _, l := range append(append(d.Layers, d.Manifests...), d.Config) {
			if !d.list() && checkDigest(l.Digest) != nil {
				t.Fatalf("digest %q of %+v", l.Digest, d)
			}
		}
	})
}
