package registry

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// throttledWriter limits the rate of a connection, in bytes per second.
type throttledWriter struct {
	http.ResponseWriter
	rate int
}

func (w *throttledWriter) Write(p []byte) (int, error) {
	const piece = 64 << 10
	for done := 0; done < len(p); {
		n, err := w.ResponseWriter.Write(p[done:min(done+piece, len(p))])
		if done += n; err != nil {
			return done, err
		}
		time.Sleep(time.Duration(n) * time.Second / time.Duration(w.rate))
	}
	return len(p), nil
}

func TestParallelRequestsIfOneIsSlow(t *testing.T) {
	body := make([]byte, 40<<20)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range body {
		body[i] = byte(random.Uint32())
	}
	sum := digest.FromBytes(body)
	for name, row := range map[string]struct {
		rate    int  // bytes per second of one connection
		ranges  bool // the server supports ranges
		broken  bool // it drops some requests
		several bool // parallel requests are expected
	}{
		"slow":                  {8 << 20, true, false, true},
		"fast":                  {1 << 30, true, false, false},
		"slow, without ranges":  {20 << 20, false, false, true},
		"slow, ranges break of": {16 << 20, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests, most, at atomic.Int32
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				n := requests.Add(1)
				if now := at.Add(1); now > most.Load() {
					most.Store(now)
				}
				defer at.Add(-1)
				if !row.ranges {
					r.Header.Del("Range")
				}
				if row.broken && n > 4 && n < 8 {
					drop(w)
					return
				}
				http.ServeContent(&throttledWriter{w, row.rate}, r, "", time.Time{}, bytes.NewReader(body))
			})
			r := open(t, nil, addr+"/library/app:1", Auth{})
			stream, err := r.Blob(t.Context(), sum, int64(len(body)))
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			began := time.Now()
			h := sha256.New()
			if _, err := io.Copy(h, stream); err != nil {
				t.Fatal(err)
			}
			if got := digest.NewDigest(digest.SHA256, h); got != sum {
				t.Fatal("the content is wrong")
			}
			took := time.Since(began)
			t.Logf("%d requests, %d at once, %s", requests.Load(), most.Load(), took.Round(time.Millisecond))
			if !row.several && took > parallelTrial {
				t.Skipf("SKIP: this machine is too busy to be a fast server: %s for %d MiB", took, len(body)>>20)
			}
			if (requests.Load() > 1) != row.several {
				t.Errorf("%d requests", requests.Load())
			}
		})
	}
}

func TestParallelRequestsEndWithTheirReader(t *testing.T) {
	body := make([]byte, 40<<20)
	var at atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		at.Add(1)
		defer at.Add(-1)
		http.ServeContent(&throttledWriter{w, 8 << 20}, r, "", time.Time{}, bytes.NewReader(body))
	})
	r := open(t, nil, addr+"/library/app:1", Auth{})
	stream, err := r.Blob(t.Context(), digest.FromBytes(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, stream, 20<<20); err != nil {
		t.Fatal(err)
	}
	stream.Close()
	for wait := 0; at.Load() > 0; wait++ {
		if wait > 100 {
			t.Fatalf("%d requests go on", at.Load())
		}
		time.Sleep(20 * time.Millisecond)
	}
}
