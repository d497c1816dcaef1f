package kubelet

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/kuri-cri/kuri/test/harness"
)

// shellPod echoes its stdin and serves a page.
const shellPod = `apiVersion: v1
kind: Pod
metadata: {name: shell, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: shell
    image: %s
    imagePullPolicy: IfNotPresent
    stdin: true
    command: [sh, -c, "while read x; do echo got $x; done"]
  - name: web
    image: localhost/kuri-web:1
`

// TestStreams opens every stream of a pod through the kubelet's own API, as the API server does for
// kubectl. The kubelet translates WebSocket into SPDY.
func TestStreams(t *testing.T) {
	if os.Getenv("KURI_KUBELET") == "" {
		t.Skip("KURI_KUBELET is not set: test/kubelet/run builds a kubelet and sets it")
	}
	addAddress(t)
	d := harness.Start(t, harness.Options{})
	loadExample(t, d)
	image := d.PullBusybox(t)
	n := startNode(t, d, nodeOptions{})
	manifest := harness.Write(t, n.manifests, "shell.yaml", fmt.Sprintf(shellPod, image))
	harness.Eventually(t, 2*time.Minute, "the pod runs", n.shellRuns)

	for name, transport := range harness.Transports {
		t.Run(name, func(t *testing.T) {
			t.Run("exec", func(t *testing.T) { execs(t, transport) })
			t.Run("terminal", func(t *testing.T) { terminal(t, transport) })
			t.Run("attach", func(t *testing.T) { attaches(t, transport) })
			t.Run("port forwarding", func(t *testing.T) { forwards(t, transport) })
		})
	}
	t.Run("an attachment goes on while kurid is killed and started", func(t *testing.T) { outlives(t, d, n) })

	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	isGone(t, d, n)
	d.RemovePod(t, d.RunPod(t, harness.Pod("last")))
}

// TestStreamsOverTLS has kurid serve its streams over TLS, with a certificate of a CA that the node
// trusts. A kubelet that does not trust it cannot open streams.
func TestStreamsOverTLS(t *testing.T) {
	if os.Getenv("KURI_KUBELET") == "" {
		t.Skip("KURI_KUBELET is not set: test/kubelet/run builds a kubelet and sets it")
	}
	addAddress(t)
	ca, cert, key := certificates(t)
	other, _, _ := certificates(t)
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[stream]\ntls_cert = %q\ntls_key = %q\n", cert, key)})
	loadExample(t, d)
	image := d.PullBusybox(t)
	for name, trusted := range map[string]string{"trusted": ca, "not trusted": other} {
		t.Run(name, func(t *testing.T) {
			n := startNode(t, d, nodeOptions{Env: []string{"SSL_CERT_FILE=" + trusted, "SSL_CERT_DIR=" + t.TempDir()}})
			manifest := harness.Write(t, n.manifests, "shell.yaml", fmt.Sprintf(shellPod, image))
			harness.Eventually(t, 2*time.Minute, "the pod runs", n.shellRuns)
			for name, transport := range harness.Transports {
				if trusted != ca {
					err := run(t, transport, "exec", url.Values{"command": {"true"}, "output": {"1"}},
						remotecommand.StreamOptions{Stdout: io.Discard})
					if err == nil || !strings.Contains(err.Error()+n.tail(), "certificate signed by unknown authority") {
						t.Errorf("%s: %v", name, err)
					}
					continue
				}
				t.Run(name, func(t *testing.T) {
					t.Run("exec", func(t *testing.T) { execs(t, transport) })
					t.Run("terminal", func(t *testing.T) { terminal(t, transport) })
					t.Run("attach", func(t *testing.T) { attaches(t, transport) })
					t.Run("port forwarding", func(t *testing.T) { forwards(t, transport) })
				})
			}
			if err := os.Remove(manifest); err != nil {
				t.Fatal(err)
			}
			isGone(t, d, n)
		})
	}
	d.RemovePod(t, d.RunPod(t, harness.Pod("last")))
}

