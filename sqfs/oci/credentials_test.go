package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCredentialsHomeless(t *testing.T) {
	bare(t)
	for _, name := range []string{"HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "ENROOT_CONFIG_PATH"} {
		t.Setenv(name, "")
	}
	got, err := findCredentials("reg.io", "x", "")
	if err != nil || got.found() || !strings.Contains(got.String(), "HOME is not set") {
		t.Errorf("%v, %v", &got, err)
	}
	if _, err = findCredentials("reg.io", "x", "me"); err == nil || !strings.Contains(err.Error(), "HOME is not set") {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	home := bare(t)
	bin := t.TempDir()
	helper := "#!/bin/sh\nread host\n[ \"$host\" = helped.io ] && echo '{\"ServerURL\":\"helped.io\",\"Username\":\"<token>\",\"Secret\":\"1dentity\"}' && exit\necho 'credentials not found in native keychain' >&2; exit 1\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("NGC_KEY", "k3y")
	writeFiles(t, home, map[string]string{
		".docker/config.json": `{"auths":{"https://index.docker.io/v1/":{"auth":"ZG9ja2VyOnNlY3JldA=="},"reg.io:5000":{"auth":"YTpi"},
			"both.io":{"auth":"ZG9ja2VyOnNlY3JldA=="}},"credHelpers":{"helped.io":"test","gone.io":"missing","refused.io":"test"}}`,
		".config/containers/auth.json": `{"auths":{"pod.io/team":{"auth":"dGVhbTpwb2Q="},"pod.io":{"auth":"YWxsOnBvZA=="}}}`,
		".config/enroot/.credentials": "# a comment\nmachine nvcr.io login $oauthtoken password $NGC_KEY\n" +
			"machine multi.io login one password first\nmachine multi.io login two password $(echo sec; echo ond | tr -d x)\n" +
			"machine registry-1.docker.io login enroot password x\nmachine both.io login enroot password x\n" +
			"machine spread.io\n  login s\n  password p q\nmachine cmd.io login c password $(printf '%s %s' \"a b\" c)\nmachine bad.io login c password $(exit 3)\n" +
			"machine gone.io login g password h\n",
	})
	for _, c := range []struct{ host, repo, user, want, file string }{
		{hub, "library/x", "", "docker:secret", "config.json"},
		{hub, "library/x", "enroot", "enroot:x", ".credentials"},
		{"reg.io:5000", "x", "", "a:b", "config.json"},
		{"reg.io", "x", "", ":", ""},
		{"helped.io", "x", "", "token 1dentity", "config.json"},
		{"gone.io", "x", "", "g:h", ".credentials"},
		{"refused.io", "x", "", ":", ""},
		{"pod.io", "team/x", "", "team:pod", "auth.json"},
		{"pod.io", "other/x", "", "all:pod", "auth.json"},
		{"both.io", "x", "", "docker:secret", "config.json"},
		{"both.io", "x", "enroot", "enroot:x", ".credentials"},
		{"nvcr.io", "nvidia/x", "", "$oauthtoken:k3y", ".credentials"},
		{"nvcr.io:443", "nvidia/x", "$oauthtoken", "$oauthtoken:k3y", ".credentials"},
		{"multi.io", "x", "", "one:first", ".credentials"},
		{"multi.io", "x", "two", "two:sec\nond", ".credentials"},
		{"spread.io", "x", "", "s:p", ".credentials"},
		{"cmd.io", "x", "", "c:a b c", ".credentials"},
	} {
		got, err := findCredentials(c.host, c.repo, c.user)
		if err != nil {
			t.Errorf("%s: %v", c.host, err)
			continue
		}
		secret := got.config.Username + ":" + got.config.Password
		if got.config.IdentityToken != "" {
			secret = "token " + got.config.IdentityToken
		}
		if secret != c.want || !strings.HasSuffix(got.source, c.file) {
			t.Errorf("%s as %q: %q of %s, want %q of %s", c.host, c.user, secret, got.source, c.want, c.file)
		}
	}
	_, err := findCredentials("bad.io", "x", "")
	wantError(t, err, "exit status 3")
	_, err = findCredentials("multi.io", "x", "three")
	wantError(t, err, "multi.io", ".credentials")
	if strings.Contains(err.Error(), "three") {
		t.Errorf("the user is in %v", err)
	}
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, "auth.json"))
	writeFiles(t, home, map[string]string{"auth.json": `{"auths":{"reg.io:5000":{"auth":"YzpkAA=="}}}`})
	if got, err := findCredentials("reg.io:5000", "x", ""); err != nil || got.config.Username != "c" {
		t.Errorf("%+v, %v", got, err)
	}
	writeFiles(t, home, map[string]string{"auth.json": `nonsense`})
	if got, err := findCredentials("reg.io:5000", "x", ""); err != nil || got.config.Username != "a" || !strings.Contains(strings.Join(got.looked, " "), "no configuration") {
		t.Errorf("%+v, %v", got, err)
	}
}

// What is for no machine that is named goes to none, Docker Hub included.
func TestNetrcUnnamed(t *testing.T) {
	home := bare(t)
	writeFiles(t, home, map[string]string{".config/enroot/.credentials": "machine\n  split.io login me password s3cret\n" +
		"machine a.io login me password mine\ndefault login anonymous password s3cret\n"})
	for host, want := range map[string]string{hub: ":", "split.io": ":", "a.io": "me:mine"} {
		got, err := findCredentials(host, "x", "")
		if secret := got.config.Username + ":" + got.config.Password; err != nil || secret != want {
			t.Errorf("%s: %q, %v, want %q", host, secret, err, want)
		}
	}
}

func TestRedact(t *testing.T) {
	c := credentials{}
	c.config.Username, c.config.Password = "me", "s3cret"
	if got := c.redact("Basic bWU6czNjcmV0, s3cret"); strings.Contains(got, "s3cret") || strings.Contains(got, "bWU6czNjcmV0") {
		t.Error(got)
	}
}

func FuzzNetrc(f *testing.F) {
	f.Add("machine a login b password c\nmachine d login e password $(x y)\n# c\nmachine\nlogin\npassword $")
	f.Fuzz(func(t *testing.T, s string) {
		for _, m := range parseNetrc(s) {
			for _, v := range []string{m.name, m.login, m.password} {
				if strings.Contains(v, "\n") || !strings.Contains(s, v) {
					t.Fatalf("%q from %q", v, s)
				}
			}
			if strings.ContainsAny(m.name+m.login, " \t") {
				t.Fatalf("%+v", m)
			}
		}
	})
}

func TestNetrcOrder(t *testing.T) {
	got := parseNetrc("machine a password p login l machine b login m password q")
	want := []machine{{"a", "l", "p"}, {"b", "m", "q"}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
