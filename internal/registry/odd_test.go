package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// isImage is a check like that of package image: schema 2 with a config.
func isImage(m Manifest) error {
	if !bytes.Contains(m.Body, []byte(`"config"`)) {
		return fault.New(fault.Unimplemented, "this is no image")
	}
	return nil
}

// say answers with a body and its type.
func say(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// oddAnswers are answers that are not the manifest, with the expected error if there is no other
// host.
var oddAnswers = map[string]struct {
	answer http.HandlerFunc
	kind   fault.Kind
	says   string
}{
	"a web page": {say(200, "text/html", "<!DOCTYPE html><title>Log in</title>"), fault.Invalid, "web page"},
	"a page as manifest": {say(200, "application/vnd.oci.image.manifest.v1+json", "\n <html>"),
		fault.Invalid, "web page"},
	"text":    {say(200, "text/plain", "service moved"), fault.Invalid, "not valid JSON"},
	"nothing": {say(200, "application/json", ""), fault.Unavailable, "empty"},
	"blanks":  {say(200, "application/json", "  "), fault.Invalid, "not valid JSON"},
	"no content": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		fault.Unavailable, "204"},
	"not modified": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
		fault.Unavailable, "304"},
	"an error document": {say(200, "application/json",
		`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`), fault.NotFound, "MANIFEST_UNKNOWN"},
	"a denial": {say(200, "application/json", `{"errors":[{"code":"DENIED","message":"no"}]}`),
		fault.PermissionDenied, "DENIED"},
	"schema 1": {say(200, "application/vnd.docker.distribution.manifest.v1+prettyjws",
		`{"schemaVersion":1,"fsLayers":[]}`), fault.Unimplemented, "this is no image"},
	"another document": {say(200, "application/json", `{"some":"thing"}`), fault.Unimplemented, "this is no image"},
	"too much": {say(200, "application/json", "{"+strings.Repeat(" ", MaxManifest)),
		fault.Exhausted, "larger"},
	"bad request": {say(400, "text/plain", "what?"), fault.Unavailable, "400"},
	"gone":        {say(410, "text/plain", "gone"), fault.Unavailable, "410"},
	"teapot":      {say(418, "text/plain", "tea"), fault.Unavailable, "418"},
	"redirects to itself": {func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
	}, fault.Unavailable, "redirects without end"},
	"redirects for ever": {func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Path+"?"+r.URL.RawQuery+"1", http.StatusTemporaryRedirect)
	}, fault.Unavailable, "redirects without end"},
	"redirects nowhere": {func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "ftp://files.example/x?signature=abcdef")
		w.WriteHeader(http.StatusFound)
	}, fault.Unavailable, "redirects (302 Found) to what is not a URL"},
	"redirect without location": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusFound) },
		fault.Unavailable, "redirects"},
	"another digest told": {func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("ab", 32))
		say(200, "application/json", `{"config":{}}`)(w, r)
	}, fault.Corrupt, strings.Repeat("ab", 32)},
}

// After an answer that is not the manifest, the next host is tried, for HEAD and GET. Without
// another host, the error names the host and the problem.
func TestOddManifest(t *testing.T) {
	c := newContent(t)
	for name, row := range oddAnswers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mirror := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/") {
					row.answer(w, r)
					return
				}
				c.ServeHTTP(w, r)
			})
			r := openWithMirror(t, mirror, serve(t, c.ServeHTTP), "", Auth{})
			if d, err := r.Resolve(t.Context()); err != nil ||
				d.Digest != "" && d.Digest != c.manifest && name != "another digest told" {
				t.Errorf("HEAD: %+v, %v", d, err)
			}
			if m, err := r.Manifest(t.Context(), isImage); err != nil || m.Digest != c.manifest {
				t.Errorf("by tag: %s, %v", m.Digest, err)
			}
			if m, err := r.ManifestAt(t.Context(), c.manifest); err != nil || m.Digest != c.manifest {
				t.Errorf("by digest: %s, %v", m.Digest, err)
			}
			alone := open(t, nil, mirror+"/library/app:1", Auth{})
			_, err := alone.Manifest(t.Context(), isImage)
			if fault.Of(err) != row.kind || !strings.Contains(fmt.Sprint(err), row.says) ||
				!strings.Contains(fmt.Sprint(err), mirror) || strings.Contains(fmt.Sprint(err), "abcdef") {
				t.Errorf("kind %q: %v", fault.Of(err), err)
			}
			if _, err := alone.ManifestAt(t.Context(), c.manifest); err == nil {
				t.Error("it passes for the manifest with the digest")
			}
		})
	}
}

// The same applies to a config, and to each of several bad hosts.
func TestOddConfig(t *testing.T) {
	c := newContent(t)
	for name, row := range oddAnswers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			odd := func() string {
				return serve(t, func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, c.layer.String()) {
						row.answer(w, r)
						return
					}
					c.ServeHTTP(w, r)
				})
			}
			one, two := odd(), odd()
			r := openWithMirror(t, one, serve(t, c.ServeHTTP), fmt.Sprintf("[host.\"http://%s\"]\n", two), Auth{})
			if _, err := r.Config(t.Context(), c.layer, 8<<20); err != nil {
				t.Error(err)
			}
			_, err := openWithMirror(t, one, two, "", Auth{}).Config(t.Context(), c.layer, 8<<20)
			if err == nil || !strings.Contains(err.Error(), one) || !strings.Contains(err.Error(), two) {
				t.Errorf("%v", err)
			}
		})
	}
}

