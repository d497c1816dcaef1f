package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// debian is Debian's docker-registry in its own process, with TLS and a token server.
type debian struct {
	t     *testing.T
	addr  string // host:port
	certs string // directory with the registry's hosts.toml
	ca    string // file of the certificate
	http  *http.Transport

	tokens string // URL of the token server
}

// pusher is a transport that fetches its token first: go-containerregistry uses no token server on
// loopback.
type pusher struct {
	http       *http.Transport
	tokens     string
	repository string
}

func (p *pusher) RoundTrip(req *http.Request) (*http.Response, error) {
	ask, err := http.NewRequestWithContext(req.Context(), http.MethodGet,
		p.tokens+"/token?scope="+url.QueryEscape("repository:"+p.repository+":pull,push"), nil)
	if err != nil {
		return nil, err
	}
	ask.SetBasicAuth("user", "secret")
	resp, err := p.http.RoundTrip(ask)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+answer.Token)
	return p.http.RoundTrip(req)
}

func newDebian(t *testing.T) *debian {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("Debian's docker-registry is not installed: scripts/deps test installs it")
	}
	dir := t.TempDir()
	key, cert, der := selfSigned(t)
	keyFile, certFile := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	for path, block := range map[string]*pem.Block{keyFile: key, certFile: cert} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tokens := tokenServer(t, key, der)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &debian{t: t, addr: l.Addr().String(), certs: filepath.Join(dir, "certs.d"), ca: certFile, tokens: tokens}
	l.Close()
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: %q, secret: x, tls: {certificate: %s, key: %s}}
auth: {token: {realm: %q, service: kuri-test, issuer: kuri-test, rootcertbundle: %s}}
`, filepath.Join(dir, "data"), d.addr, certFile, keyFile, tokens+"/token", certFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(d.certs, d.addr), 0o700); err != nil {
		t.Fatal(err)
	}
	d.hosts(fmt.Sprintf("server = \"https://%s\"\nca = %q\n", d.addr, certFile))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(cert))
	d.http = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(d.http.CloseIdleConnections)

	said := new(strings.Builder)
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("docker-registry: %s", said)
		}
	})
	for wait := 0; ; wait++ {
		conn, err := net.Dial("tcp", d.addr)
		if err == nil {
			conn.Close()
			return d
		}
		if wait == 200 {
			t.Fatalf("docker-registry does not answer: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (d *debian) hosts(body string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.certs, d.addr, "hosts.toml"), []byte(body), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *debian) push(repo string, img v1.Image) string {
	d.t.Helper()
	ref, err := name.ParseReference(d.addr + "/" + repo)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := remote.Write(ref, img,
		remote.WithTransport(&pusher{d.http, d.tokens, ref.Context().RepositoryStr()})); err != nil {
		d.t.Fatal(err)
	}
	return ref.Name()
}

func (d *debian) store() *Store {
	return openStore(d.t, "", func(o *Options) {
		o.Registry = registry.Options{CertsDirs: []string{d.certs}, Limits: registry.Limits{Stall: time.Second}}
	})
}

// selfSigned makes a certificate for loopback. Its key also signs the tokens.
func selfSigned(t *testing.T) (key, cert *pem.Block, der []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kuri-test"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private); err != nil {
		t.Fatal(err)
	}
	body, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return &pem.Block{Type: "EC PRIVATE KEY", Bytes: body}, &pem.Block{Type: "CERTIFICATE", Bytes: der}, der
}

// tokenServer issues tokens for the requested scopes to user with secret. Anonymous clients get
// only repositories below public/.
func tokenServer(t *testing.T, key *pem.Block, cert []byte) string {
	t.Helper()
	private, err := x509.ParseECPrivateKey(key.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		user, password, ok := r.BasicAuth()
		if r.Method == http.MethodPost { // OAuth2
			user, password, ok = r.Form.Get("username"), r.Form.Get("password"), true
		}
		if ok && (user != "user" || password != "secret") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		type access struct {
			Type    string   `json:"type"`
			Name    string   `json:"name"`
			Actions []string `json:"actions"`
		}
		granted := []access{}
		for _, scope := range r.Form["scope"] {
			for one := range strings.FieldsSeq(scope) {
				part := strings.Split(one, ":")
				if len(part) == 3 && (ok || strings.HasPrefix(part[1], "public/")) {
					granted = append(granted, access{part[0], part[1], strings.Split(part[2], ",")})
				}
			}
		}
		now := time.Now().Unix()
		token := encode(t, map[string]any{"typ": "JWT", "alg": "ES256",
			"x5c": []string{base64.StdEncoding.EncodeToString(cert)}}) + "." +
			encode(t, map[string]any{"iss": "kuri-test", "aud": "kuri-test", "sub": user, "nbf": now - 10, "iat": now,
				"exp": now + 300, "jti": "1", "access": granted})
		sum := sha256.Sum256([]byte(token))
		x, y, err := ecdsa.Sign(rand.Reader, private, sum[:])
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		signature := append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
		json.NewEncoder(w).Encode(map[string]any{"access_token": token + "." +
			base64.RawURLEncoding.EncodeToString(signature), "token": token + "." +
			base64.RawURLEncoding.EncodeToString(signature), "expires_in": 300})
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: private}}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL
}

func encode(t *testing.T, v any) string {
	body, err := json.Marshal(v)
	if err != nil {
		t.Error(err)
	}
	return base64.RawURLEncoding.EncodeToString(body)
}

func TestDebiansRegistryWithTLSAndTokens(t *testing.T) {
	needRoot(t)
	d := newDebian(t)
	img := imageOf(t, "x", layerOf(t, file{"a", strings.Repeat("a lot of it ", 100_000)}), layerOf(t, file{"b", "b"}))
	private, public := d.push("private/app:1", img), d.push("public/app:1", img)
	known := registry.Auth{Username: "user", Password: "secret"}
	for name, row := range map[string]struct {
		ref  string
		auth registry.Auth
		kind fault.Kind
		says string
	}{
		"with credentials": {ref: private, auth: known},
		"in base64": {ref: private,
			auth: registry.Auth{Auth: base64.StdEncoding.EncodeToString([]byte("user:secret"))}},
		"public":              {ref: public},
		"without credentials": {ref: private, kind: fault.Unauthenticated, says: "private/app"},
		"with wrong ones": {ref: private, auth: registry.Auth{Username: "user", Password: "x"},
			kind: fault.Unauthenticated, says: "/token"},
		"a tag that is not there": {ref: d.addr + "/public/app:2", kind: fault.NotFound, says: "public/app:2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := d.store()
			got, err := s.Pull(t.Context(), row.ref, row.auth)
			if row.kind != "" {
				if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if fileIn(t, s, got, "b") != "b" {
				t.Error("the file is wrong")
			}
		})
	}
}

// A misbehaving proxy in front of the registry: the pull succeeds, or fails and leaves nothing
// behind.
func TestBadProxyBeforeDebiansRegistry(t *testing.T) {
	needRoot(t)
	d := newDebian(t)
	content := make([]byte, 3<<20)
	rand.Read(content)
	ref := d.push("public/app:1", imageOf(t, "x", layerOf(t, file{"a", string(content)}), layerOf(t, file{"b", "b"})))
	for name, row := range map[string]struct {
		change func(n int, body io.ReadCloser, header http.Header) io.ReadCloser
		kind   fault.Kind // "": the pull succeeds
	}{
		"drops": {change: func(_ int, b io.ReadCloser, _ http.Header) io.ReadCloser {
			return &cut{b, 500_000, errors.New("dropped")}
		}},
		"delays": {change: func(_ int, b io.ReadCloser,
			_ http.Header) io.ReadCloser {
			return &late{b, 5 * time.Millisecond}
		}},
		"stalls": {change: func(n int, b io.ReadCloser, _ http.Header) io.ReadCloser {
			if n > 2 {
				return b
			}
			return &late{b, 3 * time.Second}
		}},
		"truncates": {change: func(n int, b io.ReadCloser, h http.Header) io.ReadCloser {
			if n > 1 {
				return b
			}
			h.Del("Content-Length")
			return &cut{b, 500_000, io.EOF}
		}},
		"corrupts once": {change: func(n int, b io.ReadCloser, _ http.Header) io.ReadCloser {
			if n > 1 {
				return b
			}
			return &flip{ReadCloser: b}
		}},
		"corrupts for ever": {change: func(_ int, b io.ReadCloser,
			_ http.Header) io.ReadCloser {
			return &flip{ReadCloser: b}
		}, kind: fault.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: d.addr})
			proxy.Transport = d.http
			proxy.ErrorLog = log.New(io.Discard, "", 0)
			var mu sync.Mutex
			large := 0
			proxy.ModifyResponse = func(resp *http.Response) error {
				if resp.Request.Method == http.MethodGet && resp.ContentLength > 100_000 {
					mu.Lock()
					defer mu.Unlock()
					large++
					resp.Body = row.change(large, resp.Body, resp.Header)
					if resp.Header.Get("Content-Length") == "" {
						resp.ContentLength = -1
					}
				}
				return nil
			}
			srv := httptest.NewServer(proxy)
			defer srv.Close()
			srv.Config.ErrorLog = proxy.ErrorLog
			d.hosts(fmt.Sprintf("server = %q\nca = %q\n", srv.URL, d.ca))
			s := d.store()
			got, err := s.Pull(t.Context(), ref, registry.Auth{})
			if row.kind != "" {
				if !errors.Is(err, row.kind) {
					t.Errorf("%v", err)
				}
				assertEmpty(t, s)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal([]byte(fileIn(t, s, got, "a")), content) {
				t.Error("the file is wrong")
			}
			assertNoTempFiles(t, s)
		})
	}
}

// Two mirrors are equally slow. The one with the higher minimum rate is abandoned; the other one is
// kept, although the registry behind them is fast.
func TestSlowMirrorsOfDebiansRegistry(t *testing.T) {
	needRoot(t)
	d := newDebian(t)
	content := make([]byte, 3<<20)
	rand.Read(content)
	ref := d.push("public/app:1", imageOf(t, "x", layerOf(t, file{"a", string(content)})))
	var mu sync.Mutex
	served := make(map[string]int) // large responses by host
	mirror := func() string {
		proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: d.addr})
		proxy.Transport, proxy.ErrorLog = d.http, log.New(io.Discard, "", 0)
		srv := httptest.NewUnstartedServer(proxy)
		host := srv.Listener.Addr().String()
		proxy.ModifyResponse = func(resp *http.Response) error {

			if resp.Request.Method == http.MethodGet && resp.ContentLength > 100_000 {
				mu.Lock()
				defer mu.Unlock()
				served[host]++
				resp.Body = &late{resp.Body, 20 * time.Millisecond} // 32 KiB each time: 1.6 MB a second
			}
			return nil
		}
		srv.Config.ErrorLog = proxy.ErrorLog
		srv.Start()
		t.Cleanup(srv.Close)
		return host
	}
	hasty, lax := mirror(), mirror()
	// the CA of the token server
	d.hosts(fmt.Sprintf("server = \"https://%s\"\nca = %[2]q\n[host.\"http://%[3]s\"]\nca = "+
		"%[2]q\n[host.\"http://%[4]s\"]\nca = %[2]q\n", d.addr, d.ca, hasty, lax))
	s := openStore(t, "", func(o *Options) {
		o.Registry = registry.Options{
			CertsDirs: []string{d.certs}, Limits: registry.Limits{Stall: 2 * time.Second, MinRate: 8 << 20},
			Sources: map[string]registry.Limits{hasty: {Stall: time.Second}, lax: {MinRate: 64 << 10}},
		}
	})
	img, err := s.Pull(t.Context(), ref, registry.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	if fileIn(t, s, img, "a") != string(content) {
		t.Error("the file is wrong")
	}
	if served[hasty] != 1 || served[lax] != 1 {
		t.Errorf("%s, which must be faster, served %d times, and %s %d times, want once each", hasty, served[hasty],
			lax, served[lax])
	}
}

// cut ends a stream after a number of bytes.
type cut struct {
	io.ReadCloser
	left int
	end  error
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, c.end
	}
	n, err := c.ReadCloser.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// late waits before each read.
type late struct {
	io.ReadCloser
	wait time.Duration
}

func (l *late) Read(p []byte) (int, error) {
	time.Sleep(l.wait)
	return l.ReadCloser.Read(p)
}

// flip flips one bit.
type flip struct {
	io.ReadCloser
	done bool
}

func (f *flip) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if n > 0 && !f.done {
		f.done = true
		p[n-1] ^= 4
	}
	return n, err
}
