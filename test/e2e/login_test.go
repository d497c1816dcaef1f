package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

const (
	password = "s3cret:x"
	hashed   = "$2b$04$YKvJxQqkYt701WahclL5zOBrqYmus3OTENHLkeg2Rd15oYCSuLbg." // bcrypt of the password
)

// debianRegistry is Debian's docker-registry in a separate process, with TLS, serving a single
// user. One certificate is the server's, the clients' and the CA of both.
type debianRegistry struct {
	addr, dir, user  string
	caFile, pairFile string // PEM; the second also has the key
	transport        *http.Transport
}

// startDebianRegistry starts a registry that serves only user. If mutual is set, it requires a
// client certificate.
func startDebianRegistry(t *testing.T, user string, mutual bool) *debianRegistry {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("Debian's docker-registry is not installed: make test-deps")
	}
	r := &debianRegistry{dir: t.TempDir(), user: user}
	pair := r.certify(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	l.Close()
	clients := ""
	if mutual {
		clients = fmt.Sprintf(", clientcas: [%s]", r.caFile)
	}
	config := harness.Write(t, r.dir, "config.yml", fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s/data}}
http: {addr: %q, secret: x, tls: {certificate: %s, key: %s%s}}
auth: {htpasswd: {realm: test, path: %s}}
`, r.dir, r.addr, r.caFile, r.pairFile, clients, harness.Write(t, r.dir, "htpasswd", user+":"+hashed+"\n")))
	cmd := exec.Command(program, "serve", config)
	said := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.transport.CloseIdleConnections()
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("docker-registry: %s", said)
		}
	})
	r.transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true,
		Certificates: []tls.Certificate{pair}}}
	harness.Eventually(t, 10*time.Second, "docker-registry answers", func() error {
		conn, err := net.Dial("tcp", r.addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return r
}

// certify creates the registry's certificate.
func (r *debianRegistry) certify(t *testing.T) tls.Certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: r.user},
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
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	both := cert + string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}))
	r.caFile, r.pairFile = harness.Write(t, r.dir, "ca.pem", cert), harness.Write(t, r.dir, "pair.pem", both)
	pair, err := tls.X509KeyPair([]byte(both), []byte(both))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (r *debianRegistry) push(t *testing.T, repository string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.addr + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(&authn.Basic{Username: r.user, Password: password})
	if err := remote.Write(ref, img, remote.WithTransport(r.transport), auth); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// kuri login checks the credentials with the registry, using the certificates of certs.d, and stores them.
// Pulls and repairs then use them, for each registry its own, also for an image whose record is lost.
func TestLoginPullRepair(t *testing.T) {
	one, two := startDebianRegistry(t, "one", false), startDebianRegistry(t, "two", true)
	certs, kept := t.TempDir(), filepath.Join(t.TempDir(), "config.json")
	harness.Write(t, certs, one.addr+"/hosts.toml", fmt.Sprintf("server = \"https://%s\"\nca = %q\n", one.addr,
		one.caFile))
	harness.Write(t, certs, two.addr+"/hosts.toml", fmt.Sprintf("server = \"https://%s\"\nca = %q\nclient = %q\n",
		two.addr, two.caFile, two.pairFile))
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[image]\ncerts_dirs = [%q]\n", certs)})
	t.Setenv("REGISTRY_AUTH_FILE", kept)
	kuri := func(want int, args ...string) string {
		t.Helper()
		out, errs, code := d.Kuri(t, args...)
		if code != want {
			t.Fatalf("kuri %s exits %d:\n%s%s", strings.Join(args, " "), code, out, errs)
		}
		return out + errs
	}

	// 1. Login, with and without the certificates of certs.d, and with a wrong password.
	for _, r := range []*debianRegistry{one, two} {
		if said := kuri(1, "login", "-u", r.user, "-p", password, "--certs-dir", t.TempDir(), r.addr); !strings.Contains(said,
			"certificate in ") {
			t.Errorf("without the CA: %s", said)
		}
		if said := kuri(1, "login", "-u", r.user, "-p", "wrong", "--certs-dir", certs, r.addr); !strings.Contains(said,
			"refuses the credentials") {
			t.Errorf("with a wrong password: %s", said)
		}
		kuri(0, "login", "-u", r.user, "-p", password, "--certs-dir", certs, r.addr)
	}

	// 2. Pull.
	content := func(text string) v1.Image {
		img, err := image.New(v1.Config{}, image.File{Path: "/file", Data: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	refs := []string{one.push(t, "a:1", content("one")), two.push(t, "b:1", content("two"))}
	for _, ref := range refs {
		kuri(0, "pull", ref)
	}

	// 3. Damage is repaired with the credentials, and not without them.
	damage := func() {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(d.Root, "layers", "*", "fs", "file"))
		if err != nil || len(files) != 2 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			if err := os.WriteFile(f, []byte("damaged"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	damage()
	if said := kuri(1, "check", "--images", "--repair", "--authfile", filepath.Join(t.TempDir(),
		"none.json")); strings.Count(said, "not repaired") != 2 || !strings.Contains(said, "credentials are needed") {
		t.Errorf("without credentials: %s", said)
	}
	if said := kuri(0, "check", "--images", "--repair"); strings.Count(said, "(repaired)") != 2 {
		t.Errorf("with credentials: %s", said)
	}
	kuri(0, "check", "--images")

	// 4. So is an image whose record is unreadable, which is in no list.
	records, err := filepath.Glob(filepath.Join(d.Root, "images", "*.json"))
	if err != nil || len(records) != 2 {
		t.Fatal(records, err)
	}
	d.Stop(t)
	for _, path := range records { // the record is valid JSON, but the image's config is missing
		blob := filepath.Join(d.Root, "images", "blobs", "sha256", strings.TrimSuffix(filepath.Base(path), ".json"))
		if err := os.Remove(blob); err != nil {
			t.Fatal(err)
		}
	}
	d.Continue(t)
	if said := kuri(0, "images", "-q"); strings.TrimSpace(said) != "" {
		t.Fatalf("there are images: %s", said)
	}
	if said := kuri(0, "check", "--images", "--repair"); strings.Count(said, "(repaired)") != 2 {
		t.Errorf("of damaged records: %s", said)
	}
	for _, ref := range refs {
		if imageStatus(t, d, ref) == nil {
			t.Errorf("%s is not there", ref)
		}
	}
}