// Some hosts refuse HEAD, with different statuses. The manifest can be fetched nevertheless.
func TestRefusedHead(t *testing.T) {
	c := newContent(t)
	for _, status := range []int{400, 403, 404, 405, 406, 415, 500, 501, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					w.WriteHeader(status)
					return
				}
				c.ServeHTTP(w, r)
			})
			r := open(t, nil, addr+"/library/app:1", Auth{})
			if d, err := r.Resolve(t.Context()); err != nil || d.Digest != "" {
				t.Errorf("%+v, %v", d, err)
			}
			if m, err := r.Manifest(t.Context()); err != nil || m.Digest != c.manifest {
				t.Errorf("%s, %v", m.Digest, err)
			}
			r = openWithMirror(t, addr, serve(t, c.ServeHTTP), "", Auth{})
			if d, err := r.Resolve(t.Context()); err != nil || d.Digest != c.manifest {
				t.Errorf("the next host: %+v, %v", d, err)
			}
		})
	}
	other := "sha256:" + strings.Repeat("cd", 32)
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", other)
	})
	if d, err := open(t, nil, addr+"/library/app@"+c.manifest.String(),
		Auth{}).Resolve(t.Context()); d.Digest == digest.Digest(other) || err == nil {
		t.Errorf("another digest for a digest: %+v, %v", d, err)
	}
}

// Many hosts send odd headers in the response to HEAD, and some claim an odd digest for a manifest.
// The content decides.
func TestOddHeadersOfAManifest(t *testing.T) {
	c := newContent(t)
	right := c.manifest.String()
	for name, row := range map[string]struct {
		header map[string]string
		told   bool // the digest is taken from HEAD
	}{
		"no length": {map[string]string{"Docker-Content-Digest": right}, true},
		"a length of nothing": {map[string]string{"Docker-Content-Digest": right,
			"Content-Length": "0"}, true},
		"another length": {map[string]string{"Docker-Content-Digest": right,
			"Content-Length": "7"}, true},
		"a length of all": {map[string]string{"Docker-Content-Digest": right,
			"Content-Length": "9223372036854775807"}, true},
		"a page's type": {map[string]string{"Docker-Content-Digest": right,
			"Content-Type": "text/html"}, true},
		"a type that cannot be read": {map[string]string{"Docker-Content-Digest": right,
			"Content-Type": ";;/"}, true},
		"no digest":                 {map[string]string{"Docker-Content-Digest": ""}, false},
		"a digest in quotes":        {map[string]string{"Docker-Content-Digest": `"` + right + `"`}, false},
		"a digest in upper case":    {map[string]string{"Docker-Content-Digest": strings.ToUpper(right)}, false},
		"a digest without its kind": {map[string]string{"Docker-Content-Digest": c.manifest.Encoded()}, false},
		"a short digest":            {map[string]string{"Docker-Content-Digest": "sha256:abcd"}, false},
		"a digest of an unknown kind": {map[string]string{"Docker-Content-Digest": "md5:d41d8cd98f00b204e9800998ecf8427e"},
			false},
		"an ETag alone": {map[string]string{"Docker-Content-Digest": "", "Etag": `"` +
			right + `"`}, false},
		"a digest of another algorithm": {map[string]string{"Docker-Content-Digest": "sha512:" +
			strings.Repeat("ab", 64)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					for name, value := range row.header {
						w.Header().Set(name, value)
					}
					return
				}
				if row.header["Docker-Content-Digest"] == right ||
					strings.HasPrefix(row.header["Docker-Content-Digest"], "sha512") {
					c.ServeHTTP(w, r)
					return
				}
				c.ServeHTTP(&headerOverride{w, row.header}, r)
			})
			r := open(t, nil, addr+"/library/app:1", Auth{})
			d, err := r.Resolve(t.Context())
			if err != nil || row.told != (d.Digest == c.manifest) || !row.told && d.Digest != "" {
				t.Errorf("HEAD: %+v, %v", d, err)
			}
			if m, err := r.Manifest(t.Context(), isImage); err != nil || m.Digest != c.manifest {
				t.Errorf("GET: %s, %v", m.Digest, err)
			}
		})
	}
}

// headerOverride sets headers last.
type headerOverride struct {
	http.ResponseWriter
	header map[string]string
}

func (o *headerOverride) WriteHeader(status int) {
	for name, value := range o.header {
		o.Header().Set(name, value)
	}
	o.ResponseWriter.WriteHeader(status)
}

func (o *headerOverride) Write(p []byte) (int, error) {
	for name, value := range o.header {
		o.Header().Set(name, value)
	}
	return o.ResponseWriter.Write(p)
}

