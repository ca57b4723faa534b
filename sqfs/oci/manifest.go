package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Limits of what a stranger may send.
const (
	maxManifest  = 4 << 20 // bytes, as registries and containerd have it
	maxConfig    = 8 << 20
	maxLayers    = 2048
	maxManifests = 2000    // entries of a list
	maxLists     = 16      // lists that are read to find one manifest
	maxLayerSize = 1 << 44 // bytes, compressed
)

// Media types. Layers are recognised by their contents; their type only says what is none.
const (
	typeIndex        = "application/vnd.oci.image.index.v1+json"
	typeManifest     = "application/vnd.oci.image.manifest.v1+json"
	typeConfig       = "application/vnd.oci.image.config.v1+json"
	typeDockerList   = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDocker       = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerConfig = "application/vnd.docker.container.image.v1+json"
)

// descriptor refers to contents by their digest: OCI image specification, descriptor.md.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform"`
	Annotations map[string]string `json:"annotations"`

	loose bool // of an archive that does not say the digest: only length and diff id are checked
}

func (d descriptor) check(max int64) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > max {
		return fmt.Errorf("oci: %s: %d bytes are not allowed, at most %d", d.Digest, d.Size, max)
	}
	return nil
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

func (p platform) String() string {
	return p.OS + "/" + p.Architecture + suffix("/", p.Variant)
}

// variant is what an architecture is without saying so.
func (p platform) variant() string {
	if p.Variant == "" {
		return map[string]string{"arm64": "v8", "arm": "v7", "amd64": "v1"}[p.Architecture]
	}
	return p.Variant
}

// document is a manifest or a list of manifests.
type document struct {
	mediaType string
	digest    string
	Manifests []descriptor
	Config    descriptor
	Layers    []descriptor
}

func (d *document) list() bool { return d.mediaType == typeIndex || d.mediaType == typeDockerList }

// parseDocument reads a manifest or list. Which of both it is, its fields say; and neither
// they, nor its own media type, nor the one under which it was served may contradict each
// other: what one program takes for a list and another for a manifest has two meanings under
// one digest (CVE-2021-41190).
func parseDocument(body []byte, served string) (*document, error) {
	var raw struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(body, &raw); err != nil {
		return nil, fmt.Errorf("oci: manifest: %w", err)
	}
	has := func(m json.RawMessage) bool { return m != nil && !bytes.Equal(m, []byte("null")) }
	d := &document{}
	var types []string
	var err error
	switch {
	case raw.SchemaVersion == 1 || has(raw.FSLayers):
		return nil, errors.New("oci: the manifest is of schema 1, which is no longer supported: push the image again with a present tool")
	case has(raw.Manifests) && (has(raw.Layers) || has(raw.Config)):
		return nil, errors.New("oci: the manifest is a list of manifests as well: refused")
	case has(raw.Manifests):
		types = []string{typeIndex, typeDockerList}
		err = json.Unmarshal(raw.Manifests, &d.Manifests)
	case has(raw.Config):
		types = []string{typeManifest, typeDocker}
		if err = json.Unmarshal(raw.Config, &d.Config); err == nil && has(raw.Layers) {
			err = json.Unmarshal(raw.Layers, &d.Layers)
		}
	default:
		return nil, errors.New("oci: the manifest names neither layers nor manifests")
	}
	if err != nil {
		return nil, fmt.Errorf("oci: manifest: %w", err)
	}
	d.mediaType = types[0]
	served, _, _ = strings.Cut(served, ";")
	known := []string{typeIndex, typeManifest, typeDockerList, typeDocker}
	for _, t := range []string{strings.TrimSpace(served), raw.MediaType} {
		if t != "" && !slices.Contains(types, t) && (t == raw.MediaType || slices.Contains(known, t)) {
			return nil, fmt.Errorf("oci: the manifest is said to be %.100q, which it is not: refused", t)
		}
	}
	return d, d.check()
}

func (d *document) check() error {
	if len(d.Manifests) > maxManifests || len(d.Layers) > maxLayers {
		return fmt.Errorf("oci: the manifest has %d layers and %d manifests: at most %d and %d", len(d.Layers), len(d.Manifests), maxLayers, maxManifests)
	}
	for _, m := range d.Manifests {
		if err := m.check(maxManifest); err != nil {
			return err
		}
	}
	if d.list() {
		return nil
	}
	switch t := d.Config.MediaType; t {
	case typeConfig, typeDockerConfig, "":
	default:
		return fmt.Errorf("oci: this is no container image: its configuration is %.100q", t)
	}
	if err := d.Config.check(maxConfig); err != nil {
		return err
	}
	for i, l := range d.Layers {
		if err := l.check(maxLayerSize); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if !isLayerType(l.MediaType) {
			return fmt.Errorf("oci: layer %d is %.100q, which is no layer of a container image", i, l.MediaType)
		}
	}
	return nil
}

// isLayerType knows layers that are tar archives. Foreign layers are among them: they are
// asked of the registry, never of the addresses that a manifest may name.
func isLayerType(t string) bool {
	switch t {
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd", "":
		return true
	}
	return isForeign(t) || strings.HasPrefix(t, "application/vnd.oci.image.layer.v1.tar") && !strings.HasSuffix(t, "+encrypted")
}

func isForeign(t string) bool {
	return strings.HasPrefix(t, "application/vnd.docker.image.rootfs.foreign.diff.tar") ||
		strings.HasPrefix(t, "application/vnd.oci.image.layer.nondistributable.v1.tar")
}

