package harness

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuri-cri/kuri/test/image"
)

// Registry is a real registry in this process, over plain HTTP on the loopback address. It ends
// with the test.
type Registry struct {
	Host string // "127.0.0.1:port"

	mu        sync.Mutex
	intercept func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

// NewRegistry starts an empty registry.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		intercept := r.intercept
		r.mu.Unlock()
		if intercept == nil {
			store.ServeHTTP(w, req)
			return
		}
		intercept(w, req, store)
	}))
	t.Cleanup(server.Close)
	r.Host = server.Listener.Addr().(*net.TCPAddr).String()
	return r
}

// Intercept puts f in front of the registry to simulate faults; nil removes it.
func (r *Registry) Intercept(f func(w http.ResponseWriter, req *http.Request, next http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// Push stores content, a v1.Image or a v1.ImageIndex, as repository[:tag] and returns the reference
// for pulling it.
func (r *Registry) Push(t testing.TB, repository string, content remote.Taggable) string {
	t.Helper()
	ref, err := name.NewTag(r.Host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	switch c := content.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, c, remote.WithNondistributable)
	case v1.Image:
		err = remote.Write(ref, c, remote.WithNondistributable)
	default:
		t.Fatalf("cannot push a %T", content)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return ref.String()
}

var busyboxOnce = sync.OnceValues(func() (v1.Image, error) {
	files, err := image.Busybox("/bin/busybox")
	if err != nil {
		return nil, err
	}
	return image.New(v1.Config{Cmd: []string{"sh"}}, files...)
})

// Busybox returns an image of Debian's busybox-static.
func Busybox(t testing.TB) v1.Image {
	t.Helper()
	img, err := busyboxOnce()
	if err != nil {
		t.Fatalf("busybox image (is busybox-static installed? make test-deps): %v", err)
	}
	return img
}

var webOnce = sync.OnceValues(image.Web)

// Web returns the image of examples/web.
func Web(t testing.TB) v1.Image {
	t.Helper()
	img, err := webOnce()
	if err != nil {
		t.Fatal(err)
	}
	return img
}