// An interrupted transfer of a document is repeated.
func TestInterruptedManifest(t *testing.T) {
	c := newContent(t)
	var n atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, `{"schema`)
			return
		}
		c.ServeHTTP(w, r)
	})
	if m, err := open(t, nil, addr+"/library/app:1", Auth{}).Manifest(t.Context(), isImage); err != nil ||
		m.Digest != c.manifest {
		t.Errorf("%s, %v", m.Digest, err)
	}
}

// bytesOf returns the blob's bytes.
func bytesOf(t *testing.T, c *content) []byte {
	t.Helper()
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/library/app/blobs/"+c.layer.String(), nil))
	if int64(w.Body.Len()) != c.size {
		t.Fatalf("%d bytes, want %d", w.Body.Len(), c.size)
	}
	return w.Body.Bytes()
}

// The bytes decide, not the announced length. An unrequested compression is undone.
func TestOddLengthsAndEncodings(t *testing.T) {
	c := newContent(t)
	body := bytesOf(t, c)
	var packedBody bytes.Buffer
	z := gzip.NewWriter(&packedBody)
	z.Write(body)
	z.Close()
	encoded := func(encoding string, sized bool, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Accept-Encoding"); got != "identity" {
				t.Errorf("Accept-Encoding: %q", got)
			}
			w.Header().Set("Content-Encoding", encoding)
			if sized {
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			}
			w.Write(body[:len(body)/2])
			w.(http.Flusher).Flush()
			w.Write(body[len(body)/2:])
		}
	}
	for name, row := range map[string]struct {
		answer http.HandlerFunc
		fine   bool
	}{
		"chunked":                 {encoded("", false, body), true},
		"packed":                  {encoded("gzip", true, packedBody.Bytes()), true},
		"packed, chunked":         {encoded("x-gzip", false, packedBody.Bytes()), true},
		"called packed, as it is": {encoded("gzip", true, body), true},
		"called zstd, as it is":   {encoded("zstd", true, body), true},
		"in brotli":               {encoded("br", false, body), false},
		"longer than it is": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(c.size+10))
			w.Write(body)
		}, true},
		"shorter than it is": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(c.size-10))
			w.Write(body[:c.size-10])
		}, false},
		"empty":                    {func(w http.ResponseWriter, _ *http.Request) {}, false},
		"called packed, and empty": {encoded("gzip", true, nil), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, row.answer)
			err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{}), c)
			if (err == nil) != row.fine || err != nil && !strings.Contains(err.Error(), addr) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("a document", func(t *testing.T) {
		doc := []byte(`{"config":{}}`)
		var packedDoc bytes.Buffer
		z := gzip.NewWriter(&packedDoc)
		z.Write(doc)
		z.Close()
		addr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(packedDoc.Bytes())
		})
		r := open(t, nil, addr+"/library/app:1", Auth{})
		if m, err := r.Manifest(t.Context(), isImage); err != nil || !bytes.Equal(m.Body, doc) {
			t.Errorf("%q, %v", m.Body, err)
		}
		if got, err := r.Config(t.Context(), digest.FromBytes(doc), 100); err != nil || !bytes.Equal(got, doc) {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("called packed, chunked, as it is", func(t *testing.T) {
		gzipped := packedBody.Bytes() // the blob is a .tar.gz
		layer := &content{layer: digest.FromBytes(gzipped), size: int64(len(gzipped))}
		addr := serve(t, encoded("gzip", false, gzipped))
		r := open(t, nil, addr+"/library/app:1", Auth{})
		if err := readBlob(t.Context(), r, layer); err == nil {
			t.Error("unpacked, it passes for the blob")
		}
		if host, again := r.Distrust(layer.layer); host != addr || !again {
			t.Errorf("distrusted: %q, again: %v", host, again)
		}
		if err := readBlob(t.Context(), r, layer); err != nil {
			t.Errorf("the second time: %v", err)
		}
	})
}

// Each host that sends a corrupt blob gets a second chance after the others; then the pull fails.
func TestDistrustIsFinal(t *testing.T) {
	c := newContent(t)
	var mu sync.Mutex
	var asked []string
	odd := func(name string) string {
		return serve(t, func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, name)
			w.Write(make([]byte, c.size))
		})
	}
	r := openWithMirror(t, odd("mirror"), odd("registry"), "", Auth{})
	for again := true; again; {
		if err := readBlob(t.Context(), r, c); err == nil {
			t.Fatal("zeros pass for the blob")
		}
		_, again = r.Distrust(c.layer)
	}
	if got := strings.Join(asked, " "); got != "mirror registry mirror" {
		t.Errorf("asked: %q", got)
	}
}

// A cancelled pull returns the error of its context, whatever the host does.
func TestCancellationWhileAHostIsBusy(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := open(t, nil, addr+"/library/app:1", Auth{}).Manifest(ctx); !errors.Is(err, context.DeadlineExceeded) ||
		time.Since(began) > 4500*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-5": 0, "x": 0, "1.5": 0,
		"99999999999999": time.Duration(9223372036) * time.Second, "Mon, 02 Jan 2006 15:04:05 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}
