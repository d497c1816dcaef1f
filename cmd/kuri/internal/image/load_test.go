package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

func TestLoadLines(t *testing.T) {
	before := []*runtimeapi.Image{{Id: "sha256:1", RepoTags: []string{"a:1"}}, {Id: "sha256:2", RepoTags: []string{"b:1"}},
		{Id: "sha256:4"}}
	for _, tt := range []struct {
		id   string
		refs []string
		want string
	}{
		{"sha256:3", []string{"c:1", "c:2"}, "loaded c:1 sha256:3|loaded c:2 sha256:3"},
		{"sha256:3", nil, "loaded sha256:3, without a name: kuri load --name gives it one"},
		{"sha256:1", []string{"a:1"}, "was here already: a:1 sha256:1"},
		{"sha256:1", []string{"a:1", "c:1"}, "loaded c:1 sha256:1|  which was here already as a:1"},
		{"sha256:3", []string{"b:1"}, "loaded b:1 sha256:3 (until now the name of 2)"},
		{"sha256:4", nil, "was here already: sha256:4, without a name"},
	} {
		if got := strings.Join(loadLines([]*kuriv1.LoadedImage{{Id: tt.id, References: tt.refs}}, before),
			"|"); got != tt.want {
			t.Errorf("%s %q: %s", tt.id, tt.refs, got)
		}
	}
	i := &kuriv1.LoadedImage{References: []string{"registry.example/x:v1", "docker.io/library/web:latest"}}
	for name, want := range map[string]bool{"registry.example/x": true, "registry.example/x:v1": true,
		"registry.example/x:v2": false, "web": true, "web:latest": true, "registry.example/y": false, "UPPER": false} {
		if named(i, name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}

// A file that cannot be read as a part of a layout is refused by name, and a FIFO is not waited for.
func TestPackOddFiles(t *testing.T) {
	for says, odd := range map[string]func(path string) error{
		"is not a regular file": func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"cp -rL":                func(path string) error { return os.Symlink("/etc/passwd", path) },
		"leads nowhere":         func(path string) error { return os.Symlink("gone", path) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "odd")
		if err := odd(path); err != nil {
			t.Fatal(err)
		}
		if err := pack(io.Discard, dir); err == nil || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

func TestPack(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"oci-layout": "{}", "index.json": "[]", "blobs/sha256/aa": strings.Repeat("x", 100)}
	for name, content := range want {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := pack(&b, dir); err != nil {
		t.Fatal(err)
	}
	r, got := tar.NewReader(&b), 0
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil || string(content) != want[h.Name] {
			t.Errorf("%s: %q %v", h.Name, content, err)
		}
		got++
	}
	if got != len(want) {
		t.Errorf("%d files", got)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "blobs/sha256/bb")); err != nil {
		t.Fatal(err)
	}
	if err := pack(io.Discard, dir); err == nil {
		t.Error("a link out of the layout was followed")
	}
}
