package oci

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type faultFunc = func(w http.ResponseWriter, r *http.Request, next http.Handler) bool

// onBlob is a fault that only blobs have.
func onBlob(f func(w http.ResponseWriter, r *http.Request, next http.Handler) bool) faultFunc {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return strings.Contains(r.URL.Path, "/blobs/") && f(w, r, next)
	}
}

// body gets what the registry would have answered.
func body(r *http.Request, next http.Handler) (*httptest.ResponseRecorder, []byte) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	return rec, rec.Body.Bytes()
}

func TestRegistry(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{Env: []string{"A=b"}, Entrypoint: []string{"/bin/x"}}, tarOf(t, 1, 300_000), tarOf(t, 2, 100), tarOf(t, 3, 5000))
	s.push(t, "team/thing", "v1", p)
	o := quick(s)
	o.UserAgent = "squire/test"
	for _, name := range []string{"docker://%s/team/thing:v1", "docker://%s#team/thing:v1", "docker://%s/team/thing@" + digestOf(p.manifest)} {
		img := open(t, fmt.Sprintf(name, s.host), o)
		readAll(t, img, p)
		r := img.Record
		if r.Digest != digestOf(p.manifest) || r.ConfigDigest != digestOf(p.config) || r.Platform != "linux/amd64" || len(r.Layers) != 3 ||
			r.Created.Year() != 2024 || len(r.History) != 1 || r.Config.Env[0] != "A=b" || !strings.HasPrefix(r.Source, "docker://"+s.host+"/team/thing") {
			t.Errorf("record %+v", r)
		}
		if img.Size() == 0 {
			t.Error("nothing to transfer")
		}
	}
	if len(s.agents) != 2 || !s.agents["squire/test"] { // the other one is of push
		t.Errorf("user agents %v", s.agents)
	}
}

func TestRegistryNotInsecure(t *testing.T) {
	bare(t)
	s := serve(t, false)
	s.push(t, "x", "latest", paint(t, Config{}, tarOf(t, 1, 10)))
	o := quick(nil)
	_, err := Open(within(t), "docker://"+s.host+"/x", o)
	wantError(t, err, "not named as insecure")
	tlsServer := serve(t, true)
	_, err = Open(within(t), "docker://"+tlsServer.host+"/x", o)
	wantError(t, err, "certificate")
	if n := tlsServer.count("manifests"); n != 0 {
		t.Errorf("%d requests to a registry without a known certificate", n)
	}
}

// What names no registry is an error, not an option that does nothing.
func TestOptionsName(t *testing.T) {
	bare(t)
	for _, o := range []Options{
		{Insecure: []string{"http://localhost:5000"}},
		{Mirrors: map[string][]string{"https://docker.io": {"mirror.example.org"}}},
		{Mirrors: map[string][]string{"docker.io": {"https://mirror.example.org"}}},
	} {
		o.Retries = -1
		_, err := Open(within(t), "docker://127.0.0.1:1/x", o)
		wantError(t, err, "is no registry")
	}
	o := Options{Insecure: []string{"[::1]", "plain.example.org"}}
	for host, want := range map[string]bool{"[::1]:5000": true, "[::1]": true, "[::2]:5000": false, "plain.example.org:80": true, "example.org": false} {
		if o.insecure(host) != want {
			t.Errorf("%s: %v", host, !want)
		}
	}
}

