package registry

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
)

// content is a registry with one image.
type content struct {
	http.Handler
	manifest digest.Digest
	layer    digest.Digest
	size     int64
}

// newContent returns a real registry that has library/app:1.
func newContent(t *testing.T) *content {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	img, err := random.Image(300_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host(srv) + "/library/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return &content{h, digest.Digest(d.String()), digest.Digest(m.Layers[0].Digest.String()), m.Layers[0].Size}
}

func host(srv *httptest.Server) string {
	_, h, _ := strings.Cut(srv.URL, "://")
	return h
}

// serve starts a plain HTTP server on loopback.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return host(srv)
}

// configure writes a hosts.toml for the registry and returns the certs directories.
func configure(t *testing.T, registry, body string) []string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, registry)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{filepath.Join(root, "not-there"), root}
}

func open(t *testing.T, certs []string, ref string, auth Auth) *Repository {
	t.Helper()
	parsed, err := ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Options{CertsDirs: certs}, parsed, auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func readBlob(ctx context.Context, r *Repository, c *content) error {
	body, err := r.Blob(ctx, c.layer, c.size)
	if err != nil {
		return err
	}
	defer body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, body); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != c.layer {
		return fmt.Errorf("digest %s", got)
	}
	return nil
}
