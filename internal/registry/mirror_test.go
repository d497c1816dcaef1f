package registry

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// openWithTightLimits opens library/app:1 of registry.example, which is at server behind a mirror,
// with tight limits.
func openWithTightLimits(t *testing.T, mirror, server, more string, auth Auth) *Repository {
	t.Helper()
	return openMirrored(t, mirror, server, more, auth, Limits{Stall: 400 * time.Millisecond, MinRate: 1 << 20})
}

// openWithMirror is like openWithTightLimits with the default limits, for tests that do not depend
// on time: a machine may be busy.
func openWithMirror(t *testing.T, mirror, server, more string, auth Auth) *Repository {
	t.Helper()
	return openMirrored(t, mirror, server, more, auth, Limits{})
}

func openMirrored(t *testing.T, mirror, server, more string, auth Auth, limits Limits) *Repository {
	t.Helper()
	certs := configure(t, "registry.example",
		fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n%s",
			server, mirror, more))
	ref, err := ParseReference("registry.example/library/app:1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Options{CertsDirs: certs, Limits: limits}, ref, auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestBadMirrorIsSkipped(t *testing.T) {
	c := newContent(t)
	blob := "/blobs/" + c.layer.String()
	for name, misbehave := range map[string]func(w http.ResponseWriter, r *http.Request){
		"never answers": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"stalls in the middle": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(c.size))
			w.Write(make([]byte, 0))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
		"trickles": func(w http.ResponseWriter, r *http.Request) {
			slow := &trickle{ResponseWriter: w}
			c.ServeHTTP(slow, r)
		},
		"drops":  func(w http.ResponseWriter, r *http.Request) { drop(w) },
		"errors": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"busy": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			mirror := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, blob) {
					asked.Add(1)
					misbehave(w, r)
					return
				}
				c.ServeHTTP(w, r)
			})
			r := openWithTightLimits(t, mirror, serve(t, c.ServeHTTP), "", Auth{})
			began := time.Now()
			for range 3 {
				if err := readBlob(t.Context(), r, c); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
			if n := asked.Load(); n > attempts {
				t.Errorf("the mirror was asked %d times in one conversation", n)
			}
		})
	}
}

// trickle sends a few hundred bytes at a time, so that there is always some progress.
type trickle struct{ http.ResponseWriter }

func (s *trickle) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := s.ResponseWriter.Write(p[done:min(done+500, len(p))])
		if done += n; err != nil {
			return done, err
		}
		s.ResponseWriter.(http.Flusher).Flush()
		time.Sleep(5 * time.Millisecond)
	}
	return len(p), nil
}

func TestSlowIsBetterThanNothing(t *testing.T) {
	c := newContent(t)
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) { c.ServeHTTP(&trickle{w}, r) })
	r := open(t, nil, addr+"/library/app:1", Auth{})
	r.options.Stall, r.options.MinRate = 400*time.Millisecond, 1<<20
	if err := readBlob(t.Context(), r, c); err != nil {
		t.Error(err)
	}
}