// parseArch understands what Go, Docker, Debian and uname call an architecture, with "linux/"
// before it and a variant behind it if need be.
func parseArch(s string) (platform, error) {
	p := platform{OS: "linux"}
	if s == "" {
		p.Architecture = runtime.GOARCH
		return p, nil
	}
	arch := strings.TrimPrefix(strings.ToLower(s), "linux/")
	p.Architecture, p.Variant, _ = strings.Cut(arch, "/")
	known := map[string]platform{
		"x86_64": {Architecture: "amd64"}, "x86-64": {Architecture: "amd64"},
		"aarch64": {Architecture: "arm64"}, "armv8": {Architecture: "arm64"},
		"armv7l": {Architecture: "arm", Variant: "v7"}, "armhf": {Architecture: "arm", Variant: "v7"},
		"armv6l": {Architecture: "arm", Variant: "v6"}, "armel": {Architecture: "arm", Variant: "v5"},
		"i386": {Architecture: "386"}, "i686": {Architecture: "386"}, "x86": {Architecture: "386"},
		"ppc64el": {Architecture: "ppc64le"}, "loongarch64": {Architecture: "loong64"},
		"mips64el": {Architecture: "mips64le"}, "mipsel": {Architecture: "mipsle"},
	}
	if k, ok := known[p.Architecture]; ok {
		p.Architecture = k.Architecture
		if p.Variant == "" {
			p.Variant = k.Variant
		}
	}
	if strings.Contains(p.Variant, "/") || p.Architecture == "" {
		return p, fmt.Errorf("oci: %q is no architecture: amd64, arm64, ppc64le, arm/v7, x86_64, aarch64 are", s)
	}
	return p, nil
}

// fit says how well contents for platform p run on one that is wanted: 0 not at all.
func (p platform) fit(want platform) int {
	switch {
	case p.OS != want.OS || p.Architecture != want.Architecture:
		return 0
	case p.Variant == want.Variant:
		return 4
	case p.variant() == want.variant():
		return 3
	case want.Variant != "" && p.variant() < want.variant(): // older instructions run
		return 2
	case want.Variant == "":
		return 1
	}
	return 0
}

// isAttestation recognises what BuildKit puts beside images: it has no platform.
func isAttestation(d descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// chooser finds the manifest of a platform in lists, which may name lists.
type chooser struct {
	get   func(ctx context.Context, d descriptor) (*document, error)
	want  platform
	lists int
	has   []string
}

// choose returns nil if nothing fits.
func (c *chooser) choose(ctx context.Context, list *document) (*document, error) {
	if c.lists++; c.lists > maxLists {
		return nil, errors.New("oci: too many lists of manifests in lists of manifests")
	}
	var best descriptor
	var bare, lists []descriptor
	score := 0
	for _, d := range list.Manifests {
		switch {
		case isAttestation(d):
		case d.MediaType == typeIndex || d.MediaType == typeDockerList:
			lists = append(lists, d)
		case d.Platform == nil || d.Platform.Architecture == "":
			bare = append(bare, d)
		default:
			if s := d.Platform.String(); !slices.Contains(c.has, s) && len(c.has) < 100 {
				c.has = append(c.has, s)
			}
			if f := d.Platform.fit(c.want); f > score {
				best, score = d, f
			}
		}
	}
	if score == 0 && len(bare) == 1 {
		best, score = bare[0], 1
	}
	if score > 0 {
		return c.get(ctx, best)
	}
	for _, d := range lists {
		sub, err := c.get(ctx, d)
		if err != nil {
			return nil, err
		}
		if !sub.list() {
			return sub, nil
		}
		if m, err := c.choose(ctx, sub); m != nil || err != nil {
			return m, err
		}
	}
	return nil, nil
}

func (c *chooser) none() error {
	if len(c.has) == 0 {
		return errors.New("oci: the list names no image")
	}
	return fmt.Errorf("oci: there is no image for %s: there is %.1000s", c.want, strings.Join(c.has, ", "))
}

// imageConfig is the configuration of an image: OCI image specification, config.md.
type imageConfig struct {
	platform
	Created lenientTime `json:"created"`
	Config  Config      `json:"config"`
	RootFS  struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []struct {
		Created    lenientTime `json:"created"`
		CreatedBy  string      `json:"created_by"`
		Author     string      `json:"author"`
		Comment    string      `json:"comment"`
		EmptyLayer bool        `json:"empty_layer"`
	} `json:"history"`
}

// lenientTime is a time that is not worth an error: tools write all sorts of nothing.
type lenientTime struct{ time.Time }

func (t *lenientTime) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		if v, err := time.Parse(time.RFC3339Nano, s); err == nil && v.Year() > 0 && v.Year() < 10000 {
			t.Time = v.UTC()
		}
	}
	return nil
}

// parseConfig reads the configuration of an image with so many layers.
func parseConfig(body []byte, layers int) (*imageConfig, error) {
	c := &imageConfig{}
	if err := json.Unmarshal(body, c); err != nil {
		return nil, fmt.Errorf("oci: configuration of the image: %w", err)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("oci: the image has %d layers, and its configuration is for %d", layers, len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, err
		}
	}
	return c, c.Config.check()
}

// check refuses what no process can be given.
func (c *Config) check() error {
	lists := [][]string{c.Env, c.Entrypoint, c.Cmd, c.Shell, {c.WorkingDir, c.User, c.StopSignal}}
	for v := range c.Volumes {
		lists = append(lists, []string{v})
	}
	for _, list := range lists {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return errors.New("oci: the configuration of the image has a NUL in a string")
			}
		}
	}
	return nil
}
