package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/test/harness"
)

// meteredBlobs lets a registry send a limited number of bytes of blobs. Further bytes wait until
// the connection is closed.
type meteredBlobs struct {
	mu      sync.Mutex
	left    int64         // bytes; -1: no limit
	reached chan struct{} // closed when the limit is reached
	asked   []string      // digests of the requested blobs
}

func (m *meteredBlobs) set(bytes int64) (reached <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left, m.reached, m.asked = bytes, make(chan struct{}), nil
	return m.reached
}

func (m *meteredBlobs) requests() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	slices.Sort(m.asked)
	return m.asked
}

// take returns how many of n bytes may be sent now.
func (m *meteredBlobs) take(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left < 0 {
		return n
	}
	n = int(min(int64(n), m.left))
	m.left -= int64(n)
	if m.left == 0 {
		select {
		case <-m.reached:
		default:
			close(m.reached)
		}
	}
	return n
}

func (m *meteredBlobs) intercept(w http.ResponseWriter, r *http.Request, next http.Handler) {
	_, digest, ok := strings.Cut(r.URL.Path, "/blobs/")
	if !ok || r.Method != http.MethodGet {
		next.ServeHTTP(w, r)
		return
	}
	m.mu.Lock()
	m.asked = append(m.asked, digest)
	m.mu.Unlock()
	next.ServeHTTP(&meteredWriter{w, m, r}, r)
}

type meteredWriter struct {
	http.ResponseWriter
	meter   *meteredBlobs
	request *http.Request
}

func (w *meteredWriter) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n := w.meter.take(min(len(b)-done, 16<<10))
		if n == 0 {
			w.ResponseWriter.(http.Flusher).Flush()
			<-w.request.Context().Done()
			return done, io.ErrClosedPipe
		}
		if _, err := w.ResponseWriter.Write(b[done : done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(b), nil
}

// kurid is killed at 16 points of a pull: at 12 by the amount of blobs sent, at the others by the
// time after the last byte, while the image is synced and recorded. Everything present afterwards
// is complete, nothing incomplete is left, and the next pull fetches only the missing layers.
func TestKilledAtAnyPointOfAPull(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	base := harness.Busybox(t)
	var more []v1.Layer
	for i := range 4 {
		more = append(more, fileLayer(t, fmt.Sprintf("file%d", i), string(noise(200_000+i*100_000)), types.OCILayer,
			compression.GZip))
	}
	img, err := mutate.AppendLayers(base, more...)
	if err != nil {
		t.Fatal(err)
	}
	ref := d.Registry.Push(t, "app:1", img)
	blobOf, total, config := blobsOf(t, img)
	var meter meteredBlobs
	d.Registry.Intercept(meter.intercept)

	const points, inBytes = 16, 12
	listed, partial := 0, 0
	for point := range points {
		bytes := total
		if point < inBytes {
			bytes = max(1, total*int64(point)/inBytes)
		}
		reached := meter.set(bytes)
		var pulling sync.WaitGroup
		pulling.Go(func() { pull(t, d, ref, nil) })
		select {
		case <-reached:
		case <-time.After(30 * time.Second):
			t.Fatalf("point %d: the registry has not been asked for %d bytes", point, bytes)
		}
		if point >= inBytes {
			time.Sleep(time.Duration(point-inBytes) * 12 * time.Millisecond)
		}
		d.Kill9(t)
		pulling.Wait()
		meter.set(-1)
		d.Continue(t)

		have := layers(t, d)
		wholeStore(t, d, point)
		want := []string{}
		if imageStatus(t, d, ref) != nil {
			listed++
		} else {
			want = append(want, config)
			for diffID, blob := range blobOf {
				if !slices.Contains(have, diffID) {
					want = append(want, blob)
				}
			}
			if len(have) > 0 && len(have) < len(blobOf) {
				partial++
			}
		}
		slices.Sort(want)
		if _, err := pull(t, d, ref, nil); err != nil {
			t.Fatalf("point %d: pull after the kill: %v", point, err)
		}
		if got := meter.requests(); !slices.Equal(got, want) {
			t.Errorf("point %d: with the layers %v there, the blobs fetched were %v, want %v", point, have, got, want)
		}
		wholeStore(t, d, point)
		if _, err := d.Images.RemoveImage(t.Context(),
			&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
			t.Fatalf("point %d: %v", point, err)
		}
		if left := layers(t, d); len(left) > 0 {
			t.Fatalf("point %d: layers are left after the image: %v", point, left)
		}
	}
	t.Logf("of %d kills %d left some of the layers, %d the whole image", points, partial, listed)
	if partial == 0 {
		t.Error("no kill left a part of the image: the test tests too little")
	}
}

// blobsOf returns the digests of the image's layers by the hex digits of their diffIDs, the size of
// all blobs in bytes, and the digest of the config.
func blobsOf(t *testing.T, img v1.Image) (blobs map[string]string, total int64, config string) {
	t.Helper()
	blobs = make(map[string]string)
	list, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	total = m.Config.Size
	for i, l := range list {
		diffID, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		blobs[diffID.Hex] = m.Layers[i].Digest.String()
		total += m.Layers[i].Size
	}
	return blobs, total, m.Config.Digest.String()
}

// wholeStore has the daemon check its whole store, and looks for records that were set aside.
func wholeStore(t *testing.T, d *harness.Daemon, point int) {
	t.Helper()
	found, err := d.Images.Kuri.Check(t.Context(), &kuriv1.CheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		f, err := found.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("point %d: check: %v", point, err)
		}
		t.Errorf("point %d: the store is damaged: %v", point, f)
	}
	aside, _ := filepath.Glob(filepath.Join(d.Root, "images", "*.damaged"))
	half, _ := filepath.Glob(filepath.Join(d.Root, "images", ".*"))
	if len(aside)+len(half) > 0 {
		t.Errorf("point %d: left in images/: %v %v", point, aside, half)
	}
	if records, err := os.ReadDir(filepath.Join(d.Root, "images", "blobs", "sha256")); err != nil || len(records)%2 != 0 {
		t.Errorf("point %d: a config without its manifest, or the other way round: %v, %v", point, records, err)
	}
}
