package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

func TestBadImagesAreRefused(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	good := imageOf(t, "good", layerOf(t, file{"a", "x"}), layerOf(t, file{"b", "y"}))
	ref := h.push("app:1", good)
	m, _ := good.Manifest()
	raw, _ := good.RawManifest()
	config, _ := good.RawConfigFile()
	change := func(f func(map[string]any)) []byte {
		var doc map[string]any
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		f(doc)
		out, _ := json.Marshal(doc)
		return out
	}
	layerField := func(name string, value any) []byte {
		return change(func(d map[string]any) { d["layers"].([]any)[0].(map[string]any)[name] = value })
	}
	flipped := func(body []byte) []byte {
		body = bytes.Clone(body)
		body[len(body)/2] ^= 1
		return body
	}
	layer0, _ := good.Layers()
	stream, _ := layer0[0].Compressed()
	blob, _ := io.ReadAll(stream)
	for name, row := range map[string]struct {
		path string // suffix of the request that gets another answer
		body []byte
		mt   string
		kind fault.Kind
		says string
	}{
		"not JSON": {"/manifests/1", []byte("<html>"), "", fault.Invalid, "JSON"},
		"schema 1": {"/manifests/1", []byte(`{"schemaVersion":1,"fsLayers":[]}`), "",
			fault.Unimplemented, "schema 1"},
		"schema 1 by type": {"/manifests/1", []byte(`{}`), "application/vnd.docker.distribution.manifest.v1+prettyjws",
			fault.Unimplemented, "schema 1"},
		"no config": {"/manifests/1", []byte(`{"schemaVersion":2}`), "", fault.Invalid, "config"},
		"both at once": {"/manifests/1", change(func(d map[string]any) { d["manifests"] = []any{d["config"]} }),
			"", fault.Invalid, "ambiguous"},
		"type against body": {"/manifests/1",
			change(func(d map[string]any) { d["mediaType"] = "application/vnd.oci.image.index.v1+json" }), "",
			fault.Invalid, "calls itself"},
		"nydus layer": {"/manifests/1", layerField("mediaType", "application/vnd.oci.image.layer.nydus.blob.v1"),
			"", fault.Unimplemented, "nydus"},
		"encrypted layer": {"/manifests/1", layerField("mediaType",
			"application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "", fault.Unimplemented, "encrypted"},
		"layer path":    {"/manifests/1", layerField("digest", "sha256:../../etc"), "", fault.Invalid, "digest"},
		"negative size": {"/manifests/1", layerField("size", -5), "", fault.Invalid, "-5"},
		"wrong layer size": {"/manifests/1", layerField("size", m.Layers[0].Size-1), "", fault.Corrupt,
			m.Layers[0].Digest.String()},
		"other size": {"/manifests/1", layerField("size", m.Layers[0].Size+1), "", fault.Corrupt,
			m.Layers[0].Digest.String()},
		"one layer less": {"/manifests/1", change(func(d map[string]any) { d["layers"] = d["layers"].([]any)[:1] }),
			"", fault.Invalid, "2 layers"},
		"layers swapped": {"/manifests/1", change(func(d map[string]any) {
			l := d["layers"].([]any)
			l[0], l[1] = l[1], l[0]
		}), "", fault.Corrupt, "the image's config says"},
		"large config": {"/manifests/1",
			change(func(d map[string]any) { d["config"].(map[string]any)["size"] = 1 << 30 }), "",
			fault.Exhausted, "config"},
		"huge manifest": {"/manifests/1", bytes.Repeat([]byte(" "), registry.MaxManifest+1), "",
			fault.Exhausted, "larger"},
		"changed config": {m.Config.Digest.String(), flipped(config), "", fault.Corrupt, m.Config.Digest.String()},
		"changed layer":  {m.Layers[0].Digest.String(), flipped(blob), "", fault.Corrupt, "layer"},
		"missing layer":  {m.Layers[0].Digest.String(), nil, "", fault.NotFound, m.Layers[0].Digest.String()},
		"empty index":    {"/manifests/1", []byte(`{"schemaVersion":2,"manifests":[]}`), "", fault.NotFound, nodeArch},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			h.set(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, row.path) {
					return false
				}
				if row.body == nil {
					http.NotFound(w, r)
					return true
				}
				w.Header().Set("Content-Type", row.mt)
				w.Header().Set("Content-Length", fmt.Sprint(len(row.body)))
				w.Write(row.body)
				return true
			})
			_, err := s.Pull(t.Context(), ref, registry.Auth{})
			if fault.Of(err) != row.kind || !strings.Contains(fmt.Sprint(err), row.says) ||
				!strings.Contains(fmt.Sprint(err), ref) {
				t.Errorf("kind %q: %v", fault.Of(err), err)
			}
			assertEmpty(t, s)
		})
	}
}

func TestMalformedReferenceAndDeadRegistry(t *testing.T) {
	s := openStore(t, "")
	if _, err := s.Pull(t.Context(), "Not A Reference", registry.Auth{}); !errors.Is(err, fault.Invalid) ||
		!strings.Contains(err.Error(), "Not A Reference") {
		t.Errorf("%v", err)
	}
	if _, err := s.WatchPull(t.Context(), "Not A Reference", ""); !errors.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	_, err := s.Pull(t.Context(), "127.0.0.1:1/app:1", registry.Auth{})
	if !errors.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") ||
		!strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("%v", err)
	}
}
