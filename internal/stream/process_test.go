package stream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The main thread cannot exit, so it must not be one that enters another namespace (see
// namespace.OnThread).
func init() { runtime.LockOSThread() }

// TestMain is also the streaming process, like kurid's main.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Mode {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := Serve(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, o Options) *Client {
	t.Helper()
	o.Address, o.StateDir, o.MaxStreams = "127.0.0.1", t.TempDir(), testMaxStreams
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// get requests a URL without an upgrade and returns the status: 400 or 403 for a valid token.
func get(t *testing.T, client *http.Client, address string) int {
	t.Helper()
	resp, err := client.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestADeadProcessIsReplaced(t *testing.T) {
	c := open(t, Options{})
	if c.process != nil {
		t.Error("a process was started before the first request")
	}
	address, err := c.Exec(Container{ID: "c"}, []string{"true"}, StreamSet{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if code := get(t, http.DefaultClient, address); code == http.StatusNotFound {
		t.Errorf("%s: %d", address, code)
	}
	if _, err := c.Exec(Container{ID: "c"}, []string{"true"}, StreamSet{}); !errors.Is(err, fault.Invalid) {
		t.Errorf("without a stream: %v", err)
	}
	if _, err := c.PortForward(Pod{ID: "p"}, []int32{70000}); !errors.Is(err, fault.Invalid) {
		t.Errorf("port 70000: %v", err)
	}
	first := c.process
	if err := syscall.Kill(first.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-first.ended
	address, err = c.Attach(Container{ID: "c"}, StreamSet{Stdout: true})
	if err != nil {
		t.Fatalf("after it was killed: %v", err)
	}
	if code := get(t, http.DefaultClient, address); code == http.StatusNotFound {
		t.Errorf("%s: %d", address, code)
	}
	last := c.process
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-last.ended:
	default:
		t.Error("the process is still running")
	}
	if _, err := c.Attach(Container{ID: "c"}, StreamSet{Stdout: true}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("after Close: %v", err)
	}
}

// forwarded opens a port forwarding of the host's network over WebSocket channels, without a
// library, and returns the connection. The pod has a network namespace: for one without, the keeper
// would be asked, and none runs here.
func forwarded(t *testing.T, c *Client, port int) net.Conn {
	t.Helper()
	address, err := c.PortForward(Pod{ID: "p", Name: "p", Netns: "/proc/self/ns/net"}, []int32{int32(port)})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\nConnection: Upgrade\r\nUpgrade: "+
		"websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n", u.Path)
	await(t, conn, "\r\n\r\n")
	return conn
}

// await reads until text has arrived.
func await(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	var all []byte
	for buf := make([]byte, 4096); !bytes.Contains(all, []byte(text)); {
		n, err := conn.Read(buf)
		if all = append(all, buf[:n]...); err != nil {
			t.Fatalf("no %q in %q: %v", text, all, err)
		}
	}
}

// say sends a message on a channel.
func say(t *testing.T, conn net.Conn, channel byte, text string) {
	t.Helper()
	frame := append([]byte{0x82, 0x80 | byte(len(text)+1), 0, 0, 0, 0, channel}, text...) // the mask is zero
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
}

// echo serves connections that send back their input, and returns the port.
func echo(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func TestOpenStreamsOutliveKurid(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it enters a network namespace")
	}
	port := echo(t)
	fixed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := fixed.Addr().(*net.TCPAddr).Port
	fixed.Close()
	for name, leave := range map[string]func(*Client){
		"closed": func(c *Client) { c.Close() },
		"killed": func(c *Client) { c.process.control.Close() }, // what the process sees of a killed kurid
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, Options{Port: at, Drain: time.Minute})
			conn := forwarded(t, c, port)
			say(t, conn, 0, "before")
			await(t, conn, "before")
			p := c.process
			leave(c)
			c.process = nil

			next := open(t, Options{Port: at, Drain: time.Minute}) // at once, at the same address
			beside := forwarded(t, next, port)
			say(t, beside, 0, "beside")
			await(t, beside, "beside")
			say(t, conn, 0, "after")
			await(t, conn, "after")
			select {
			case <-p.ended:
				t.Error("the process has ended")
			default:
			}
			conn.Close()
			select {
			case <-p.ended:
			case <-time.After(time.Minute):
				t.Error("the process did not end with its last stream")
			}
			if err := next.Close(); err != nil { // its stream stays open until the test closes it
				t.Error(err)
			}
		})
	}
}

