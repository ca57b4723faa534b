package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registry is an image in a registry. Its mirrors are asked first.
type registry struct {
	src    Source
	o      *Options
	cache  *cache // may be nil
	places []*place
}

// place is one registry that has the image.
type place struct {
	host   string // HOST[:PORT]
	repo   string
	mirror bool
	o      *Options
	policy *policy
	creds  credentials

	mu     sync.Mutex
	client *http.Client // nil before the first request went well
}

func openRegistry(src Source, o *Options, c *cache) (store, error) {
	r := &registry{src: src, o: o, cache: c}
	for reg, mirrors := range o.Mirrors {
		if canon, err := checkRegistry(reg); err != nil || canon != src.Registry {
			continue
		}
		for _, m := range mirrors {
			host, prefix, _ := strings.Cut(strings.TrimSuffix(m, "/"), "/")
			host, err := checkRegistry(host)
			if err != nil {
				return nil, fmt.Errorf("mirror of %s: %w", src.Registry, err)
			}
			repo := src.Repository
			if prefix != "" {
				repo = prefix + "/" + repo
			}
			r.places = append(r.places, &place{host: host, repo: repo, mirror: true})
		}
	}
	r.places = append(r.places, &place{host: src.Registry, repo: src.Repository})
	for _, p := range r.places {
		p.o = o
		p.policy = newPolicy(*o, p.host)
		user := src.User
		if p.mirror {
			user = ""
		}
		var err error
		if p.creds, err = findCredentials(p.host, p.repo, user); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *registry) Close() error {
	for _, p := range r.places {
		p.policy.close()
	}
	return nil
}

// api is the host that serves a registry's API.
func (p *place) api() string {
	if p.host == hub {
		return name.DefaultRegistry
	}
	return p.host
}

// connect asks the registry what it wants for authentication, and gets a token if it wants one.
func (p *place) connect(ctx context.Context) (*http.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		return p.client, nil
	}
	var opts []name.Option
	if p.o.insecure(p.api()) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(p.api(), opts...)
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	auth, err := transport.NewWithContext(ctx, reg, p.creds.auth(), p.policy, []string{"repository:" + p.repo + ":pull"})
	if err != nil {
		return nil, err
	}
	p.client = &http.Client{
		Transport: &sameHost{host: p.api(), auth: auth, plain: p.policy},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= 10 {
				return permanent("oci: the registry redirects again and again")
			}
			return p.policy.allows(req.URL)
		},
	}
	return p.client, nil
}

// sameHost gives requests to the registry its credentials, and none to any other host that it
// redirects to.
type sameHost struct {
	host        string
	auth, plain http.RoundTripper
}

func (s *sameHost) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.EqualFold(req.URL.Host, s.host) {
		return s.auth.RoundTrip(req)
	}
	if len(req.Header["Authorization"])+len(req.Header["Cookie"]) > 0 {
		req = req.Clone(req.Context())
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
	}
	return s.plain.RoundTrip(req)
}

// get sends a request for a part of the image, and returns an answer 200 or 206, or an error
// for people.
func (p *place) get(ctx context.Context, method, what string, header http.Header) (*http.Response, error) {
	client, err := p.connect(ctx)
	if err != nil {
		return nil, p.explain(ctx, err)
	}
	u := &url.URL{Scheme: "https", Host: p.api(), Path: "/v2/" + p.repo + "/" + what}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, p.explain(ctx, err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		wait := retryAfter(resp)
		if wait > maxRetryAfter {
			err = fmt.Errorf("%w (it asks to wait for %s)", err, wait)
		}
		return nil, p.explain(ctx, err)
	}
	return resp, nil
}

// answerError is what a registry answered to a request, in words.
type answerError struct {
	status int
	text   string
}

func (e *answerError) Error() string { return e.text }