// certificates writes the certificate of a CA, and one issued by it for the node itself with its
// key, and returns the paths.
func certificates(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	issue := func(name string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, string) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = own
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		template.Subject, template.BasicConstraintsValid = pkix.Name{CommonName: name}, true
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &own.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return own, harness.Write(t, dir, name+".crt",
			string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	signer, ca := issue("ca", root, root, nil)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	own, cert := issue("kurid", leaf, root, signer)
	der, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return ca, cert, harness.Write(t, dir, "kurid.key",
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func (n *node) shellRuns() error {
	pods, err := n.pods()
	if err != nil {
		return err
	}
	for _, p := range pods {
		running := 0
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running != nil {
				running++
			}
		}
		if p.Name == "shell-"+nodeName && p.Status.Phase == v1.PodRunning && running == 2 {
			return nil
		}
	}
	return fmt.Errorf("the kubelet has %d pods, and it is not among them or does not run", len(pods))
}

// kubeletURL returns the URL of a verb of the kubelet's API.
func kubeletURL(path string, query url.Values) (*rest.Config, *url.URL) {
	u := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", apiPort), Path: path, RawQuery: query.Encode()}
	return &rest.Config{Host: u.Scheme + "://" + u.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, u
}

func run(t *testing.T, x harness.Transport, verb string, query url.Values, o remotecommand.StreamOptions) error {
	t.Helper()
	c, u := kubeletURL("/"+verb+"/default/shell-"+nodeName+"/shell", query)
	executor, err := x.Command(c, u)
	if err != nil {
		t.Fatal(err)
	}
	return executor.StreamWithContext(t.Context(), o)
}

func execs(t *testing.T, x harness.Transport) {
	var stdout, stderr bytes.Buffer
	in := strings.Repeat("0123456789abcdef", 1<<16)
	err := run(t, x, "exec", url.Values{"command": {"sh", "-c", "cat; echo oops >&2; exit 42"}, "input": {"1"},
		"output": {"1"}, "error": {"1"}},
		remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &stdout, Stderr: &stderr})
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 42 || stdout.String() != in || stderr.String() != "oops\n" {
		t.Errorf("%d bytes of %d, %q, %v", stdout.Len(), len(in), stderr.String(), err)
	}
	err = run(t, x, "exec", url.Values{"command": {"nonesuch"}, "output": {"1"}},
		remotecommand.StreamOptions{Stdout: &stdout})
	if err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("no such program: %v", err)
	}
}

func terminal(t *testing.T, x harness.Transport) {
	keyboard, keys := io.Pipe()
	out, is, done := &harness.Screen{}, make(harness.Sizes, 1), make(chan error, 1)
	is <- remotecommand.TerminalSize{Width: 123, Height: 45}
	defer close(is)
	go func() {
		done <- run(t, x, "exec", url.Values{"command": {"sh", "-c",
			"until stty size | grep 123; do sleep 0.1; done; read x; exit 3"}, "input": {"1"}, "output": {"1"}, "tty": {"1"}},
			remotecommand.StreamOptions{Stdin: keyboard, Stdout: out, Tty: true, TerminalSizeQueue: is})
	}()
	out.Await(t, "45 123")
	io.WriteString(keys, "\n")
	var exit utilexec.CodeExitError
	if err := <-done; !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("%v", err)
	}
	keys.Close()
}

// attached attaches to the shell and returns its keyboard, its screen and a channel that reports the end.
func attached(t *testing.T, x harness.Transport) (keys *io.PipeWriter, out *harness.Screen, done chan error) {
	t.Helper()
	keyboard, keys := io.Pipe()
	out, done = &harness.Screen{}, make(chan error, 1)
	go func() {
		done <- run(t, x, "attach", url.Values{"input": {"1"}, "output": {"1"}},
			remotecommand.StreamOptions{Stdin: keyboard, Stdout: out})
	}()
	return keys, out, done
}

// A client that detaches does not end the shell, and the next one can attach to it.
func attaches(t *testing.T, x harness.Transport) {
	for i := range 2 {
		keys, out, _ := attached(t, x)
		harness.Eventually(t, 20*time.Second, "an answer", func() error {
			io.WriteString(keys, fmt.Sprintf("hello %d\n", i))
			time.Sleep(100 * time.Millisecond)
			return out.Shows(fmt.Sprintf("got hello %d", i))
		})
		keys.Close()
	}
}

// forwards fetches the page of the pod's other container through a forwarded port, many times concurrently.
func forwards(t *testing.T, x harness.Transport) {
	c, u := kubeletURL("/portForward/default/shell-"+nodeName, nil)
	local, end := x.Forward(t, c, u, 8080)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
			resp, err := client.Get("http://" + local)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			page, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(page), "shell-"+nodeName) {
				t.Errorf("%s %v %s", resp.Status, err, page)
			}
		})
	}
	wg.Wait()
	if err := end(); err != nil {
		t.Error(err)
	}
}

func outlives(t *testing.T, d *harness.Daemon, n *node) {
	keys, out, _ := attached(t, harness.Transports["SPDY"])
	say := func(text string) {
		t.Helper()
		io.WriteString(keys, text+"\n")
		out.Await(t, "got "+text)
	}
	harness.Eventually(t, 20*time.Second, "an answer", func() error {
		io.WriteString(keys, "before\n")
		time.Sleep(100 * time.Millisecond)
		return out.Shows("got before")
	})
	d.Kill9(t)
	say("without")
	d.Continue(t)
	say("after")
	harness.Eventually(t, 30*time.Second, "a command runs in the pod again", func() error {
		var stdout bytes.Buffer
		err := run(t, harness.Transports["WebSocket"], "exec", url.Values{"command": {"echo", "again"}, "output": {"1"}},
			remotecommand.StreamOptions{Stdout: &stdout})
		if err != nil || stdout.String() != "again\n" {
			return fmt.Errorf("%q %w", stdout.String(), err)
		}
		return nil
	})
	say("at last")
	keys.Close()
}
