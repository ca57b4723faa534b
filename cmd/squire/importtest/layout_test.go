package importtest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// Media types of the OCI image specification.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// layout is an OCI layout: a directory of blobs, and a list of images by name.
type layout struct {
	dir    string
	images []descriptor
}

// descriptor points at a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func newLayout(t *testing.T, dir string) *layout {
	t.Helper()
	l := &layout{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

// blob adds a blob.
func (l *layout) blob(t *testing.T, mediaType string, data []byte) descriptor {
	t.Helper()
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	if err := os.WriteFile(filepath.Join(l.dir, "blobs", "sha256", sum), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: int64(len(data))}
}

func (l *layout) json(t *testing.T, mediaType string, v any) descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return l.blob(t, mediaType, data)
}

// tag gives a blob a name, in place of an older one.
func (l *layout) tag(t *testing.T, name string, d descriptor) {
	t.Helper()
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": name}
	kept := l.images[:0]
	for _, i := range l.images {
		if i.Annotations["org.opencontainers.image.ref.name"] != name {
			kept = append(kept, i)
		}
	}
	l.images = append(kept, d)
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": l.images})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// config is the configuration of an image, what of it concerns containers.
type config map[string]any

// image adds an image of archives, each compressed by a function of compressors in turn, and returns its manifest.
func (l *layout) image(t *testing.T, arch string, c config, archives [][]byte, compressors ...string) descriptor {
	t.Helper()
	layers, diffIDs, history := []descriptor{}, []string{}, []map[string]any{}
	for i, a := range archives {
		diffIDs = append(diffIDs, fmt.Sprintf("sha256:%x", sha256.Sum256(a)))
		history = append(history, map[string]any{"created": "2024-02-03T04:05:06Z", "created_by": fmt.Sprintf("step %d", i)})
		comp := compressors[i%len(compressors)]
		suffix := "+" + comp
		if comp == "" {
			suffix = ""
		}
		layers = append(layers, l.blob(t, typeLayer+suffix, compress(t, comp, a)))
	}
	if c == nil {
		c = config{}
	}
	conf := l.json(t, typeConfig, map[string]any{
		"architecture": arch, "os": "linux", "created": "2024-02-03T04:05:06Z", "config": c,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}, "history": history,
	})
	d := l.json(t, typeManifest, map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": conf, "layers": layers})
	d.Platform = map[string]string{"os": "linux", "architecture": arch}
	return d
}

// index adds a list of images for several architectures.
func (l *layout) index(t *testing.T, manifests ...descriptor) descriptor {
	t.Helper()
	return l.json(t, typeIndex, map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": manifests})
}

func compress(t *testing.T, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch how {
	case "":
		return data
	case "gzip":
		w := gzip.NewWriter(&b)
		_, err = w.Write(data)
		w.Close()
	case "zstd":
		w, err1 := zstd.NewWriter(&b)
		if err1 != nil {
			t.Fatal(err1)
		}
		_, err = w.Write(data)
		w.Close()
	default:
		t.Fatalf("compressor %q", how)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// compressed adds an image of one layer that is no good: what it would expand to is not known.
func (l *layout) compressed(t *testing.T, layer []byte) descriptor {
	t.Helper()
	d := l.blob(t, typeLayer+"+gzip", layer)
	conf := l.json(t, typeConfig, map[string]any{
		"architecture": "amd64", "os": "linux", "config": config{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%064d", 0)}},
	})
	m := l.json(t, typeManifest, map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": conf, "layers": []descriptor{d}})
	m.Platform = map[string]string{"os": "linux", "architecture": "amd64"}
	return m
}
