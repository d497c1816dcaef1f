package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// drop closes a connection in the middle of a response.
func drop(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		conn.Close()
	}
}

// cutAfter passes n bytes of a blob's body and then drops the connection.
type cutAfter struct {
	http.ResponseWriter
	left int
}

func (c *cutAfter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestBlobResumesWhereItStopped(t *testing.T) {
	c := newContent(t)
	var ranges []string
	ranged := true
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			c.ServeHTTP(w, r)
			return
		}
		ranges = append(ranges, r.Header.Get("Range"))
		if !ranged {
			r.Header.Del("Range")
		}
		if len(ranges) < 5 {
			c.ServeHTTP(&cutAfter{w, 40_000 * len(ranges)}, r)
			return
		}
		c.ServeHTTP(w, r)
	})
	t.Run("with ranges", func(t *testing.T) {
		ranges = nil
		if err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{}), c); err != nil {
			t.Fatal(err)
		}
		if len(ranges) < 3 || ranges[0] != "" || !strings.HasPrefix(ranges[1], "bytes=40000-") {
			t.Errorf("ranges %q", ranges)
		}
	})
	t.Run("without", func(t *testing.T) {
		ranges, ranged = nil, false
		if err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{}), c); err != nil {
			t.Fatal(err)
		}
	})
}

func TestBlobThatNeverComes(t *testing.T) {
	c := newContent(t)
	t.Run("drops for ever", func(t *testing.T) {
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) { drop(w) })
		err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{}), c)
		if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%v", err)
		}
	})
	t.Run("stalls", func(t *testing.T) {
		hang := make(chan struct{})
		tries := 0
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if tries++; tries == 1 {
				w.Header().Set("Content-Length", fmt.Sprint(c.size))
				w.Write([]byte{})
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-hang:
				}
				return
			}
			c.ServeHTTP(w, r)
		})
		defer close(hang)
		r := open(t, nil, addr+"/library/app:1", Auth{})
		r.options.Stall = 100 * time.Millisecond
		if err := readBlob(t.Context(), r, c); err != nil {
			t.Error(err)
		}
		if tries != 2 {
			t.Errorf("%d tries", tries)
		}
	})
	// The stall limit applies to every response, including a refusal or a token.
	for _, where := range []string{"/v2/", "/token"} {
		t.Run("stalls in the answer of "+where, func(t *testing.T) {
			hang := make(chan struct{})
			var addr string
			addr = serve(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/v2/") {
					w.Header().Set("WWW-Authenticate",
						fmt.Sprintf(`Bearer realm="http://%s/token",service="svc"`, addr))
				}
				if strings.HasPrefix(r.URL.Path, where) {
					w.Header().Set("Content-Length", "100")
				}
				if strings.HasPrefix(r.URL.Path, "/v2/") {
					w.WriteHeader(http.StatusUnauthorized)
				}
				w.(http.Flusher).Flush()
				if strings.HasPrefix(r.URL.Path, where) {
					<-hang
				}
			})
			defer close(hang)
			r := open(t, nil, addr+"/library/app:1", Auth{})
			r.options.Stall = 50 * time.Millisecond
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := readBlob(ctx, r, c); !errors.Is(err, fault.Unavailable) &&
				!errors.Is(err, fault.Unauthenticated) || ctx.Err() != nil {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("longer than it says", func(t *testing.T) {
		addr := serve(t, c.ServeHTTP)
		body, err := open(t, nil, addr+"/library/app:1", Auth{}).Blob(t.Context(), c.layer, c.size-1)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if _, err := io.Copy(io.Discard, body); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%v", err)
		}
	})
	t.Run("shorter than it says", func(t *testing.T) {
		addr := serve(t, c.ServeHTTP)
		body, err := open(t, nil, addr+"/library/app:1", Auth{}).Blob(t.Context(), c.layer, c.size+1)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if _, err := io.Copy(io.Discard, body); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%v", err)
		}
	})
	t.Run("nobody waits", func(t *testing.T) {
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) { drop(w) })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := readBlob(ctx, open(t, nil, addr+"/library/app:1", Auth{}), c); !errors.Is(err,
			context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}
