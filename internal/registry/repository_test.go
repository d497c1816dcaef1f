package registry

import (
	"bytes"
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

	"github.com/kuri-cri/kuri/internal/fault"
)

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
