package registry

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"
)

const (
	service = "test-registry"
	issuer  = "test-issuer"
)

// Tokens is a server that gives tokens for registries to whoever knows User and Password.
type Tokens struct {
	URL    string
	pair   *Pair
	server *httptest.Server
	life   time.Duration
	given  atomic.Int64
}

// NewTokens starts a server whose tokens are valid for life. The caller closes it.
func NewTokens(life time.Duration) (*Tokens, error) {
	pair, err := NewCA("tokens")
	if err != nil {
		return nil, err
	}
	t := &Tokens{pair: pair, life: life}
	t.server = httptest.NewServer(t)
	// By name: clients refuse to send passwords to literal addresses of private networks.
	t.URL = strings.Replace(t.server.URL, "127.0.0.1", "localhost", 1) + "/token"
	return t, nil
}

// Close ends the server.
func (t *Tokens) Close() { t.server.Close() }

// Host returns HOST:PORT of the server.
func (t *Tokens) Host() string {
	return strings.TrimSuffix(strings.TrimPrefix(t.URL, "http://"), "/token")
}

// Given returns how many tokens there were.
func (t *Tokens) Given() int64 { return t.given.Load() }

// ServeHTTP answers as the registry's documentation demands, docs/spec/auth/token.md.
func (t *Tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	if !ok || user != User || password != Password {
		http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
		return
	}
	var access []map[string]any
	for _, scope := range r.URL.Query()["scope"] {
		// TYPE:NAME:ACTION,… and a name may have a port in it.
		kind, rest, _ := strings.Cut(scope, ":")
		if i := strings.LastIndexByte(rest, ':'); i >= 0 {
			access = append(access, map[string]any{"type": kind, "name": rest[:i], "actions": []string{"pull"}})
		}
	}
	now := time.Now()
	token, err := t.sign(map[string]any{
		"iss": issuer, "sub": user, "aud": service, "access": access, "jti": fmt.Sprint(t.given.Add(1)),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(t.life).Unix(),
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": int(t.life.Seconds()), "issued_at": now.UTC()})
}

// sign makes a JSON web token, RFC 7519, by RS256.
func (t *Tokens) sign(claims map[string]any) (string, error) {
	header := map[string]any{"typ": "JWT", "alg": "RS256", "x5c": []string{base64.StdEncoding.EncodeToString(t.pair.cert.Raw)}}
	var parts []string
	for _, part := range []any{header, claims} {
		text, err := json.Marshal(part)
		if err != nil {
			return "", err
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(text))
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ".")))
	signature, err := rsa.SignPKCS1v15(rand.Reader, t.pair.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return strings.Join(append(parts, base64.RawURLEncoding.EncodeToString(signature)), "."), nil
}