func TestRegistryTLS(t *testing.T) {
	home := bare(t)
	s := serve(t, true)
	p := paint(t, Config{}, tarOf(t, 1, 10))
	s.push(t, "x", "latest", p)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	writeFiles(t, home, map[string]string{"ca.pem": ca, "empty.pem": "nothing"})
	o := quick(nil)
	o.CACerts = []string{filepath.Join(home, "ca.pem")}
	readAll(t, open(t, "docker://"+s.host+"/x", o), p)
	o.CACerts = []string{filepath.Join(home, "empty.pem")}
	_, err := Open(within(t), "docker://"+s.host+"/x", o)
	wantError(t, err, "no certificate in PEM form")
	o.CACerts = nil
	writeFiles(t, home, map[string]string{"certs.d/" + s.host + "/ca.crt": ca})
	readAll(t, open(t, "docker://"+s.host+"/x", o), p)
	// A registry that wants to know who asks.
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	closed := httptest.NewUnstartedServer(s.Config.Handler)
	closed.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	closed.Config.ErrorLog = s.Config.ErrorLog
	closed.StartTLS()
	defer closed.Close()
	host := strings.TrimPrefix(closed.URL, "https://")
	writeFiles(t, home, map[string]string{"certs.d/" + host + "/ca.crt": ca})
	_, err = Open(within(t), "docker://"+host+"/x", o)
	wantError(t, err, "certificate required")
	writeFiles(t, home, map[string]string{
		"certs.d/" + host + "/me.cert": ca,
		"certs.d/" + host + "/me.key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	})
	readAll(t, open(t, "docker://"+host+"/x", o), p)
	o.Insecure = []string{"127.0.0.1"} // any port
	certsDirs = nil
	readAll(t, open(t, "docker://"+s.host+"/x", o), p)
}

// TestResume cuts each transfer after at most a part of the layer.
func TestResume(t *testing.T) {
	bare(t)
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges=%v", ranges), func(t *testing.T) {
			s := serve(t, false)
			p := paint(t, Config{}, tarOf(t, 1, 3<<20), tarOf(t, 2, 2<<20))
			s.push(t, "x", "latest", p)
			var part atomic.Int64
			part.Store(300_000)
			s.setFault(onBlob(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
				_, b := body(noRange(r), next)
				from := 0
				if ranges {
					fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
				}
				if from > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(b)-from))
				if from > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				end := len(b)
				if n := int(part.Add(200_000)); ranges {
					end = min(end, from+300_000)
				} else {
					end = min(end, n)
				}
				w.Write(b[from:end])
				return true // Content-Length says more: the connection is cut
			}))
			o := quick(s)
			heard := listen(&o)
			readAll(t, open(t, "docker://"+s.host+"/x", o), p)
			if n := s.count("bytes="); ranges && n < 10 {
				t.Errorf("%d requests for ranges", n)
			}
			if !strings.Contains(heard(), "going on at byte") {
				t.Error("nothing was said of it")
			}
		})
	}
}

func noRange(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	return r
}

// TestLyingRegistry has registries send what they should not.
func TestLyingRegistry(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 200_000))
	s.push(t, "x", "latest", p)
	o := quick(s)
	o.Retries = 2
	layerDigest := p.descs[0]["digest"].(string)
	layers := func(f faultFunc) faultFunc {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			return strings.Contains(r.URL.Path, layerDigest) && f(w, r, next)
		}
	}
	for name, c := range map[string]struct {
		fault faultFunc
		want  []string
	}{
		"other contents": {func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			_, b := body(r, next)
			b[len(b)-20] ^= 1
			w.Write(b)
			return true
		}, nil},
		"more": {func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			_, b := body(r, next)
			w.Write(append(b, 'x'))
			return true
		}, []string{"the manifest says"}},
		"endless": {func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			_, b := body(r, next)
			for r.Context().Err() == nil {
				w.Write(b)
				w.(http.Flusher).Flush()
			}
			return true
		}, []string{"more than", "refused"}},
		"short": {func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			_, b := body(noRange(r), next)
			w.Header().Set("Content-Length", strconv.Itoa(len(b)/2))
			w.Write(b[:len(b)/2])
			return true
		}, []string{"the manifest says"}},
		"short and chunked": {func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			_, b := body(noRange(r), next)
			w.(http.Flusher).Flush()
			w.Write(b[:1000])
			return true
		}, []string{"it ended "}},
		"stalls": {func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			_, b := body(noRange(r), next)
			w.Write(b[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, []string{"nothing came any more"}},
		"crawls": {func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			_, b := body(noRange(r), next)
			for i := 0; r.Context().Err() == nil; i++ {
				w.Write(b[i : i+1])
				w.(http.Flusher).Flush()
				time.Sleep(5 * time.Millisecond)
			}
			return true
		}, []string{"nothing came any more"}},
		"never answers": {func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			<-r.Context().Done()
			return true
		}, []string{"nothing came any more"}},
		"not there": {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.WriteHeader(http.StatusNotFound)
			return true
		}, []string{"404"}},
		"busy": {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, []string{"503"}},
		"busy for a day": {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, []string{"429", "24h"}},
		"loop": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}, []string{"again and again"}},
		"metadata": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			http.Redirect(w, r, "https://169.254.169.254/latest", http.StatusFound)
			return true
		}, []string{"link-local"}},
		"file": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
			return true
		}, []string{"refused"}},
		"plain": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			http.Redirect(w, r, "http://elsewhere.invalid/x", http.StatusFound)
			return true
		}, []string{"not named as insecure"}},
	} {
		t.Run(name, func(t *testing.T) {
			s.setFault(layers(c.fault))
			defer s.setFault(nil)
			for _, cached := range []bool{false, true} {
				o := o
				if cached {
					o.CacheDir = privateDir(t)
				}
				img := open(t, "docker://"+s.host+"/x", o)
				if slices.Contains(c.want, "nothing came any more") { // the others must not hear of a busy machine, nor the manifest
					for _, p := range img.store.(*registry).places {
						p.policy.o.Timeout = 100 * time.Millisecond
					}
				}
				err := tryAll(img, p)
				wantError(t, err, append(c.want, "layer 1 of 1")...)
				img.Close()
				if cached && img.Size() == 0 {
					t.Error("it is in the cache")
				}
			}
		})
	}
}

