package credential

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// identity is a self-signed certificate for loopback addresses, used as server, client and CA.
type identity struct {
	cert, key []byte // PEM
	pair      tls.Certificate
	pool      *x509.CertPool
}

func newIdentity(t *testing.T) *identity {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "kuri-test"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	i := &identity{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}),
		pool: x509.NewCertPool(),
	}
	i.pool.AppendCertsFromPEM(i.cert)
	if i.pair, err = tls.X509KeyPair(i.cert, i.key); err != nil {
		t.Fatal(err)
	}
	return i
}

// guarded starts a registry that requires TLS, a client certificate and a password, and returns its
// host and port.
func guarded(t *testing.T, own, client *identity) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path != "/v2/":
			w.WriteHeader(http.StatusNotFound)
		case r.Header.Get("X-Team") == "wrong":
			w.WriteHeader(http.StatusTeapot)
		case user != "me" || password != "right":
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{own.pair}}
	if client != nil {
		server.TLS.ClientAuth, server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, client.pool
	}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "https://")
}

func TestReach(t *testing.T) {
	own, client, stranger := newIdentity(t), newIdentity(t), newIdentity(t)
	open, closed := guarded(t, own, nil), guarded(t, own, client)
	for _, row := range []struct {
		name     string
		registry string
		hosts    string // hosts.toml; "" for docker's files only
		says     string // part of the error; "" if the credentials are accepted
	}{
		{"a CA", open, "ca = 'ca.crt'\n", ""},
		{"several CAs", open, "ca = ['other.crt', 'ca.crt']\n", ""},
		{"another CA", open, "ca = 'other.crt'\n", "certificate"},
		{"nothing of use", open, "capabilities = ['pull']\n", "certificate"},
		{"not verified", open, "skip_verify = true\n", ""},
		{"the server's name", open, "server = 'https://" + open + "'\nca = 'ca.crt'\n", ""},
		{"the registry in a table", open, "server = 'https://" + open + "'\n[host.'https://" + open +
			"']\nca = 'ca.crt'\n", ""},
		{"a mirror's CA", open, "server = 'https://" + open + "'\n[host.'https://mirror.example']\nca = 'ca.crt'\n",
			"certificate"},
		{"a mirror alone", open, "ca = 'ca.crt'\n[host.'https://mirror.invalid']\nskip_verify = true\n", ""},
		{"a path", open, "server = 'https://" + open + "/deep'\nca = 'ca.crt'\n", "404"},
		{"headers", open, "ca = 'ca.crt'\n[header]\nX-Team = ['wrong']\n", "418"},
		{"no client", closed, "ca = 'ca.crt'\n", "certificate"},
		{"a pair", closed, "ca = 'ca.crt'\nclient = [['client.cert', 'client.key']]\n", ""},
		{"in one file", closed, "ca = 'ca.crt'\nclient = 'both.pem'\n", ""},
		{"in one file each", closed, "ca = 'ca.crt'\nclient = ['both.pem']\n", ""},
		{"a stranger", closed, "ca = 'ca.crt'\nclient = 'stranger.pem'\n", "certificate"},
		{"docker's files", closed, "", ""},
		{"not TOML", open, "ca = =", "hosts.toml"},
		{"a misspelt key", open, "skip-verify = true", "is skip_verify meant?"},
		{"no such file", open, "ca = 'nowhere.crt'\n", "nowhere.crt"},
		{"not a certificate", open, "ca = 'client.key'\n", "no certificate"},
		{"a number", open, "ca = 1\n", "ca must be a path"},
		{"three files", closed, "client = [['a', 'b', 'c']]\n", "pairs of a certificate and a key"},
		{"no address", open, "server = 'ftp://x'\n", "server must be a host"},
	} {
		t.Run(row.name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, strings.Replace(row.registry, ":", "_", 1)+"_")
			if row.says == "" {
				dir = filepath.Join(root, row.registry)
			}
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, body := range map[string][]byte{
				"ca.crt": own.cert, "client.cert": client.cert, "client.key": client.key, "other.crt": stranger.cert,
				"both.pem": append(client.key, client.cert...), "stranger.pem": append(stranger.key, stranger.cert...),
			} {
				write(t, filepath.Join(dir, name), string(body), 0o600)
			}
			if row.hosts != "" {
				write(t, filepath.Join(dir, "hosts.toml"), row.hosts, 0o600)
			}
			at, err := Reach([]string{filepath.Join(root, "absent"), root}, row.registry)
			if err == nil {
				err = Verify(t.Context(), at, row.registry, Credential{Username: "me", Password: "right"})
			}
			if row.says == "" && err != nil || row.says != "" && (err == nil || !strings.Contains(err.Error(), row.says)) {
				t.Errorf("%v, want %q", err, row.says)
			}
		})
	}
}

