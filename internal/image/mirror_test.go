package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// mirrored opens a store for which registry.example is h, behind the given mirror.
func mirrored(t *testing.T, mirror, h *hub) *Store {
	t.Helper()
	certs := t.TempDir()
	dir := filepath.Join(certs, "registry.example")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
		h.addr, mirror.addr)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return openStore(t, "", func(o *Options) {
		o.Registry = registry.Options{CertsDirs: []string{certs}, Limits: registry.Limits{Stall: time.Second}}
	})
}

func TestCorruptMirrorIsAbandonedForTheRegistry(t *testing.T) {
	needRoot(t)
	for name, change := range map[string]func(p []byte) []byte{
		"a bit":     func(p []byte) []byte { p[len(p)/2] ^= 1; return p },
		"cut off":   func(p []byte) []byte { return p[:len(p)/2] },
		"more":      func(p []byte) []byte { return append(p, "more"...) },
		"a login":   func([]byte) []byte { return []byte("<html>log in here</html>") },
		"no bytes":  func([]byte) []byte { return nil },
		"all zeros": func(p []byte) []byte { return make([]byte, len(p)) },
	} {
		t.Run(name, func(t *testing.T) {
			good, bad := newHub(t), newHub(t)
			img := imageOf(t, "x", layerOf(t, file{"a", strings.Repeat("a lot of it ", 10_000)}),
				layerOf(t, file{"b", "b"}))
			good.push("app:1", img)
			bad.push("app:1", img)
			layers, _ := img.Layers()
			first, _ := layers[0].Digest()
			packed := blobBytes(t, layers[0])
			bad.set(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/blobs/"+first.String()) {
					return false
				}
				w.Write(change(append([]byte(nil), packed...)))
				return true
			})
			s := mirrored(t, bad, good)
			got := pull(t, s, "registry.example/app:1")
			if fileIn(t, s, got, "a") != strings.Repeat("a lot of it ", 10_000) {
				t.Error("the file is wrong")
			}
			assertNoTempFiles(t, s)
		})
	}
}

func TestPullOutlivesItsCallersDeadline(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "x", layerOf(t, file{"a", "b"})))
	gate := make(chan struct{})
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		<-gate
		return false
	})
	s := openStore(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, ref, registry.Auth{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { close(gate) })
	pull(t, s, ref)
	if n := len(h.take("/manifests/")); n != 1 {
		t.Errorf("%d manifests were fetched, the retry was to join", n)
	}
}

func TestPinnedByPattern(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "", func(o *Options) { o.Pinned = []string{h.addr + "/*/keep:*"} })
	for _, row := range []struct {
		repo string
		want bool
	}{{"a/keep:1", true}, {"a/keep:2", true}, {"a/b/keep:1", false}, {"a/lose:1", false}} {
		ref := h.push(row.repo, imageOf(t, row.repo, layerOf(t, file{"a", row.repo})))
		if got := pull(t, s, ref); got.Pinned != row.want {
			t.Errorf("%s: pinned %v", row.repo, got.Pinned)
		}
	}
}

// A mirror whose answer for a tag is not an image for this node is abandoned for the registry. So
// is each of two mirrors with a corrupt layer. Without a good host, the error names the bad ones.
func TestOddMirrorIsAbandonedForTheRegistry(t *testing.T) {
	needRoot(t)
	foreign := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` +
		strings.Repeat("a", 64) + `","size":5,"platform":{"os":"linux","architecture":"s390x"}}]}`
	for name, row := range map[string]struct {
		at   string // part of the path that is answered oddly
		body string
	}{
		"a web page":       {"/manifests/1", "<html>log in</html>"},
		"an error":         {"/manifests/1", `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`},
		"nothing":          {"/manifests/1", ""},
		"schema 1":         {"/manifests/1", `{"schemaVersion":1,"fsLayers":[]}`},
		"for others":       {"/manifests/1", foreign},
		"any blob":         {"/blobs/", "this is not the blob"},
		"any blob, longer": {"/blobs/", strings.Repeat("this is not the blob ", 1000)},
	} {
		t.Run(name, func(t *testing.T) {
			good, bad := newHub(t), newHub(t)
			img := imageOf(t, "x", layerOf(t, file{"a", "of the registry"}))
			good.push("app:1", img)
			bad.push("app:1", img)
			bad.set(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, row.at) {
					return false
				}
				w.Write([]byte(row.body))
				return true
			})
			s := mirrored(t, bad, good)
			got := pull(t, s, "registry.example/app:1")
			if fileIn(t, s, got, "a") != "of the registry" {
				t.Error("the file is wrong")
			}
			assertNoTempFiles(t, s)
			_, err := mirrored(t, bad, bad).Pull(t.Context(), "registry.example/app:1", registry.Auth{})
			if err == nil || !strings.Contains(err.Error(), bad.addr) {
				t.Errorf("without a good host: %v", err)
			}
		})
	}
}

func TestSeveralCorruptMirrors(t *testing.T) {
	needRoot(t)
	good := newHub(t)
	img := imageOf(t, "x", layerOf(t, file{"a", "of the registry"}))
	good.push("app:1", img)
	packed, _ := img.Layers()
	layer, _ := packed[0].Digest()
	var more strings.Builder
	var bad []*hub
	for range 3 {
		h := newHub(t)
		h.push("app:1", img)
		h.set(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, layer.String()) {
				return false
			}
			w.Write([]byte("no"))
			return true
		})
		bad = append(bad, h)
		fmt.Fprintf(&more, "[host.\"http://%s\"]\n", h.addr)
	}
	certs := t.TempDir()
	open := func(server string) *Store {
		if err := os.MkdirAll(filepath.Join(certs, "registry.example"), 0o700); err != nil {
			t.Fatal(err)
		}
		body := fmt.Sprintf("server = \"http://%s\"\n%s", server, more.String())
		if err := os.WriteFile(filepath.Join(certs, "registry.example", "hosts.toml"), []byte(body),
			0o600); err != nil {
			t.Fatal(err)
		}
		return openStore(t, "", func(o *Options) { o.Registry = registry.Options{CertsDirs: []string{certs}} })
	}
	s := open(good.addr)
	if got := pull(t, s, "registry.example/app:1"); fileIn(t, s, got, "a") != "of the registry" {
		t.Error("the file is wrong")
	}
	_, err := open(bad[0].addr).Pull(t.Context(), "registry.example/app:1", registry.Auth{})
	if !errors.Is(err, fault.Corrupt) || !strings.Contains(fmt.Sprint(err), "registry host "+bad[0].addr) &&
		!strings.Contains(fmt.Sprint(err), "registry host "+bad[1].addr) {
		t.Errorf("kind %q: %v", fault.Of(err), err)
	}
}