// TestBusy counts how often a registry that is busy at times is asked again.
func TestBusy(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1000), tarOf(t, 2, 1000))
	s.push(t, "x", "latest", p)
	var n atomic.Int64
	s.setFault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		if n.Add(1)%3 == 0 {
			return false
		}
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	o := quick(s)
	readAll(t, open(t, "docker://"+s.host+"/x", o), p)
	o.Retries = -1
	_, err := Open(within(t), "docker://"+s.host+"/x", o)
	wantError(t, err, "429")
}

// TestCredentialsStayHome redirects to another host, which must see none.
func TestCredentialsStayHome(t *testing.T) {
	home := bare(t)
	s, other := serve(t, false), serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1000))
	for _, x := range []*server{s, other} {
		x.push(t, "x", "latest", p)
	}
	var leaked, asked atomic.Int64
	other.setFault(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		asked.Add(1)
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" || strings.Contains(r.URL.String(), "s3cret") {
			leaked.Add(1)
		}
		return false
	})
	for _, auth := range []string{"basic", "token"} {
		t.Run(auth, func(t *testing.T) {
			redirect := func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				if strings.Contains(r.URL.Path, "/blobs/") {
					http.SetCookie(w, &http.Cookie{Name: "session", Value: "s3cret"})
					http.Redirect(w, r, other.URL+r.URL.Path+"?X-Signature=s1gned", http.StatusTemporaryRedirect)
					return true
				}
				return false
			}
			s.setFault(guard(s, auth, "me", "s3cret", redirect))
			writeFiles(t, home, map[string]string{".config/enroot/.credentials": "machine 127.0.0.1 login me password s3cret\n"})
			o := quick(s)
			o.Insecure = append(o.Insecure, other.host, "localhost")
			before := asked.Load()
			readAll(t, open(t, "docker://me@"+s.host+"/x", o), p)
			if asked.Load() == before || leaked.Load() > 0 {
				t.Errorf("%d requests to the other host, %d with credentials", asked.Load()-before, leaked.Load())
			}
		})
	}
	// An error of the other host shows no signature.
	s.setFault(onBlob(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if strings.HasSuffix(r.URL.Path, digestOf(p.config)) {
			return false
		}
		http.Redirect(w, r, "http://"+other.host+r.URL.Path+"?X-Signature=s1gned", http.StatusTemporaryRedirect)
		return true
	}))
	for _, f := range []faultFunc{
		func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		},
		func(_ http.ResponseWriter, _ *http.Request, _ http.Handler) bool { panic(http.ErrAbortHandler) },
	} {
		other.setFault(f)
		o := quick(s)
		o.Insecure = append(o.Insecure, other.host)
		o.Retries = 1
		heard := listen(&o)
		err := tryAll(open(t, "docker://"+s.host+"/x", o), p)
		if err == nil || strings.Contains(err.Error()+heard(), "s1gned") {
			t.Errorf("error %v, messages %s", err, heard())
		}
	}
}