// A registry without a directory uses _default, and never another one's.
func TestReachByName(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	for dir, server := range map[string]string{
		first + "/_default":      "first.example",
		second + "/own.example":  "own.example:5000",
		second + "/docker.io":    "hub.example",
		second + "/a.io_5000_":   "a.example",
		second + "/_default":     "second.example",
		second + "/plain.io_80_": "http://plain.example",
	} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "hosts.toml"), fmt.Sprintf("server = %q\n", server), 0o600)
	}
	for registry, want := range map[string]string{
		"own.example": "https://own.example:5000/v2/", "docker.io": "https://hub.example/v2/",
		"a.io:5000":   "https://a.example/v2/",
		"plain.io:80": "http://plain.example/v2/", "else.example": "https://first.example/v2/",
	} {
		if got := reach(t, []string{first, second}, registry).base.String(); got != want {
			t.Errorf("%s is at %s, want %s", registry, got, want)
		}
	}
	for registry, want := range map[string]string{"docker.io": "https://registry-1.docker.io/v2/",
		"else.example:1": "https://else.example:1/v2/"} {
		if got := reach(t, nil, registry).base.String(); got != want {
			t.Errorf("%s is at %s, want %s", registry, got, want)
		}
	}
}

// An untrusted certificate on loopback does not cause a fallback to plain HTTP.
func TestNoPlainHTTPInsteadOfTLS(t *testing.T) {
	registry := guarded(t, newIdentity(t), nil)
	err := Verify(t.Context(), reach(t, nil, registry), registry, Credential{Username: "me", Password: "right"})
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}
}

func TestKept(t *testing.T) {
	f := open(t, `{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "quay.example": {"username": "q", "password": "p"},
		"quay.example/team": {"username": "t", "password": "p"}, "quay.example/none": {}, "quay.example/v1/": {"username": "x", "password": "p"}, "quay.example//odd": {"username": "x", "password": "p"}, "other.example:5000": {"identitytoken": "i"}}}`)
	if got := fmt.Sprint(f.Registries()); got != "[docker.io other.example:5000 quay.example]" {
		t.Error(got)
	}
	for registry, want := range map[string]map[string]Credential{
		"docker.io": {"docker.io": {Username: "u", Password: "p"}},
		"quay.example": {"quay.example": {Username: "q", Password: "p"},
			"quay.example/team": {Username: "t", Password: "p"}, "quay.example/none": {Username: "q", Password: "p"}},
		"other.example:5000": {"other.example:5000": {IdentityToken: "i"}},
		"none.example":       {},
	} {
		if got, err := f.Kept(t.Context(), registry); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v %v, want %v", registry, got, err, want)
		}
	}
	if got, err := f.Find(t.Context(), "quay.example", "/"); err != nil || got.Username != "q" {
		t.Error(got, err)
	}
	if _, err := open(t, `{"auths": {"bad.example": {"auth": "?"}}}`).Kept(t.Context(), "bad.example"); err == nil {
		t.Error("a damaged entry is none")
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("server = 'https://x'\nca = ['a']\nclient = [['a', 'b']]\n[header]\na = 'b'\n[host.'https://x']\nskip_verify = true\n")
	f.Fuzz(func(t *testing.T, body string) {
		dir := filepath.Join(t.TempDir(), "x")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "hosts.toml"), body, 0o600)
		h, err := Reach([]string{filepath.Dir(dir)}, "x")
		if err == nil && (h.base.Host == "" || h.client == nil) {
			t.Errorf("%q: %+v", body, h)
		}
	})
}
