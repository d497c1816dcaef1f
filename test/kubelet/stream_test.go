package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/kuri-cri/kuri/test/harness"
)

// shellPod answers with what it is told on its stdin, and serves a page.
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

// TestStreams opens every stream of a pod through the kubelet's own API, as the API server does for kubectl. What comes
// over WebSocket the kubelet makes SPDY of.
func TestStreams(t *testing.T) {
	if os.Getenv("KURI_KUBELET") == "" {
		t.Skip("KURI_KUBELET is not set: test/kubelet/run builds a kubelet and sets it")
	}
	addAddress(t)
	d := harness.Start(t, harness.Options{})
	loadExample(t, d)
	image := d.PullBusybox(t)
	n := startNode(t, d)
	manifest := harness.Write(t, n.manifests, "shell.yaml", fmt.Sprintf(shellPod, image))
	harness.Eventually(t, 2*time.Minute, "the pod runs", n.shellRuns)

	for name, transport := range transports {
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

// transport is a way in which kubectl's own client opens streams.
type transport struct {
	command func(*rest.Config, *url.URL) (remotecommand.Executor, error)
	ports   func(*rest.Config, *url.URL) (httpstream.Dialer, error)
}

var transports = map[string]transport{
	"SPDY": {
		command: func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(c, http.MethodPost, u)
		},
		ports: func(c *rest.Config, u *url.URL) (httpstream.Dialer, error) {
			t, upgrader, err := spdy.RoundTripperFor(c)
			return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: t}, http.MethodPost, u), err
		},
	},
	"WebSocket": {
		command: func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(c, http.MethodGet, u.String())
		},
		ports: func(c *rest.Config, u *url.URL) (httpstream.Dialer, error) {
			return portforward.NewSPDYOverWebsocketDialerForStreaming(u, c)
		},
	},
}

// kubeletURL is that of a verb of the kubelet's API.
func kubeletURL(path string, query url.Values) (*rest.Config, *url.URL) {
	u := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", apiPort), Path: path, RawQuery: query.Encode()}
	return &rest.Config{Host: u.Scheme + "://" + u.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, u
}

func (x transport) run(t *testing.T, verb string, query url.Values, o remotecommand.StreamOptions) error {
	t.Helper()
	c, u := kubeletURL("/"+verb+"/default/shell-"+nodeName+"/shell", query)
	executor, err := x.command(c, u)
	if err != nil {
		t.Fatal(err)
	}
	return executor.StreamWithContext(t.Context(), o)
}

func execs(t *testing.T, x transport) {
	var stdout, stderr bytes.Buffer
	in := strings.Repeat("0123456789abcdef", 1<<16)
	err := x.run(t, "exec", url.Values{"command": {"sh", "-c", "cat; echo oops >&2; exit 42"}, "input": {"1"}, "output": {"1"}, "error": {"1"}},
		remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &stdout, Stderr: &stderr})
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 42 || stdout.String() != in || stderr.String() != "oops\n" {
		t.Errorf("%d bytes of %d, %q, %v", stdout.Len(), len(in), stderr.String(), err)
	}
	err = x.run(t, "exec", url.Values{"command": {"nonesuch"}, "output": {"1"}}, remotecommand.StreamOptions{Stdout: &stdout})
	if err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("no such program: %v", err)
	}
}

// screen is an output that can be looked at while it is written to.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) await(t *testing.T, want string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, fmt.Sprintf("%q on the screen", want), func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !strings.Contains(s.text.String(), want) {
			return fmt.Errorf("there is %q", s.text.String())
		}
		return nil
	})
}

// size is that of a terminal which does not change.
type size chan remotecommand.TerminalSize

func (s size) Next() *remotecommand.TerminalSize {
	is, ok := <-s
	if !ok {
		return nil
	}
	return &is
}

func terminal(t *testing.T, x transport) {
	keyboard, keys := io.Pipe()
	out, is, done := &screen{}, make(size, 1), make(chan error, 1)
	is <- remotecommand.TerminalSize{Width: 123, Height: 45}
	defer close(is)
	go func() {
		done <- x.run(t, "exec", url.Values{"command": {"sh", "-c", "until stty size | grep 123; do sleep 0.1; done; read x; exit 3"}, "input": {"1"}, "output": {"1"}, "tty": {"1"}},
			remotecommand.StreamOptions{Stdin: keyboard, Stdout: out, Tty: true, TerminalSizeQueue: is})
	}()
	out.await(t, "45 123")
	io.WriteString(keys, "\n")
	var exit utilexec.CodeExitError
	if err := <-done; !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("%v", err)
	}
	keys.Close()
}

// attached attaches to the shell, and returns its keyboard, its screen and the end.
func attached(t *testing.T, x transport) (keys *io.PipeWriter, out *screen, done chan error) {
	t.Helper()
	keyboard, keys := io.Pipe()
	out, done = &screen{}, make(chan error, 1)
	go func() {
		done <- x.run(t, "attach", url.Values{"input": {"1"}, "output": {"1"}}, remotecommand.StreamOptions{Stdin: keyboard, Stdout: out})
	}()
	return keys, out, done
}

// Who detaches does not end the shell, which the next one attaches to.
func attaches(t *testing.T, x transport) {
	for i := range 2 {
		keys, out, _ := attached(t, x)
		harness.Eventually(t, 20*time.Second, "an answer", func() error {
			io.WriteString(keys, fmt.Sprintf("hello %d\n", i))
			time.Sleep(100 * time.Millisecond)
			out.mu.Lock()
			defer out.mu.Unlock()
			if !strings.Contains(out.text.String(), fmt.Sprintf("got hello %d", i)) {
				return errors.New(out.text.String())
			}
			return nil
		})
		keys.Close()
	}
}

// forwards fetches the page of the pod's other container through a forwarded port, many times at once.
func forwards(t *testing.T, x transport) {
	c, u := kubeletURL("/portForward/default/shell-"+nodeName, nil)
	dialer, err := x.ports(c, u)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
			resp, err := client.Get("http://" + net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[0].Local)))
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
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func outlives(t *testing.T, d *harness.Daemon, n *node) {
	keys, out, _ := attached(t, transports["SPDY"])
	say := func(text string) {
		t.Helper()
		io.WriteString(keys, text+"\n")
		out.await(t, "got "+text)
	}
	harness.Eventually(t, 20*time.Second, "an answer", func() error {
		io.WriteString(keys, "before\n")
		time.Sleep(100 * time.Millisecond)
		out.mu.Lock()
		defer out.mu.Unlock()
		if !strings.Contains(out.text.String(), "got before") {
			return errors.New(out.text.String())
		}
		return nil
	})
	d.Kill9(t)
	say("without")
	d.Continue(t)
	say("after")
	harness.Eventually(t, 30*time.Second, "a command runs in the pod again", func() error {
		var stdout bytes.Buffer
		err := transports["WebSocket"].run(t, "exec", url.Values{"command": {"echo", "again"}, "output": {"1"}}, remotecommand.StreamOptions{Stdout: &stdout})
		if err != nil || stdout.String() != "again\n" {
			return fmt.Errorf("%q %w", stdout.String(), err)
		}
		return nil
	})
	say("at last")
	keys.Close()
}