// explain makes an error that says who answered what, and what to do about it. Nothing of the
// credentials is in it, nor of addresses that carry signatures.
func (p *place) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var te *transport.Error
	if !errors.As(err, &te) {
		text := p.creds.redact(cleanError(err).Error())
		if strings.Contains(text, "no token in bearer response") {
			text = "the token server gave no token"
		}
		if strings.Contains(text, "HTTP response to HTTPS client") {
			text = "it speaks plain HTTP, and is not named as insecure"
		}
		failed := fmt.Errorf("oci: registry %s: %s", p.host, text)
		if !isTransient(err) {
			failed = permanentError{failed}
		}
		return failed
	}
	var said []string
	for _, d := range te.Errors {
		said = append(said, strings.TrimSuffix(string(d.Code)+": "+d.Message, ": "))
	}
	answer := strconv.Itoa(te.StatusCode) + " " + http.StatusText(te.StatusCode)
	if len(said) > 0 {
		answer += ": " + p.creds.redact(printable(strings.Join(said, "; "), 300))
	}
	if i := strings.LastIndex(err.Error(), "(it asks to wait"); i >= 0 {
		answer += " " + err.Error()[i:]
	}
	e := &answerError{status: te.StatusCode, text: fmt.Sprintf("oci: registry %s answered %s", p.host, answer)}
	switch te.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.text += " (" + p.creds.String() + ")"
		return permanentError{e}
	case http.StatusNotFound:
		e.text += fmt.Sprintf(" for %s", p.repo)
		if !p.creds.found() {
			e.text += " (it may exist for those who log in: " + p.creds.String() + ")"
		}
		return permanentError{e}
	case http.StatusTooManyRequests:
		if !p.creds.found() {
			e.text += " (without credentials: registries allow more to those who log in)"
		}
	}
	if te.StatusCode < 500 && te.StatusCode != http.StatusTooManyRequests && te.StatusCode != http.StatusRequestTimeout {
		return permanentError{e}
	}
	return e
}

// isTransient says whether an error may pass: one of the line, not of what came over it.
func isTransient(err error) bool {
	var line *url.Error
	if !errors.As(err, &line) {
		return false
	}
	_, again := retryable(&http.Request{}, nil, err)
	return again
}

// printable makes what a stranger wrote fit to be shown on a terminal.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x202e {
			return ' '
		}
		return r
	}, s)
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return s
}

// each asks one place after the other, mirrors first, until one gives what is wanted.
func (r *registry) each(ctx context.Context, f func(*place) error) error {
	for _, p := range r.places {
		err := f(p)
		if err == nil || !p.mirror || ctx.Err() != nil {
			return err
		}
		r.o.say("mirror %s: %s", p.host, strings.TrimPrefix(err.Error(), "oci: "))
	}
	return nil
}

var accept = http.Header{"Accept": {strings.Join([]string{typeIndex, typeManifest, typeDockerList, typeDocker}, ", ")}}

// root returns the manifest or list that the source names.
func (r *registry) root(ctx context.Context) (*document, error) {
	if r.src.Digest != "" {
		return r.manifest(ctx, descriptor{Digest: r.src.Digest})
	}
	var d *document
	err := r.each(ctx, func(p *place) (err error) {
		if r.cache != nil { // the tag may point at what is known: a registry counts no HEAD as a pull
			if digest := p.look(ctx, r.src.Tag); digest != "" {
				if d, err = r.known(digest); d != nil || err != nil {
					return err
				}
			}
		}
		d, err = r.fetchManifest(ctx, p, r.src.Tag, "")
		return err
	})
	return d, err
}

// manifest returns the manifest or list with a digest.
func (r *registry) manifest(ctx context.Context, desc descriptor) (*document, error) {
	d, err := r.known(desc.Digest)
	if d != nil || err != nil {
		return d, err
	}
	err = r.each(ctx, func(p *place) (err error) {
		d, err = r.fetchManifest(ctx, p, desc.Digest, desc.Digest)
		return err
	})
	return d, err
}

// known returns a manifest that the cache has, nil if it has none.
func (r *registry) known(digest string) (*document, error) {
	if r.cache == nil {
		return nil, nil
	}
	body := r.cache.small(digest, maxManifest)
	if body == nil {
		return nil, nil
	}
	d, err := parseDocument(body, "")
	if err != nil {
		return nil, err
	}
	d.digest = digest
	return d, nil
}

