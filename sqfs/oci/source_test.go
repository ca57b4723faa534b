package oci

import (
	"strings"
	"testing"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseSource(t *testing.T) {
	for in, want := range map[string]string{
		"ubuntu":                    "docker://docker.io/library/ubuntu:latest",
		"docker://ubuntu":           "docker://docker.io/library/ubuntu:latest",
		"docker://ubuntu:24.04":     "docker://docker.io/library/ubuntu:24.04",
		"docker://docker.io/ubuntu": "docker://docker.io/library/ubuntu:latest",
		"docker://registry-1.docker.io#library/ubuntu": "docker://docker.io/library/ubuntu:latest",
		"docker://index.docker.io/nvidia/cuda:12":      "docker://docker.io/nvidia/cuda:12",
		"nvidia/cuda:12":                                "docker://docker.io/nvidia/cuda:12",
		"nvcr.io#nvidia/pytorch:23.10-py3":              "docker://nvcr.io/nvidia/pytorch:23.10-py3",
		"docker://nvcr.io/nvidia/pytorch:23.10-py3":     "docker://nvcr.io/nvidia/pytorch:23.10-py3",
		"docker://$oauthtoken@nvcr.io#nvidia/pytorch:1": "docker://nvcr.io/nvidia/pytorch:1",
		"docker://me@corp.com@reg.corp.com/a/b":         "docker://reg.corp.com/a/b:latest",
		"docker://me@ubuntu:22":                         "docker://docker.io/library/ubuntu:22",
		"docker://localhost/a":                          "docker://localhost/a:latest",
		"docker://localhost:5000/a:b":                   "docker://localhost:5000/a:b",
		"docker://[::1]:5000/a":                         "docker://[::1]:5000/a:latest",
		"docker://REG.example.com/a":                    "docker://reg.example.com/a:latest",
		"docker://reg#a:1@sha256:" + hex64:              "docker://reg#a:1@sha256:" + hex64,
		"docker://a@sha256:" + hex64:                    "docker://docker.io/library/a@sha256:" + hex64,
		"docker://me@r.io/a@sha256:" + hex64:            "docker://r.io/a@sha256:" + hex64,
		"docker://r.io/a__b/c--d.e_f":                   "docker://r.io/a__b/c--d.e_f:latest",
		"oci:/a/b":                                      "oci:/a/b",
		"oci:dir:v1":                                    "oci:dir:v1",
		"oci:dir@sha256:" + hex64:                       "oci:dir@sha256:" + hex64,
		"oci-archive:a.tar:v1":                          "oci-archive:a.tar:v1",
		"docker-archive:a.tar:reg.io/x:v1":              "docker-archive:a.tar:reg.io/x:v1",
		"dockerd://ubuntu:1":                            "dockerd://ubuntu:1",
		"podman://localhost/x/y:1":                      "podman://localhost/x/y:1",
	} {
		s, err := ParseSource(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if s.String() != want {
			t.Errorf("%s is %s, want %s", in, s, want)
		}
		if strings.Contains(s.String(), "me@") || strings.Contains(s.String(), "$") {
			t.Errorf("%s shows its user: %s", in, s)
		}
	}
	for in, want := range map[string]string{
		"": "missing", "foo.sqsh": "looks like an image file", "./foo": "looks like a path", "foo.tar.gz": "looks like an archive",
		"/etc": "looks like a path", ".": "directory", "docker://": "missing", "docker://reg.io/": "missing",
		"docker://Ubuntu": `"ubuntu"`, "docker://me:s3cret@reg.io/a": "password", "docker://@reg.io/a": "no user",
		"docker://reg.io/a:": "tag", "docker://reg.io/a:-x": "tag", "docker://reg.io/a b": "no name", "docker://reg io/a": "no name",
		"docker://reg.io:99999/a": "no registry", "docker://reg.io:/a": "no registry", "docker://-x.io/a": "no registry",
		"docker://a@sha256:123": "digits", "docker://a@sha256:../../" + hex64[:58]: "no digit", "docker://a@sha256:" + strings.ToUpper(hex64): "no digit",
		"docker://reg.io/../a": "no name", "docker://reg.io/a//b": "no name", "docker://#a": "no registry",
		"https://reg.io/a": "docker://", "docker:ubuntu": "docker://IMAGE", "docker-daemon:x": "dockerd://", "containers-storage:x": "podman://",
		"tar:x": "no container image", "ftp://x": "unknown kind", "oci:": "directory", "oci-archive:": "file", "oci:x:": "no tag",
		"dockerd://": "needs the name", "dockerd://a b": "not allowed", "dockerd://../x": "no name", "dockerd://-x": "no name", "dockerd://a?b": "not allowed",
		"docker://a\nb": "control characters", "docker://r.io/" + strings.Repeat("a", 300): "too long",
	} {
		_, err := ParseSource(in)
		if err == nil {
			t.Errorf("%q: no error, want %q", in, want)
			continue
		}
		wantError(t, err, want)
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: the error shows the password: %v", in, err)
		}
	}
}

func TestDefaultName(t *testing.T) {
	for in, want := range map[string]string{
		"ubuntu":                           "ubuntu+latest.sqsh",
		"docker://nvcr.io#nvidia/cuda:12":  "nvidia+cuda+12.sqsh",
		"docker://library/x":               "x+latest.sqsh",
		"docker://r.io/library/x":          "library+x+latest.sqsh",
		"docker://x:1@sha256:" + hex64:     "x+sha256:" + hex64 + ".sqsh",
		"dockerd://a/b:1":                  "a+b+1.sqsh",
		"oci:/a/b/":                        "b.sqsh",
		"oci:/a/b:v1":                      "b+v1.sqsh",
		"oci:.":                            "image.sqsh",
		"oci-archive:/x/a.tar":             "a.sqsh",
		"docker-archive:a.tar:reg.io/x:v1": "a+reg.io+x:v1.sqsh",
	} {
		if got, err := DefaultName(in); err != nil || got != want {
			t.Errorf("%s is written to %s, %v, want %s", in, got, err, want)
		}
	}
	if _, err := DefaultName("x.sqsh"); err == nil {
		t.Error("no error")
	}
}

func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"docker://me@reg.io:5000#a/b:t@sha256:" + hex64, "oci:a:b", "dockerd://x", "[::1]:5/a", "docker://a@sha256:x", "@", "#", ":", "docker://u:p@h/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := ParseSource(in)
		if err != nil {
			return
		}
		again, err := ParseSource(s.String())
		if err != nil {
			t.Fatalf("%q is %q, which is not understood: %v", in, s, err)
		}
		s.User = ""
		if again != s {
			t.Fatalf("%q is %+v and then %+v", in, s, again)
		}
		name, err := DefaultName(in)
		if err != nil || strings.ContainsAny(name, "/\x00") || name == "" || name == ".." {
			t.Fatalf("%q: default name %q, %v", in, name, err)
		}
	})
}
