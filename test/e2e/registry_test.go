package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// oddly is a registry with the content of the daemon's registry that answers as a test wants.
type oddly struct {
	addr string

	mu  sync.Mutex
	odd func(w http.ResponseWriter, r *http.Request) (answered bool)
}

// answerOddly starts an oddly.
func answerOddly(t *testing.T, d *harness.Daemon) *oddly {
	t.Helper()
	o := &oddly{}
	proxy := func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+d.Registry.Host+r.URL.Path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = r.Header.Clone()
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		odd := o.odd
		o.mu.Unlock()
		if odd == nil || !odd(w, r) {
			proxy(w, r)
		}
	}))
	t.Cleanup(server.Close)
	o.addr = strings.TrimPrefix(server.URL, "http://")
	return o
}

func (o *oddly) set(odd func(w http.ResponseWriter, r *http.Request) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.odd = odd
}

// plainly sends a response with a status and a body.
func plainly(w http.ResponseWriter, status int, body string) bool {
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	io.WriteString(w, body)
	return true
}

// If a mirror sends anything but the requested content, the pull uses the registry. Without the
// registry, the error names the mirror.
func TestOddMirror(t *testing.T) {
	certs := t.TempDir()
	d := harness.Start(t, harness.Options{NoPods: true,
		Config: fmt.Sprintf("[image]\ncerts_dirs = [%q]\nstall_timeout = 3\n", certs)})
	img := harness.Busybox(t)
	d.Registry.Push(t, "team/app:1", img)
	configName, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	mirror := answerOddly(t, d)
	const ref = "registry.example.test/team/app:1"
	manifests := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	config := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, configName.String()) }
	blobs := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	always := func(is func(*http.Request) bool, status int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { return is(r) && plainly(w, status, body) }
	}
	for _, row := range []struct {
		name string
		odd  func(w http.ResponseWriter, r *http.Request) bool
		says string // without the registry; "": the mirror's content is used
	}{
		{"a web page", always(manifests, 200, "<!DOCTYPE html><html>log in</html>"), "web page"},
		{"an error document", always(manifests, 200,
			`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"never heard of it"}]}`), "never heard of it"},
		{"nothing", always(manifests, 200, ""), "empty"},
		{"schema 1", always(manifests, 200, `{"schemaVersion":1,"fsLayers":[]}`), "schema 1"},
		{"another digest", func(w http.ResponseWriter, r *http.Request) bool {
			if !manifests(r) {
				return false
			}
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("ab", 32))
			return plainly(w, 200, `{"schemaVersion":2}`)
		}, strings.Repeat("ab", 32)},
		{"HEAD is refused", func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodHead && plainly(w, 405, "")
		}, ""},
		{"a config that is a page", always(config, 200, "<html>"), configName.String()},
		{"a config that is not there", always(config, 404, ""), configName.String()},
		{"blobs that are pages", always(blobs, 200, "<html>"), "sha256:"},
		{"429", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			return plainly(w, 429, "")
		}, "again in 1h"},
		{"500", always(func(*http.Request) bool { return true }, 500, ""), "500"},
		{"redirects in a circle", func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}, "redirects without end"},
	} {
		t.Run(row.name, func(t *testing.T) {
			mirror.set(row.odd)
			table := fmt.Sprintf("[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.addr)
			harness.Write(t, certs, "registry.example.test/hosts.toml",
				fmt.Sprintf("server = \"http://%s\"\n", d.Registry.Host)+table)
			for range 2 { // the second time the image is present: it is requested with HEAD
				if out, errs, code := d.Kuri(t, "pull", ref); code != 0 {
					t.Errorf("kuri pull exits %d: %s%s", code, out, errs)
				}
			}
			if out, errs, code := d.Kuri(t, "rmi", "--force", ref); code != 0 {
				t.Errorf("kuri rmi exits %d: %s%s", code, out, errs)
			}
			harness.Write(t, certs, "registry.example.test/hosts.toml", fmt.Sprintf("server = \"http://%s\"\n", mirror.addr))
			_, errs, code := d.Kuri(t, "pull", ref)
			if row.says == "" {
				if code != 0 {
					t.Errorf("from the mirror alone it exits %d: %s", code, errs)
				}
				d.Kuri(t, "rmi", "--force", ref)
			} else if code == 0 || !strings.Contains(errs, row.says) || !strings.Contains(errs, mirror.addr) {
				t.Errorf("from the mirror alone it exits %d: %s", code, errs)
			}
		})
	}
	mirror.set(nil)
	harness.Write(t, certs, "registry.example.test/hosts.toml", fmt.Sprintf("server = \"http://%s\"\nskip_verfy = true\n",
		d.Registry.Host))
	if _, errs, code := d.Kuri(t, "pull", ref); code == 0 || !strings.Contains(errs, `"skip_verfy"`) ||
		!strings.Contains(errs, "hosts.toml") {
		t.Errorf("a misspelt key: exit %d: %s", code, errs)
	}
}