// look asks for the digest behind a tag, "" if the registry does not say.
func (p *place) look(ctx context.Context, tag string) string {
	resp, err := p.get(ctx, http.MethodHead, "manifests/"+tag, accept)
	if err != nil {
		return ""
	}
	resp.Body.Close()
	return resp.Header.Get("Docker-Content-Digest")
}

func (r *registry) fetchManifest(ctx context.Context, p *place, ref, digest string) (*document, error) {
	var body []byte
	var served, said string
	err := p.o.again(ctx, func() error {
		resp, err := p.get(ctx, http.MethodGet, "manifests/"+ref, accept)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		served, said = resp.Header.Get("Content-Type"), resp.Header.Get("Docker-Content-Digest")
		body, err = readSmall(resp.Body, maxManifest)
		return err
	})
	if err != nil {
		return nil, err
	}
	if digest == "" {
		digest = digestOf(body)
		if checkDigest(said) == nil { // of what is sent, whoever computes it
			digest = said
		}
	}
	if err = verify(body, digest); err != nil {
		return nil, fmt.Errorf("manifest from %s: %w", p.host, err)
	}
	d, err := parseDocument(body, served)
	if err != nil {
		return nil, err
	}
	if d.digest = digest; r.cache != nil {
		r.cache.keepSmall(digest, body)
	}
	return d, nil
}

// again does something that is over quickly until it works, or cannot.
func (o *Options) again(ctx context.Context, f func() error) error {
	for try := 0; ; try++ {
		err := f()
		var perm permanentError
		var answer *answerError // the policy tried again already
		if err == nil || errors.As(err, &perm) || errors.As(err, &answer) || try >= o.retries() || ctx.Err() != nil {
			return err
		}
		o.say("%s: trying again", strings.TrimPrefix(err.Error(), "oci: "))
		if err := o.pause(ctx, try, 0); err != nil {
			return err
		}
	}
}

// readSmall reads all of what may have at most so many bytes.
func readSmall(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, permanent("oci: more than %d bytes: refused", limit)
	}
	return b, nil
}

// blob opens contents from a byte on, at the first place that has them.
func (r *registry) blob(ctx context.Context, d descriptor, from int64) (io.ReadCloser, error) {
	var body io.ReadCloser
	err := r.each(ctx, func(p *place) (err error) {
		body, err = p.blob(ctx, d, from)
		var answer *answerError
		if errors.As(err, &answer) && answer.status == http.StatusNotFound && isForeign(d.MediaType) {
			err = permanent("oci: the registry does not have %s, a foreign layer that its manifest would have fetched elsewhere: refused", d.Digest)
		}
		return err
	})
	return body, err
}

func (p *place) blob(ctx context.Context, d descriptor, from int64) (io.ReadCloser, error) {
	header := http.Header{"Accept": {"*/*"}}
	if from > 0 { // some registries know no ranges without an end
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, d.Size-1))
	}
	resp, err := p.get(ctx, http.MethodGet, "blobs/"+d.Digest, header)
	var answer *answerError
	if from > 0 && errors.As(err, &answer) && answer.status == http.StatusRequestedRangeNotSatisfiable {
		header.Del("Range")
		resp, err = p.get(ctx, http.MethodGet, "blobs/"+d.Digest, header)
	}
	if err != nil {
		return nil, err
	}
	at := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		var end int64
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &at, &end); n != 2 || at != from {
			resp.Body.Close()
			return nil, permanent("oci: registry %s sent another part of %s than was asked for", p.host, d.Digest)
		}
	}
	if n := resp.ContentLength; n >= 0 && at+n != d.Size {
		resp.Body.Close()
		return nil, permanent("oci: registry %s: %s has %d bytes, and the manifest says %d", p.host, d.Digest, at+n, d.Size)
	}
	if at < from { // it knows no ranges
		if _, err := io.CopyN(io.Discard, resp.Body, from-at); err != nil {
			resp.Body.Close()
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("it ended before byte %d", from)
			}
			return nil, fmt.Errorf("oci: registry %s: %w", p.host, err)
		}
	}
	return resp.Body, nil
}
