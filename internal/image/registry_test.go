package image

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuri-cri/kuri/internal/layer"
	kuriregistry "github.com/kuri-cri/kuri/internal/registry"
)

// hub is a real registry behind a handler that tests can override.
type hub struct {
	t    testing.TB
	addr string // host:port on loopback

	mu       sync.Mutex
	requests []string // "GET /v2/…"
	disturb  func(w http.ResponseWriter, r *http.Request) (handled bool)
}

func newHub(t testing.TB) *hub {
	h := &hub{t: t}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.requests = append(h.requests, r.Method+" "+r.URL.Path)
		disturb := h.disturb
		h.mu.Unlock()
		if disturb != nil && disturb(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	h.addr = strings.TrimPrefix(srv.URL, "http://")
	return h
}

// set overrides the handler of all further requests; nil restores it.
func (h *hub) set(disturb func(http.ResponseWriter, *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disturb = disturb
}

// take returns the requests since the last call that contain part.
func (h *hub) take(part string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found []string
	for _, r := range h.requests {
		if strings.Contains(r, part) {
			found = append(found, r)
		}
	}
	h.requests = nil
	return found
}

// push pushes img to repo:tag and returns the full reference.
func (h *hub) push(repo string, img v1.Image) string {
	h.t.Helper()
	ref, err := name.ParseReference(h.addr + "/" + repo)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		h.t.Fatal(err)
	}
	h.take("")
	return ref.Name()
}

func (h *hub) pushIndex(repo string, idx v1.ImageIndex) string {
	h.t.Helper()
	ref, err := name.ParseReference(h.addr + "/" + repo)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, idx); err != nil {
		h.t.Fatal(err)
	}
	h.take("")
	return ref.Name()
}

// file is an entry of a layer: a regular file with a body, or a directory if name ends in "/".
type file struct {
	name, body string
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		hdr := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.name, "/") {
			hdr.Mode, hdr.Typeflag = 0o755, tar.TypeDir
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func tarWith(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, hdr := range headers {
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func layerOf(t testing.TB, files ...file) v1.Layer {
	t.Helper()
	return layerOfTar(t, tarOf(t, files...))
}

func layerOfTar(t testing.TB, body []byte, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser,
		error) {
		return io.NopCloser(bytes.NewReader(body)), nil
	}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageOf returns an image for this platform. A distinct command gives it a distinct ID.
func imageOf(t testing.TB, cmd string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.Config.Cmd = []string{cmd}
	cfg.Config.Env = []string{"A=b"}
	cfg.Config.User = "7:8"
	cfg.OS, cfg.Architecture = "linux", nodeArch
	img, err = mutate.ConfigFile(img, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// openStore opens an image store and its layer store below root, or below a new directory.
func openStore(t testing.TB, root string, change ...func(*Options)) *Store {
	t.Helper()
	if root == "" {
		root = t.TempDir()
	}
	layers, err := layer.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Root: root, Layers: layers,
		Registry: kuriregistry.Options{CertsDirs: []string{filepath.Join(root, "certs.d")}}}
	for _, c := range change {
		c(&o)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		layers.Close()
	})
	return s
}

// assertNoTempFiles asserts that no temporary file is left.
func assertNoTempFiles(t testing.TB, s *Store) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(s.root, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

// blobBytes returns the compressed layer.
func blobBytes(t testing.TB, l v1.Layer) []byte {
	t.Helper()
	from, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	body, err := io.ReadAll(from)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