// guard asks for credentials before it lets a request through to next.
func guard(s *server, how, user, secret string, then faultFunc) faultFunc {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		u, p, _ := r.BasicAuth()
		basic := u == user && p == secret
		if r.URL.Path == "/token" {
			if !basic {
				w.WriteHeader(http.StatusUnauthorized)
				io.WriteString(w, `{"errors":[{"code":"DENIED","message":"wrong secret `+p+`"}]}`)
				return true
			}
			io.WriteString(w, `{"token":"t0ken"}`)
			return true
		}
		switch {
		case how == "basic" && basic, how == "token" && r.Header.Get("Authorization") == "Bearer t0ken":
			return then != nil && then(w, r, next)
		case how == "basic":
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="it",scope="repository:x:pull"`)
		}
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"log in"}]}`)
		return true
	}
}

func TestDenied(t *testing.T) {
	home := bare(t)
	s := serve(t, false)
	s.push(t, "x", "latest", paint(t, Config{}, tarOf(t, 1, 10)))
	for _, how := range []string{"basic", "token"} {
		s.setFault(guard(s, how, "me", "right", nil))
		o := quick(s)
		_, err := Open(within(t), "docker://"+s.host+"/x", o)
		wantError(t, err, "401", "without credentials", ".docker/config.json", ".credentials", "docker login")
		writeFiles(t, home, map[string]string{".config/enroot/.credentials": "machine 127.0.0.1 login me password wrong-s3cret\n"})
		_, err = Open(within(t), "docker://"+s.host+"/x", o)
		wantError(t, err, "401", "credentials in "+home+"/.config/enroot/.credentials")
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("secret in %v", err)
		}
		_, err = Open(within(t), "docker://you@"+s.host+"/x", o)
		wantError(t, err, "no credentials of the user")
		writeFiles(t, home, map[string]string{".config/enroot/.credentials": ""})
	}
}

// TestRealm has registries send clients for tokens to places where there are none for them.
func TestRealm(t *testing.T) {
	home := bare(t)
	writeFiles(t, home, map[string]string{".config/enroot/.credentials": "machine 127.0.0.1 login me password s3cret\n"})
	s := serve(t, false)
	for _, realm := range []string{"http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://elsewhere.invalid/token", "https://[fd00:ec2::254]/", "gopher://x/", "https://169.254.169.254/"} {
		s.setFault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="it"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		})
		o := quick(s)
		_, err := Open(within(t), "docker://"+s.host+"/x", o)
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", realm, err)
		}
		var perm permanentError
		if !errors.As(err, &perm) {
			t.Errorf("%s: tried again: %v", realm, err)
		}
	}
}

