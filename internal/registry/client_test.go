package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// clientCertificate writes a certificate and its key to two PEM files and returns the certificate.
func clientCertificate(t *testing.T, certFile, keyFile string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile: {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A host that requires a client certificate gets the one in hosts.toml, and each request has the
// configured headers. The same host refuses requests without them, which proves that the test
// works.
func TestClientCertificateAndHeaders(t *testing.T) {
	c := newContent(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Team") != "nuts" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		c.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	certs := configure(t, "example.com", "")
	dir := filepath.Join(certs[1], "example.com")
	trusted := x509.NewCertPool()
	trusted.AddCert(clientCertificate(t, filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key")))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted}
	srv.StartTLS()
	t.Cleanup(srv.Close)

	const client, header = "client = [[\"client.cert\", \"client.key\"]]\n", "[header]\nX-Team = [\"nuts\"]\n"
	for name, row := range map[string]struct {
		more string
		ok   bool
	}{
		"both":             {client + header, true},
		"no header":        {client, false},
		"no certificate":   {header, false},
		"neither of these": {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			// hosts.toml is read when a Repository is opened, so a change affects the next one.
			body := fmt.Sprintf("server = %q\nskip_verify = true\n%s", srv.URL, row.more)
			if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			err := readBlob(t.Context(), open(t, certs, "example.com/library/app:1", Auth{}), c)
			if (err == nil) != row.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestDockerConfig(t *testing.T) {
	for _, row := range []struct{ host, server, want string }{
		{"quay.io", "", `{"auths":{"quay.io":{"auth":"dTpw"}}}`},
		{"quay.io", "https://quay.io/v1/", `{"auths":{"quay.io":{"auth":"dTpw"}}}`},
		{"quay.io", "docker.io", ""},
		{"docker.io", "", `{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`},
		{"docker.io", "https://index.docker.io/v1/", `{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`},
	} {
		got, err := Auth{Username: "u", Password: "p", ServerAddress: row.server}.DockerConfig(row.host)
		if err != nil || string(got) != row.want {
			t.Errorf("%+v: %s, %v", row, got, err)
		}
	}
}
