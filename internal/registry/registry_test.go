package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestAuthentication makes sure that the kinds of registries are what they are called: an import that succeeds
// against one that asks nothing would say nothing.
func TestAuthentication(t *testing.T) {
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.Skip("needs docker-registry: run testdata/deps.sh")
	}
	ca, err := NewCA("test CA")
	if err != nil {
		t.Fatal(err)
	}
	server, err := NewServer(ca)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := NewTokens(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	tests := []struct {
		name              string
		opts              Options
		anonymous, logged int // status
	}{
		{"plain", Options{}, 200, 200},
		{"passwords", Options{Passwords: true}, 401, 200},
		{"tokens", Options{Tokens: tokens}, 401, 200},
		{"TLS", Options{TLS: server}, 200, 200},
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.Cert)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Storage = t.TempDir()
			r, err := Start(tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Stop()
			scheme := "http://"
			if tt.opts.TLS != nil {
				scheme = "https://"
			}
			ask := func(authorize func(*http.Request)) *http.Response {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+r.Address+"/v2/", nil)
				if err != nil {
					t.Fatal(err)
				}
				authorize(req)
				res, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				return res
			}
			first := ask(func(*http.Request) {})
			if first.StatusCode != tt.anonymous {
				t.Errorf("anonymous: %s", first.Status)
			}
			if res := ask(func(req *http.Request) { req.SetBasicAuth(User, "wrong") }); res.StatusCode != tt.anonymous {
				t.Errorf("wrong password: %s", res.Status)
			}
			if res := ask(func(req *http.Request) { login(t, client, first, req) }); res.StatusCode != tt.logged {
				t.Errorf("logged in: %s", res.Status)
			}
			if !strings.Contains(r.Log(), "GET /v2/") {
				t.Errorf("the log has no request: %s", r.Log())
			}
		})
	}
}

// login does what the answer to an anonymous request wants.
func login(t *testing.T, client *http.Client, answer *http.Response, req *http.Request) {
	t.Helper()
	challenge := answer.Header.Get("WWW-Authenticate")
	if !strings.HasPrefix(challenge, "Bearer ") {
		req.SetBasicAuth(User, Password)
		return
	}
	m := regexp.MustCompile(`realm="([^"]*)",service="([^"]*)"`).FindStringSubmatch(challenge)
	if m == nil {
		t.Fatalf("challenge %q", challenge)
	}
	ask, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m[1]+"?service="+m[2], nil)
	if err != nil {
		t.Fatal(err)
	}
	ask.SetBasicAuth(User, Password)
	res, err := client.Do(ask)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var token struct{ Token string }
	if err := json.NewDecoder(res.Body).Decode(&token); err != nil || token.Token == "" {
		t.Fatalf("token %q: %s, %v", token.Token, res.Status, err)
	}
	req.Header.Set("Authorization", "Bearer "+token.Token)
}
