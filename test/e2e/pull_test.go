package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// Two concurrent pulls of one image download it once.
func TestPullsJoin(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	var blobs atomic.Int64
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
			time.Sleep(200 * time.Millisecond)
		}
		next.ServeHTTP(w, r)
	})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := pull(t, d, ref, nil); err != nil {
				t.Errorf("pull: %v", err)
			}
		})
	}
	wg.Wait()
	if n := blobs.Load(); n != 2 { // the configuration and the layer
		t.Errorf("%d blobs were fetched, want 2", n)
	}
}

// A pull that fails reports the cause and leaves nothing behind.
func TestPullsThatFail(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "app:1", withFile(t, strings.Repeat("some text ", 100000), types.OCILayer, compression.GZip))
	path := func(r *http.Request, kind string) bool {
		return strings.Contains(r.URL.Path, "/"+kind+"/") && r.Method == http.MethodGet
	}

	for _, test := range []struct {
		name, ref string
		intercept func(w http.ResponseWriter, r *http.Request, next http.Handler)
		code      codes.Code
		says      []string
	}{
		{name: "malformed", ref: d.Registry.Host + "/UPPER:1", code: codes.InvalidArgument, says: []string{"UPPER"}},
		{name: "empty", ref: "", code: codes.InvalidArgument},
		{name: "bad digest", ref: d.Registry.Host + "/app@sha256:12", code: codes.InvalidArgument},
		{name: "unknown tag", ref: d.Registry.Host + "/app:9", code: codes.NotFound, says: []string{"app:9"}},
		{name: "unknown repository", ref: d.Registry.Host + "/nothing:1", code: codes.NotFound, says: []string{"nothing"}},
		{name: "nobody listens", ref: "127.0.0.1:1/app:1", code: codes.Unknown,
			says: []string{"RegistryUnavailable: ", "127.0.0.1:1"}},
		{name: "not a manifest", ref: ref, code: codes.InvalidArgument, says: []string{"manifest"},
			intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !path(r, "manifests") && r.Method != http.MethodHead {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
				fmt.Fprint(w, "<html>log in first</html>")
			}},
		{name: "schema 1", ref: ref, code: codes.Unimplemented,
			intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Type", string(types.DockerManifestSchema1))
				fmt.Fprint(w, `{"schemaVersion": 1, "name": "app", "tag": "1"}`)
			}},
		{name: "wrong bytes", ref: ref, code: codes.DataLoss, says: []string{"sha256:"},
			intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				next.ServeHTTP(corruptingWriter{w, path(r, "blobs")}, r)
			}},
		{name: "server trouble", ref: ref, code: codes.Unknown, says: []string{"RegistryUnavailable: ", "503"},
			intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				http.Error(w, "overloaded", http.StatusServiceUnavailable)
			}},
		{name: "no credentials", ref: ref, code: codes.Unauthenticated, intercept: basicAuth},
		{name: "refused", ref: ref, code: codes.PermissionDenied,
			intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				http.Error(w, "not you", http.StatusForbidden)
			}},
		{name: "cut each time", ref: ref, code: codes.Unknown, says: []string{"RegistryUnavailable: "},
			intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if path(r, "blobs") {
					panic(http.ErrAbortHandler)
				}
				next.ServeHTTP(w, r)
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d.Registry.Intercept(test.intercept)
			defer d.Registry.Intercept(nil)
			_, err := pull(t, d, test.ref, nil)
			harness.WantError(t, err, test.code, test.says...)
			if left := layers(t, d); len(left) > 0 {
				// busybox's own layer may be complete. No image must exist.
				t.Logf("layers kept for the next try: %v", left)
			}
			if test.ref != "" && imageStatus(t, d, ref) != nil {
				t.Error("there is an image")
			}
		})
	}
	if _, err := pull(t, d, ref, nil); err != nil {
		t.Errorf("with the registry well again: %v", err)
	}
}

// corruptingWriter flips a bit of the content it passes while on is set.
type corruptingWriter struct {
	http.ResponseWriter
	on bool
}

func (c corruptingWriter) Write(b []byte) (int, error) {
	if c.on && len(b) > 0 {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1
	}
	return c.ResponseWriter.Write(b)
}

