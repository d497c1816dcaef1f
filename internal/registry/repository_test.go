package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
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

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
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

func TestLoopbackSpeaksPlainHTTP(t *testing.T) {
	c := newContent(t)
	addr := serve(t, c.ServeHTTP)
	for _, ref := range []string{addr + "/library/app:1", addr + "/library/app@" + c.manifest.String()} {
		r := open(t, nil, ref, Auth{})
		if d, err := r.Resolve(t.Context()); err != nil || d.Digest != c.manifest || d.Size <= 0 || d.MediaType == "" {
			t.Errorf("%+v, %v", d, err)
		}
		if m, err := r.Manifest(t.Context()); err != nil || m.Digest != c.manifest || m.MediaType == "" {
			t.Errorf("%+v, %v", m, err)
		}
		if err := readBlob(t.Context(), r, c); err != nil {
			t.Error(err)
		}
	}
}

func TestMirrorsInOrderThenTheRegistry(t *testing.T) {
	c := newContent(t)
	var asked []string
	mirror := func(name string, h http.HandlerFunc) string {
		return "http://" + serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("ns") != "registry.example" {
				t.Errorf("mirror %s is not told for whom it stands: %s", name, r.URL)
			}
			asked = append(asked, name)
			h(w, r)
		})
	}
	empty := mirror("empty", http.NotFound)
	good := mirror("good", c.ServeHTTP)
	path := mirror("path", http.StripPrefix("/proxy/x", c.Handler).ServeHTTP)
	dead := "http://" + deadAddr(t)

	for name, row := range map[string]struct{ toml, asked string }{
		"first that has it": {fmt.Sprintf("[host.%q]\n[host.%q]\n[host.%q]\n", dead, empty, good), "empty good"},
		"order of the file": {fmt.Sprintf("[host.%q]\n[host.%q]\n", good, empty), "good"},
		"a path":            {fmt.Sprintf("[host.%q]\noverride_path = true\n", path+"/proxy/x/v2"), "path"},
		"the server":        {fmt.Sprintf("server = %q\n[host.%q]\n", good, empty), "empty good"},
	} {
		asked = nil
		r := open(t, configure(t, "registry.example", row.toml),
			"registry.example/library/app@"+c.manifest.String(), Auth{})
		if _, err := r.Manifest(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := strings.Join(asked, " "); got != row.asked {
			t.Errorf("%s: asked %q, want %q", name, got, row.asked)
		}
	}

	t.Run("capabilities", func(t *testing.T) {
		asked = nil
		certs := configure(t, "registry.example",
			fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", good, empty))
		r := open(t, certs, "registry.example/library/app:1", Auth{})
		if _, err := r.Manifest(t.Context()); err != nil {
			t.Error(err)
		}
		if got := strings.Join(asked, " "); got != "good" {
			t.Errorf("a mirror that may not resolve was asked for a tag: %q", got)
		}
	})
	t.Run("all fail", func(t *testing.T) {
		certs := configure(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", empty, dead))
		_, err := open(t, certs, "registry.example/library/app:1", Auth{}).Manifest(t.Context())
		if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), dead[7:]) ||
			!strings.Contains(err.Error(), empty[7:]) {
			t.Errorf("%v", err)
		}
	})
	t.Run("changed without restart", func(t *testing.T) {
		certs := configure(t, "registry.example", fmt.Sprintf("server = %q\n", empty))
		ref := "registry.example/library/app:1"
		if _, err := open(t, certs, ref, Auth{}).Manifest(t.Context()); !errors.Is(err, fault.NotFound) {
			t.Errorf("%v", err)
		}
		if err := os.WriteFile(filepath.Join(certs[1], "registry.example/hosts.toml"),
			fmt.Appendf(nil, "server = %q\n", good), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, certs, ref, Auth{}).Manifest(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func deadAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestWrongConfigurationIsNamed(t *testing.T) {
	for name, body := range map[string]string{
		"no TOML":    "server = \n",
		"capability": "server = \"https://a\"\n[host.\"https://b\"]\ncapabilities = [\"fly\"]\n",
		"missing CA": "server = \"https://a\"\nca = \"nowhere.pem\"\n",
	} {
		certs := configure(t, "registry.example", body)
		ref, _ := ParseReference("registry.example/a:1")
		_, err := Open(t.Context(), Options{CertsDirs: certs}, ref, Auth{})
		if !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), certs[1]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTLSWithConfiguredCA(t *testing.T) {
	c := newContent(t)
	srv := httptest.NewTLSServer(c)
	t.Cleanup(srv.Close)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	certs := configure(t, "example.com", fmt.Sprintf("server = %q\nca = \"ca.pem\"\n", srv.URL))
	if err := os.WriteFile(filepath.Join(certs[1], "example.com/ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readBlob(t.Context(), open(t, certs, "example.com/library/app:1", Auth{}), c); err != nil {
		t.Error(err)
	}

	certs = configure(t, "example.com", fmt.Sprintf("server = %q\nskip_verify = true\n", srv.URL))
	if err := readBlob(t.Context(), open(t, certs, "example.com/library/app:1", Auth{}), c); err != nil {
		t.Error(err)
	}

	certs = configure(t, "example.com", fmt.Sprintf("server = %q\n", srv.URL))
	_, err := open(t, certs, "example.com/library/app:1", Auth{}).Manifest(t.Context())
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "certificate") ||
		!strings.Contains(err.Error(), certs[1]+"/example.com/hosts.toml") {
		t.Errorf("unknown authority: %v", err)
	}
}

// The error for plain HTTP instead of HTTPS says what to do.
func TestUnexpectedPlainHTTP(t *testing.T) {
	c := newContent(t)
	plain := serve(t, c.ServeHTTP)
	certs := configure(t, "example.com", fmt.Sprintf("server = \"https://%s\"\n", plain))
	_, err := open(t, certs, "example.com/library/app:1", Auth{}).Manifest(t.Context())
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "http://"+plain) ||
		!strings.Contains(err.Error(), certs[1]+"/example.com/hosts.toml") {
		t.Errorf("kind %q: %v", fault.Of(err), err)
	}
}

func TestCredentials(t *testing.T) {
	c := newContent(t)
	basic := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "u" || p != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`)
			return
		}
		c.ServeHTTP(w, r)
	})
	tokens := tokenServer(t)
	var issued atomic.Int32
	bearer := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Authorization") {
		case "Bearer good-token":
			c.ServeHTTP(w, r)
		case "Bearer poor-token":
			w.WriteHeader(http.StatusForbidden)
		default:
			issued.Add(1)
			w.Header().Set("WWW-Authenticate",
				fmt.Sprintf(`Bearer realm="http://%s/token",service="svc",scope="repository:library/app:pull"`, tokens))
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	for name, row := range map[string]struct {
		addr string
		auth Auth
		kind fault.Kind
		says string
	}{
		"basic":         {addr: basic, auth: Auth{Username: "u", Password: "p"}},
		"basic, base64": {addr: basic, auth: Auth{Auth: "dTpw"}},
		"basic, for this server": {addr: basic, auth: Auth{Username: "u", Password: "p", ServerAddress: "http://" +
			basic + "/v2/"}},
		"basic, for another": {addr: basic, auth: Auth{Username: "u", Password: "p", ServerAddress: "quay.io"},
			kind: fault.Unauthenticated, says: "imagePullSecret"},
		"basic, none": {addr: basic, kind: fault.Unauthenticated, says: "who are you"},
		"basic, wrong": {addr: basic, auth: Auth{Username: "u", Password: "x"}, kind: fault.Unauthenticated,
			says: "were refused"},
		"token, password": {addr: bearer, auth: Auth{Username: "u", Password: "p"}},
		"token, wrong password": {addr: bearer, auth: Auth{Username: "u", Password: "x"},
			kind: fault.Unauthenticated, says: "/token"},
		"token, anonymous": {addr: bearer, kind: fault.PermissionDenied, says: "library/app"},
		"token, identity":  {addr: bearer, auth: Auth{IdentityToken: "refresh"}},
		"token, wrong identity": {addr: bearer, auth: Auth{IdentityToken: "stale"}, kind: fault.Unauthenticated,
			says: "repository:library/app:pull"},
		"registry token": {addr: bearer, auth: Auth{RegistryToken: "good-token"}},
		"registry token, stale": {addr: bearer, auth: Auth{RegistryToken: "stale"}, kind: fault.Unauthenticated,
			says: "realm="},
		"registry token, to basic": {addr: basic, auth: Auth{RegistryToken: "good-token"}, kind: fault.Unauthenticated,
			says: "were refused"},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, nil, row.addr+"/library/app:1", row.auth)
			_, err := r.Manifest(t.Context())
			if row.kind == "" {
				if err == nil {
					err = readBlob(t.Context(), r, c)
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) ||
				!strings.Contains(err.Error(), row.addr) {
				t.Errorf("kind %q: %v", fault.Of(err), err)
			}
		})
	}
	t.Run("one token for a whole pull", func(t *testing.T) {
		r := open(t, nil, bearer+"/library/app:1", Auth{Username: "u", Password: "p"})
		issued.Store(0)
		for range 3 {
			if err := readBlob(t.Context(), r, c); err != nil {
				t.Error(err)
			}
		}
		if issued.Load() != 1 {
			t.Errorf("%d challenges", issued.Load())
		}
	})
}

// tokenServer issues good tokens for u:p and for the refresh token "refresh", and poor ones for
// anonymous clients.
func tokenServer(t *testing.T) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		give := func(token string) {
			json.NewEncoder(w).Encode(map[string]string{"token": token, "access_token": token})
		}
		user, password, basic := r.BasicAuth()
		if r.Method == http.MethodPost {
			user, password, basic = r.FormValue("username"), r.FormValue("password"), true
		}
		switch {
		case r.FormValue("scope") != "repository:library/app:pull" || r.FormValue("service") != "svc":
			http.Error(w, "scope", http.StatusBadRequest)
		case user == "u" && password == "p" || r.FormValue("refresh_token") == "refresh":
			give("good-token")
		case !basic:
			give("poor-token")
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
}

func TestRedirectDoesNotCarryCredentials(t *testing.T) {
	c := newContent(t)
	var leaked atomic.Bool
	store := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked.Store(leaked.Load() || r.Header.Get("Authorization") != "")
		w.Header().Set("WWW-Authenticate", `Basic realm="give it to me"`)
		if r.URL.Query().Get("refuse") != "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c.ServeHTTP(w, r)
	}))
	store.Listener.Close()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("no second loopback address: %v", err)
	}
	store.Listener = l
	store.Start()
	t.Cleanup(store.Close)
	refuse := ""
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, store.URL+r.URL.Path+refuse, http.StatusTemporaryRedirect)
	})
	r := open(t, nil, addr+"/library/app:1", Auth{Username: "u", Password: "p"})
	if err := readBlob(t.Context(), r, c); err != nil {
		t.Error(err)
	}
	refuse = "?refuse=1"
	if err := readBlob(t.Context(), r, c); !errors.Is(err, fault.Unauthenticated) {
		t.Errorf("%v", err)
	}
	if leaked.Load() {
		t.Error("the password was sent to where the registry redirected to")
	}
}

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

func TestServerErrors(t *testing.T) {
	c := newContent(t)
	for name, row := range map[string]struct {
		status int
		header string // Retry-After
		times  int
		kind   fault.Kind
		least  time.Duration // minimum duration
	}{
		"503 with a time":     {status: 503, header: "2", times: 1, least: 2 * time.Second},
		"429 with a date":     {status: 429, header: "a date", times: 1, least: 2 * time.Second},
		"backoff":             {status: 503, times: 2, least: 6 * firstWait},
		"passing 503":         {status: 503, times: 1},
		"passing 429":         {status: 429, times: 2},
		"429 with a time":     {status: 429, header: "0", times: 1},
		"429 with a long one": {status: 429, header: "3600", times: 1, kind: fault.Unavailable},
		"500 for ever":        {status: 500, times: 100, kind: fault.Unavailable},
		"404":                 {status: 404, times: 100, kind: fault.NotFound},
		"403":                 {status: 403, times: 100, kind: fault.PermissionDenied},
		"418":                 {status: 418, times: 100, kind: fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) <= int32(row.times) {
					after := row.header
					if after == "a date" {
						after = time.Now().Add(4 * time.Second).UTC().Format(http.TimeFormat)
					}
					w.Header().Set("Retry-After", after)
					w.WriteHeader(row.status)
					fmt.Fprint(w, `{"errors":[{"code":"CODE","message":"the message"}]}`)
					return
				}
				c.ServeHTTP(w, r)
			})
			began := time.Now()
			_, err := open(t, nil, addr+"/library/app:1", Auth{}).Manifest(t.Context())
			if took := time.Since(began); took < row.least {
				t.Errorf("it was asked again after %v", took)
			}
			if fault.Of(err) != row.kind {
				t.Errorf("%v", err)
			}
			if err != nil {
				for _, part := range []string{"the message", addr, "library/app"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%q is not named: %v", part, err)
					}
				}
			}
		})
	}
}

func TestManifestIsVerifiedAndBounded(t *testing.T) {
	c := newContent(t)
	answer := []byte(`{"schemaVersion":2}`)
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(answer) })
	_, err := open(t, nil, addr+"/library/app@"+c.manifest.String(), Auth{}).Manifest(t.Context())
	if !errors.Is(err, fault.Corrupt) {
		t.Errorf("%v", err)
	}
	answer = bytes.Repeat([]byte{' '}, MaxManifest+1)
	if _, err = open(t, nil, addr+"/library/app:1", Auth{}).Manifest(t.Context()); !errors.Is(err, fault.Exhausted) {
		t.Errorf("%v", err)
	}
	if _, err = open(t, nil, addr+"/library/app:1", Auth{}).Config(t.Context(), c.layer, 100); !errors.Is(err,
		fault.Exhausted) {
		t.Errorf("%v", err)
	}
	answer = []byte("short")
	if _, err = open(t, nil, addr+"/library/app:1", Auth{}).Config(t.Context(), c.layer, 100); !errors.Is(err,
		fault.Corrupt) {
		t.Errorf("%v", err)
	}
}