// Each source has its own limits: of two equally slow mirrors, the one with the higher minimum rate
// is abandoned and the other one is kept, although the registry itself would be faster.
func TestLimitsOfASource(t *testing.T) {
	c := newContent(t)
	blob := "/blobs/" + c.layer.String()
	slow := func(asked *atomic.Int32) string {
		return serve(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, blob) {
				asked.Add(1)
				w = &trickle{w}
			}
			c.ServeHTTP(w, r)
		})
	}
	var first, second, own atomic.Int32
	hasty, lax := slow(&first), slow(&second)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		own.Add(1)
		c.ServeHTTP(w, r)
	})
	certs := configure(t, "registry.example",
		fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n[host.\"http://%s\"]\n", server, hasty, lax))
	ref, err := ParseReference("registry.example/library/app:1")
	if err != nil {
		t.Fatal(err)
	}
	read := func(limits map[string]Limits) {
		t.Helper()
		for _, n := range []*atomic.Int32{&first, &second, &own} {
			n.Store(0)
		}
		r, err := Open(t.Context(), Options{CertsDirs: certs,
			Limits: Limits{Stall: 400 * time.Millisecond, MinRate: 1 << 10}, Sources: limits}, ref, Auth{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for range 2 {
			if err := readBlob(t.Context(), r, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	read(map[string]Limits{hasty: {MinRate: 1 << 20}})
	if first.Load() != 1 || second.Load() != 2 || own.Load() != 0 {
		t.Errorf("the mirrors were asked %d and %d times, the registry %d: want 1, 2, 0", first.Load(),
			second.Load(), own.Load())
	}
	read(map[string]Limits{hasty: {MinRate: 1 << 20}, lax: {MinRate: 1 << 20}})
	if first.Load() != 1 || second.Load() != 1 || own.Load() != 2 {
		t.Errorf("the mirrors were asked %d and %d times, the registry %d: want 1, 1, 2", first.Load(),
			second.Load(), own.Load())
	}
}

// The stall limit is per source and applies from dialling to the last byte; here to the response
// header.
func TestStallLimitOfASource(t *testing.T) {
	c := newContent(t)
	const late = 600 * time.Millisecond
	var asked atomic.Int32
	mirror := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		select {
		case <-time.After(late):
			c.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
	var own atomic.Int32
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		own.Add(1)
		c.ServeHTTP(w, r)
	})
	certs := configure(t, "registry.example", fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n",
		server, mirror))
	ref, err := ParseReference("registry.example/library/app:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		general, source time.Duration
		fromMirror      bool
	}{
		{100 * time.Millisecond, 10 * time.Second, true},
		{10 * time.Second, 100 * time.Millisecond, false},
		{100 * time.Millisecond, 0, false},
		{10 * time.Second, 0, true},
	} {
		asked.Store(0)
		own.Store(0)
		r, err := Open(t.Context(), Options{CertsDirs: certs, Limits: Limits{Stall: row.general},
			Sources: map[string]Limits{mirror: {Stall: row.source}}}, ref, Auth{})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err = readBlob(t.Context(), r, c)
		r.Close()
		if took := time.Since(began); err != nil || asked.Load() != 1 || (own.Load() == 0) != row.fromMirror ||
			took > 8*time.Second {
			t.Errorf("%s, the mirror %s: %v after %s, the mirror was asked %d times and the registry %d", row.general,
				row.source, err, took, asked.Load(), own.Load())
		}
	}
}

// containerd's key for the connect timeout.
func TestDialTimeout(t *testing.T) {
	c := newContent(t)
	mirror := silentPort(t)
	r := openWithTightLimits(t, mirror, serve(t, c.ServeHTTP), "dial_timeout = \"150ms\"\n", Auth{})
	r.options.Stall = 20 * time.Second
	began := time.Now()
	if err := readBlob(t.Context(), r, c); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 150*time.Millisecond || took > 15*time.Second {
		t.Errorf("the mirror that takes no connection was left after %s", took)
	}
}

// silentPort returns an address that answers no SYN: a listener whose backlog is full.
func silentPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
	for range 16 {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue of the listener does not fill")
	return ""
}

func TestMirrorHasItsOwnCredentials(t *testing.T) {
	c := newContent(t)
	guarded := func(user, password string, seen *atomic.Value) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); ok {
				seen.Store(u + ":" + p)
				if u == user && p == password {
					c.ServeHTTP(w, r)
					return
				}
			}
			w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	var toMirror, toServer atomic.Value
	mirror, server := serve(t, guarded("m", "secret", &toMirror)), serve(t, guarded("u", "p", &toServer))
	table := fmt.Sprintf("[host.\"http://%s\".auth]\n", mirror)
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(`{"auths":{"http://%s/v1/":{"auth":"bTpzZWNyZXQ="}}}`, mirror)),
		0o600); err != nil {
		t.Fatal(err)
	}
	for _, auth := range []string{"username = \"m\"\npassword = \"secret\"\n", "auth = \"bTpzZWNyZXQ=\"\n",
		fmt.Sprintf("file = %q\n", file)} {
		toMirror.Store("")
		toServer.Store("")
		r := openWithMirror(t, mirror, server, table+auth, Auth{Username: "u", Password: "p"})
		if err := readBlob(t.Context(), r, c); err != nil {
			t.Fatal(err)
		}
		if toMirror.Load() != "m:secret" || toServer.Load() != "" {
			t.Errorf("%q went to the mirror and %q to the registry", toMirror.Load(), toServer.Load())
		}
	}

	// Wrong credentials cost the mirror, not the pull. Each host sees only its own.
	r := openWithMirror(t, mirror, server, table+"username = \"m\"\npassword = \"stale\"\n",
		Auth{Username: "u", Password: "p"})
	if err := readBlob(t.Context(), r, c); err != nil {
		t.Fatal(err)
	}
	if toMirror.Load() != "m:stale" || toServer.Load() != "u:p" {
		t.Errorf("%q went to the mirror and %q to the registry", toMirror.Load(), toServer.Load())
	}

	ref, _ := ParseReference("registry.example/a:1")
	for _, wrong := range []string{"pasword = \"x\"\n", "file = \"nowhere.json\"\n", "auth = \"!\"\n"} {
		_, err := Open(t.Context(), Options{CertsDirs: configure(t, "registry.example",
			"[host.\"https://m.example\"]\n[host.\"https://m.example\".auth]\n"+wrong)}, ref, Auth{})
		if !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "hosts.toml") {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

func TestDistrustedHostIsTriedLast(t *testing.T) {
	c := newContent(t)
	var bad atomic.Int32
	mirror := serve(t, func(w http.ResponseWriter, r *http.Request) {
		bad.Add(1)
		w.Write(make([]byte, c.size))
	})
	r := openWithMirror(t, mirror, serve(t, c.ServeHTTP), "", Auth{})
	if err := readBlob(t.Context(), r, c); err == nil {
		t.Fatal("the mirror was to send something else")
	}
	r.Distrust(c.layer)
	if err := readBlob(t.Context(), r, c); err != nil || bad.Load() != 1 {
		t.Errorf("%v, the mirror was asked %d times", err, bad.Load())
	}
}

// hosts.toml may have a table for the registry itself that says how to reach it. Its answer there
// counts, not the failure to reach it without the table.
func TestRegistryAmongItsOwnHosts(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(srv.Close)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	certs := configure(t, "example.com", fmt.Sprintf("server = %q\n[host.%q]\nskip_verify = true\n", srv.URL, srv.URL))
	_, err := open(t, certs, "example.com/library/app:1", Auth{Username: "u", Password: "x"}).Manifest(t.Context())
	if !errors.Is(err, fault.Unauthenticated) || !strings.Contains(err.Error(), "were refused") ||
		strings.Contains(err.Error(), "x509") {
		t.Errorf("kind %q: %v", fault.Of(err), err)
	}
}