func TestMirrors(t *testing.T) {
	home := bare(t)
	origin, mirror := serve(t, false), serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1000), tarOf(t, 2, 1000))
	origin.push(t, "x", "latest", p)
	o := quick(origin)
	o.Insecure = append(o.Insecure, mirror.host)
	o.Mirrors = map[string][]string{origin.host: {mirror.host + "/prefix"}}
	heard := listen(&o)
	writeFiles(t, home, map[string]string{".docker/config.json": `{"auths":{"` + origin.host + `":{"auth":"bWU6czNjcmV0"}}}`})
	var leaked atomic.Int64
	mirror.setFault(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		return false
	})
	readAll(t, open(t, "docker://"+origin.host+"/x", o), p) // the mirror has nothing
	if !strings.Contains(heard(), "mirror "+mirror.host) {
		t.Errorf("messages %q", heard())
	}
	mirror.push(t, "prefix/x", "latest", p)
	before := origin.count("/x/")
	readAll(t, open(t, "docker://"+origin.host+"/x", o), p)
	if n := origin.count("/x/") - before; n != 0 || leaked.Load() != 0 {
		t.Errorf("%d requests to the origin, %d with credentials to the mirror", n, leaked.Load())
	}
	// A mirror cannot pass off other contents under a digest.
	mirror.put(t, "/v2/prefix/x/manifests/evil", typeManifest, paintOther(t).manifest)
	mirror.setFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/sha256:") {
			w.Header().Set("Content-Type", typeManifest)
			w.Write(paintOther(t).manifest)
			return true
		}
		return false
	})
	img := open(t, "docker://"+origin.host+"/x@"+digestOf(p.manifest), o)
	if img.Record.Digest != digestOf(p.manifest) || len(img.Record.Layers) != 2 {
		t.Errorf("record %+v", img.Record)
	}
}

func paintOther(t testing.TB) *picture { return paint(t, Config{}, tarOf(t, 9, 9)) }

// TestTokens has a token server of its own, whose tokens are good for a few requests.
func TestTokens(t *testing.T) {
	home := bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1000), tarOf(t, 2, 1000), tarOf(t, 3, 1000))
	s.push(t, "team/x", "latest", p)
	var given, refused atomic.Int64
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, secret, _ := r.BasicAuth()
		identity := ""
		if r.Method == http.MethodPost && r.ParseForm() == nil {
			identity = r.PostForm.Get("refresh_token")
		}
		scope := r.FormValue("scope")
		if u+":"+secret != "$oauthtoken:k3y" && identity != "1dentity" || scope != "repository:team/x:pull" || r.FormValue("service") != "it" {
			refused.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"access_token":"t%d"}`, given.Add(1))
	}))
	defer tokens.Close()
	realm := strings.Replace(tokens.URL, "127.0.0.1", "localhost", 1) + "/auth"
	var uses atomic.Int64
	s.setFault(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", given.Load()) && uses.Add(1)%3 != 0 {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="it",scope="repository:team/x:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	o := quick(s)
	_, err := Open(within(t), "docker://"+s.host+"/team/x", o)
	wantError(t, err, "not named as insecure") // the token server
	o.Insecure = append(o.Insecure, "localhost")
	for name, files := range map[string]map[string]string{
		"netrc":    {".config/enroot/.credentials": "machine 127.0.0.1 login $oauthtoken password k3y\n", ".docker/config.json": "{}"},
		"identity": {".docker/config.json": `{"auths":{"` + s.host + `":{"auth":"eDp5","identitytoken":"1dentity"}}}`},
	} {
		writeFiles(t, home, files)
		before := given.Load()
		img := open(t, "docker://"+s.host+"/team/x", o)
		for n, l := range img.Layers() { // one after the other: the tokens of the test are not for several
			r, err := l.Open(within(t))
			if err != nil {
				t.Fatalf("%s: layer %d: %v", name, n, err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Errorf("%s: layer %d: %v", name, n, err)
			}
			r.Close()
		}
		if given.Load()-before < 2 {
			t.Errorf("%s: %d tokens were given", name, given.Load()-before)
		}
	}
	if refused.Load() > 0 {
		t.Errorf("%d requests for tokens were refused", refused.Load())
	}
}

// TestForeign has a layer that its manifest would have fetched from somewhere else.
func TestForeign(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1000))
	s.push(t, "x", "has", p)
	p.descs[0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	p.descs[0]["urls"] = []string{"http://169.254.169.254/x"}
	p.seal(t)
	s.push(t, "x", "foreign", p)
	readAll(t, open(t, "docker://"+s.host+"/x:foreign", quick(s)), p)
	s.setFault(onBlob(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if strings.HasSuffix(r.URL.Path, digestOf(p.config)) {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	}))
	wantError(t, tryAll(open(t, "docker://"+s.host+"/x:foreign", quick(s)), p), "foreign layer")
}