// A pull of many layers succeeds although its tokens expire, its downloads are cut, and ranges are refused.
func TestTokensEndAndRangesAreRefused(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	var files []image.File
	for n := range 3 {
		files = append(files, image.File{Path: fmt.Sprintf("/data%d", n), Data: noise(2 << 20)})
	}
	img, err := image.New(v1.Config{}, files...)
	if err != nil {
		t.Fatal(err)
	}
	d.Registry.Push(t, "data:1", img)
	registry := answerOddly(t, d)
	var mu sync.Mutex
	uses, issued, cuts := 0, 0, 0
	registry.set(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			if u, p, ok := r.BasicAuth(); !ok || u != "user" || p != "pass:word" {
				return plainly(w, http.StatusUnauthorized, "")
			}
			issued++
			uses = 0
			answer, _ := json.Marshal(map[string]any{"token": fmt.Sprintf("secret-token-%d", issued)})
			return plainly(w, 200, string(answer))
		}
		// valid for two requests
		if uses++; uses > 2 || r.Header.Get("Authorization") != fmt.Sprintf("Bearer secret-token-%d", issued) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, registry.addr))
			return plainly(w, http.StatusUnauthorized, "")
		}
		switch {
		case !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet:
			return false
		case r.Header.Get("Range") != "":
			return plainly(w, http.StatusRequestedRangeNotSatisfiable, "")
		case cuts > 1:
			return false
		}
		cuts++
		w.Header().Set("Content-Length", "100000")
		w.Write(make([]byte, 0))
		return true
	})
	auth := &runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte("user:pass:word")),
		ServerAddress: "HTTP://" + registry.addr + "/v2/"}
	if _, err := pull(t, d, registry.addr+"/data:1", auth); err != nil {
		t.Errorf("pull: %v", err)
	}
	if issued < 3 || cuts != 2 {
		t.Errorf("%d tokens, %d cuts: the test tests nothing", issued, cuts)
	}
	for _, secret := range []string{"secret-token", "pass:word", auth.Auth} {
		if strings.Contains(d.Log(t), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// Credentials stay with their registry: redirects to another port, mirrors and error messages do
// not receive them.
func TestSecretsStayWithTheRegistry(t *testing.T) {
	certs := t.TempDir()
	d := harness.Start(t, harness.Options{NoPods: true, Config: fmt.Sprintf("[image]\ncerts_dirs = [%q]\n", certs)})
	d.Registry.Push(t, "team/app:1", harness.Busybox(t))
	var mu sync.Mutex
	var heard []string
	listen := func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		for name, values := range r.Header {
			if name == "Authorization" || name == "X-Team" || name == "Referer" {
				heard = append(heard, fmt.Sprint(name, values))
			}
		}
		return false
	}
	mirror, store, registry := answerOddly(t, d), answerOddly(t, d), answerOddly(t, d)
	store.set(listen)
	mirror.set(func(w http.ResponseWriter, r *http.Request) bool {
		listen(w, r)
		w.Header().Set("WWW-Authenticate", `Basic realm="give it to me"`)
		return plainly(w, http.StatusUnauthorized, "")
	})
	registry.set(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u != "user" || p != "s3cret-word" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			return plainly(w, http.StatusUnauthorized, "")
		}
		http.Redirect(w, r, "http://"+store.addr+r.URL.Path+"?X-Signature=s1gnature", http.StatusTemporaryRedirect)
		return true
	})
	harness.Write(t, certs, "registry.example.test/hosts.toml",
		fmt.Sprintf("server = \"http://%s\"\n[header]\nX-Team = \"s3cret-team\"\n[host.\"http://%s\"]\n", registry.addr,
			mirror.addr))
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, []byte(`{"auths": {"HTTPS://Registry.Example.test/v2/": {"auth": "`+
		base64.StdEncoding.EncodeToString([]byte("user:s3cret-word"))+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const ref = "registry.example.test/team/app:1"
	if out, errs, code := d.Kuri(t, "pull", "--authfile", config, ref); code != 0 {
		t.Errorf("kuri pull exits %d: %s%s", code, out, errs)
	}
	if len(heard) > 0 {
		t.Errorf("others were told %q", heard)
	}

	store.set(func(w http.ResponseWriter, r *http.Request) bool {
		return plainly(w, http.StatusForbidden,
			`{"errors":[{"code":"DENIED","message":"http://x/y?X-Signature=s1gnature has ended"}]}`)
	})
	d.Kuri(t, "rmi", "--force", ref)
	_, err := pull(t, d, ref, &runtimeapi.AuthConfig{Username: "user", Password: "s3cret-word"})
	harness.WantError(t, err, codes.PermissionDenied, store.addr, "DENIED")
	time.Sleep(50 * time.Millisecond)
	for _, secret := range []string{"s3cret", "s1gnature", "dXNlcjpz"} {
		if strings.Contains(err.Error(), secret) || strings.Contains(d.Log(t), secret) {
			t.Errorf("%q is in the error or in the log: %v", secret, err)
		}
	}
}