func TestStreamsEndAtTheDrainLimit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it enters a network namespace")
	}
	for _, limit := range []time.Duration{0, 500 * time.Millisecond} {
		c := open(t, Options{Drain: limit})
		conn := forwarded(t, c, echo(t))
		say(t, conn, 0, "before")
		await(t, conn, "before")
		p := c.process
		if err := c.Close(); err != nil {
			t.Errorf("%s: %v", limit, err)
		}
		select {
		case <-p.ended:
		case <-time.After(time.Minute):
			t.Errorf("%s: the process did not end", limit)
		}
		if rest, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %q %v", limit, rest, err)
		}
	}
}

// certificate creates a self-signed certificate for 127.0.0.1 and returns it and its key.
func certificate(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "streams"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	o := Options{TLS: TLS{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"),
		ClientCA: filepath.Join(dir, "ca")}}
	write := func(path string, body []byte) {
		t.Helper()
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	clientCert, clientKey := certificate(t, 100)
	pair, err := tls.X509KeyPair(clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	write(o.TLS.ClientCA, clientCert)
	use := func(serial int64) {
		cert, key := certificate(t, serial)
		write(o.TLS.Cert, cert)
		write(o.TLS.Key, key)
	}
	use(1)
	c := open(t, o)
	// ask opens a new URL with a configuration and returns the serial number of the server's
	// certificate.
	ask := func(config *tls.Config) (int64, error) {
		t.Helper()
		address, err := c.Exec(Container{ID: "c"}, []string{"true"}, StreamSet{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(address, "https://") {
			t.Fatalf("%s", address)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		resp, err := client.Get(address)
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			t.Errorf("%s: %s", address, resp.Status)
		}
		return resp.TLS.PeerCertificates[0].SerialNumber.Int64(), nil
	}
	// the serial number identifies the certificate
	known := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
	want := func(serial int64) {
		t.Helper()
		if got, err := ask(known); err != nil || got != serial {
			t.Errorf("certificate %d, %v; want %d", got, err, serial)
		}
	}
	want(1)
	use(2)
	want(2)
	write(o.TLS.Cert, []byte("broken"))
	want(2)
	syscall.Kill(c.process.pid, syscall.SIGKILL)
	<-c.process.ended
	want(2) // a new process gets the last good one, too
	use(3)
	want(3)
	if _, err := ask(&tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Error("a client without a certificate was accepted")
	}
	old := known.Clone()
	old.MaxVersion = tls.VersionTLS11
	if _, err := ask(old); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	write(o.TLS.Cert, []byte("broken"))
	if _, err := Open(Options{Address: "127.0.0.1", TLS: o.TLS}); !errors.Is(err, fault.Invalid) {
		t.Errorf("Open with a broken certificate: %v", err)
	}
}

// A self-signed certificate can be the client CA, too, and one file can hold all three.
func TestCertificatesInOneFile(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, 1)
	write := func(name string, body []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certPath, keyPath, both := write("cert", cert), write("key", key), write("both", append(bytes.Clone(cert), key...))
	for name, o := range map[string]TLS{
		"the certificate is the client CA": {Cert: certPath, Key: keyPath, ClientCA: certPath},
		"the key is in the same file":      {Cert: both, Key: both},
		"all are in the same file":         {Cert: both, Key: both, ClientCA: both},
	} {
		c := open(t, Options{TLS: o})
		if p := c.files.current(); p == nil || len(p.Cert) == 0 || len(p.Key) == 0 ||
			o.ClientCA != "" && len(p.ClientCA) == 0 {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