func basicAuth(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if user, password, _ := r.BasicAuth(); user != "kuri" || password != "secret" {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	next.ServeHTTP(w, r)
}

func TestCredentials(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "app:1", harness.Busybox(t))
	d.Registry.Intercept(basicAuth)
	_, err := pull(t, d, ref, &runtimeapi.AuthConfig{Username: "kuri", Password: "wrong"})
	harness.WantError(t, err, codes.Unauthenticated)
	if strings.Contains(err.Error(), "wrong") || strings.Contains(d.Log(t), "\"wrong\"") {
		t.Error("the password is in the error or in the log")
	}
	if _, err := pull(t, d, ref, &runtimeapi.AuthConfig{Username: "kuri", Password: "secret"}); err != nil {
		t.Errorf("with the right password: %v", err)
	}
	d.Registry.Intercept(nil)
	other := d.Registry.Push(t, "other:1", withFile(t, "y", types.OCILayer, compression.GZip))
	d.Registry.Intercept(basicAuth)
	auth := base64.StdEncoding.EncodeToString([]byte("kuri:secret"))
	if _, err := pull(t, d, other, &runtimeapi.AuthConfig{Auth: auth}); err != nil {
		t.Errorf("with auth: %v", err)
	}
}

// An interrupted download resumes at its offset.
func TestDroppedConnectionResumes(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	img, err := image.New(v1.Config{}, image.File{Path: "/data", Data: noise(4 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	ref := d.Registry.Push(t, "data:1", img)
	var cuts, ranges atomic.Int64
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		// The tests' registry supports only some forms of ranges; the standard library supports all.
		whole := httptest.NewRecorder()
		bare := r.Clone(r.Context())
		bare.Header.Del("Range")
		next.ServeHTTP(whole, bare)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(&cuttingWriter{ResponseWriter: w, left: 1 << 20, cuts: &cuts}, r, "", time.Time{},
			bytes.NewReader(whole.Body.Bytes()))
	})
	if _, err := pull(t, d, ref, nil); err != nil {
		t.Fatalf("pull: %v", err)
	}
	if cuts.Load() == 0 || ranges.Load() == 0 {
		t.Errorf("%d cuts, %d requests for a range: the test tests nothing", cuts.Load(), ranges.Load())
	}
}

// cuttingWriter closes the connection after left bytes.
type cuttingWriter struct {
	http.ResponseWriter
	left int
	cuts *atomic.Int64
}

func (c *cuttingWriter) Write(b []byte) (int, error) {
	if len(b) <= c.left {
		c.left -= len(b)
		return c.ResponseWriter.Write(b)
	}
	c.ResponseWriter.Write(b[:c.left])
	c.ResponseWriter.(http.Flusher).Flush()
	c.cuts.Add(1)
	panic(http.ErrAbortHandler)
}

// Ten pods that start at once with an image that is not present, and each pull it as a kubelet
// does, download it once.
func TestColdStartOfTenPods(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	var blobs, manifests atomic.Int64
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
			blobs.Add(1)
			time.Sleep(time.Second) // so that all of them have requested it
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/"):
			manifests.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			pod := harness.Pod(fmt.Sprintf("cold-%d", i))
			made, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
			if err != nil {
				t.Errorf("pod %d: %v", i, err)
				return
			}
			id, err := pull(t, d, ref, nil)
			if err != nil {
				t.Errorf("pull for pod %d: %v", i, err)
				return
			}
			c, err := d.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: made.PodSandboxId,
				SandboxConfig: pod,
				Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
					Image: &runtimeapi.ImageSpec{Image: id}, Command: []string{"sleep", "100"}}})
			if err == nil {
				_, err = d.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
			}
			if err != nil {
				t.Errorf("container of pod %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := blobs.Load(); n != 2 { // the configuration and the layer
		t.Errorf("%d blobs were fetched, want 2", n)
	}
	if n := manifests.Load(); n != 1 {
		t.Errorf("%d manifests were fetched, want 1", n)
	}
}

// A caller's deadline of a millisecond does not stop the pull: it continues, and the retry joins it.
func TestPullOutlivesADeadline(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	var manifests atomic.Int64
	asked, goOn := make(chan struct{}), make(chan struct{})
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			if manifests.Add(1) == 1 {
				close(asked)
			}
			<-goOn
		}
		next.ServeHTTP(w, r)
	})
	var err error
	for reached := false; !reached; { // a millisecond may pass before kurid has received the request
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err = d.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		cancel()
		harness.WantError(t, err, codes.DeadlineExceeded)
		select {
		case <-asked:
			reached = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	time.AfterFunc(100*time.Millisecond, func() { close(goOn) })
	if _, err := pull(t, d, ref, nil); err != nil {
		t.Fatal(err)
	}
	if n := manifests.Load(); n != 1 {
		t.Errorf("%d manifests were fetched: the retry did not join", n)
	}
}
