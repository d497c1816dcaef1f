package registry

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
)

// An interrupted blob is completed by a host without range support, or with broken range support.
func TestOddRanges(t *testing.T) {
	c := newContent(t)
	body := bytesOf(t, c)
	partial := func(contentRange string, from int64) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.WriteHeader(http.StatusPartialContent)
			w.Write(body[from:])
		}
	}
	const cut = 100_000
	for name, answer := range map[string]http.HandlerFunc{
		"416": say(416, "text/plain", "no"),
		"416 with a size": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", c.size))
			w.WriteHeader(416)
		},
		"206 without a range":   partial("", cut),
		"206 and all of it":     partial("", 0),
		"206 from elsewhere":    partial(fmt.Sprintf("bytes %d-%d/%d", cut+1, c.size-1, c.size), cut+1),
		"206 of another blob":   partial(fmt.Sprintf("bytes %d-%d/%d", cut, c.size-1, c.size+1), cut),
		"206 that is backwards": partial(fmt.Sprintf("bytes %d-%d/%d", cut, cut-5, c.size), cut),
		"206 in other units":    partial(fmt.Sprintf("lines %d-%d/%d", cut, c.size-1, c.size), cut),
		"206 in parts": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, "--x\r\n")
		},
		"200":                  func(w http.ResponseWriter, _ *http.Request) { w.Write(body) },
		"206 of unknown size":  partial(fmt.Sprintf("bytes %d-%d/*", cut, c.size-1), cut),
		"206 in other letters": partial(fmt.Sprintf("Bytes %d-%d/%d", cut, c.size-1, c.size), cut),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked, whole atomic.Int32
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				switch {
				case r.Header.Get("Range") != "":
					answer(w, r)
				case whole.Add(1) == 1:
					w.Header().Set("Content-Length", fmt.Sprint(c.size))
					w.Write(body[:cut])
				default:
					w.Write(body)
				}
			})
			if err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{}), c); err != nil {
				t.Error(err)
			}
			if n := asked.Load(); n > 3 {
				t.Errorf("the host was asked %d times", n)
			}
		})
	}
	t.Run("a few bytes for each request", func(t *testing.T) {
		var asked atomic.Int32
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				w.Header().Set("Content-Length", fmt.Sprint(c.size))
				w.Write(body[:1000])
				return
			}
			var from, to int64
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
				t.Errorf("range %q", r.Header.Get("Range"))
			}
			end := min(from+40_000, to+1)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, end-1, c.size))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(body[from:end])
		})
		if err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{}), c); err != nil {
			t.Error(err)
		}
	})
	t.Run("206 to no range", func(t *testing.T) {
		for begin, fine := range map[int64]bool{0: true, 5: false} {
			addr := serve(t, partial(fmt.Sprintf("bytes %d-%d/%d", begin, c.size-1, c.size), begin))
			if err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{}), c); (err == nil) != fine {
				t.Errorf("from %d: %v", begin, err)
			}
		}
	})
}

func TestContentRange(t *testing.T) {
	for value, want := range map[string]byteRange{
		"bytes 0-99/1000": {0, 100, 1000}, "Bytes 5-5/*": {5, 6, -1}, " bytes 1-2 / 3 ": {1, 3, 3},
		"": {}, "bytes": {}, "bytes */1000": {}, "bytes 5-4/10": {}, "bytes 0-10/10": {}, "bytes -1-5/10": {},
		"bytes 0-5":    {},
		"items 0-5/10": {}, "bytes 0-99999999999999999999/*": {}, "bytes 0-9223372036854775807/*": {},
	} {
		got, err := contentRange(http.Header{"Content-Range": {value}})
		if (err == nil) != (want != byteRange{}) || err == nil && got != want {
			t.Errorf("%q: %+v, %v", value, got, err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/1000")
	f.Fuzz(func(t *testing.T, value string) {
		r, err := contentRange(http.Header{"Content-Range": {value}})
		if err == nil && (r.begin < 0 || r.end <= r.begin || r.size >= 0 && r.size < r.end) {
			t.Errorf("%q: %+v", value, r)
		}
	})
}
