package e2e

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// forward forwards a port of a pod over SPDY, and returns the local address.
func (s *shell) forward(t *testing.T, pod string, port int32) string {
	t.Helper()
	return s.forwardOver(t, "SPDY", pod, port)
}

func (s *shell) forwardOver(t *testing.T, transport, pod string, port int32) string {
	t.Helper()
	u := s.forwardURL(t, pod, port)
	local, _ := harness.Transports[transport].Forward(t, &rest.Config{Host: u.Host}, u, port)
	return local
}

func (s *shell) forwardURL(t *testing.T, pod string, ports ...int32) *url.URL {
	t.Helper()
	resp, err := s.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: ports})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// ask sends a request, closes its side of the connection, and returns the response.
func ask(address, request string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func TestPortForward(t *testing.T) {
	s := newShell(t)
	host := s.RunPod(t, harness.HostNetwork(harness.Pod("host")))
	for dialer := range harness.Transports {
		t.Run(dialer, func(t *testing.T) {
			for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
				local := s.forwardOver(t, dialer, s.pod, harness.EchoIn(t, "/run/netns/kuri-"+s.pod, address))
				for range 3 {
					request := strings.Repeat("0123456789abcdef", 1<<16)
					if answer, err := ask(local, request); err != nil || answer != request {
						t.Errorf("%s: %d bytes of %d, %v", address, len(answer), len(request), err)
					}
				}
			}
			// On the host's network: many connections at once, each with its own bytes.
			local := s.forwardOver(t, dialer, host, harness.EchoIn(t, fmt.Sprintf("/proc/%d/ns/net", s.Pid()), "127.0.0.1:0"))
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					request := strings.Repeat(fmt.Sprintf("%03d", i), 50000)
					if answer, err := ask(local, request); err != nil || answer != request {
						t.Errorf("connection %d: %d bytes of %d, %v", i, len(answer), len(request), err)
					}
				})
			}
			wg.Wait()
			// A port without a listener.
			local = s.forwardOver(t, dialer, s.pod, 9)
			if answer, err := ask(local, "x"); answer != "" {
				t.Errorf("%q %v", answer, err)
			}
		})
	}
}

// Without SPDY each port has two channels of a WebSocket, for data and for errors, which start with
// the port number. Clients that cannot receive binary messages get them in base64.
func TestPortForwardOverChannels(t *testing.T) {
	s := newShell(t)
	ports := []int32{harness.EchoIn(t, "/run/netns/kuri-"+s.pod, "127.0.0.1:0"), 9,
		harness.EchoIn(t, "/run/netns/kuri-"+s.pod, "[::1]:0")}
	for protocol, inBase64 := range map[string]bool{"": false, "v4.channel.k8s.io": false,
		"v4.base64.channel.k8s.io": true} {
		t.Run(protocol, func(t *testing.T) {
			u := s.forwardURL(t, s.pod, ports...)
			u.Scheme = "ws"
			c := openChannels(t, u.String(), protocol, inBase64)
			want := map[byte]string{}
			for i, port := range ports {
				number := string([]byte{byte(port), byte(port >> 8)})
				want[byte(2*i)], want[byte(2*i+1)] = number, number
			}
			for _, i := range []int{0, 2} {
				text := strings.Repeat(fmt.Sprintf("hello \x00\xff %d ", i), 1<<12)
				c.send(byte(2*i), text)
				want[byte(2*i)] += text
			}
			said := c.receiveUntil(func(said map[byte]string) bool {
				return len(said[0]) >= len(want[0]) && len(said[4]) >= len(want[4]) && len(said[3]) > len(want[3])
			})
			if !strings.Contains(said[3], "nothing listens on port 9") {
				t.Errorf("errors of the port where nobody listens: %q", said[3])
			}
			delete(said, 3)
			delete(want, 3)
			if !maps.Equal(said, want) {
				t.Errorf("%.100q, not %.100q", said, want)
			}
		})
	}
}

// channels are the channels of a WebSocket. A message starts with the channel's number, as a byte
// or a digit; the content follows as it is or in base64.
type channels struct {
	t        *testing.T
	ws       *websocket.Conn
	inBase64 bool
}

func openChannels(t *testing.T, address, protocol string, inBase64 bool) *channels {
	t.Helper()
	config, err := websocket.NewConfig(address, "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	if protocol != "" {
		config.Protocol = []string{protocol}
	}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	ws.SetDeadline(time.Now().Add(20 * time.Second))
	return &channels{t, ws, inBase64}
}

func (c *channels) send(channel byte, text string) {
	c.t.Helper()
	var err error
	if c.inBase64 {
		err = websocket.Message.Send(c.ws, string('0'+channel)+base64.StdEncoding.EncodeToString([]byte(text)))
	} else {
		err = websocket.Message.Send(c.ws, append([]byte{channel}, text...))
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// receiveUntil returns the content received on each channel as soon as enough accepts it.
func (c *channels) receiveUntil(enough func(map[byte]string) bool) map[byte]string {
	c.t.Helper()
	said := map[byte]string{}
	for !enough(said) {
		var message []byte
		if err := websocket.Message.Receive(c.ws, &message); err != nil {
			c.t.Fatalf("after %.1000q: %v", said, err)
		}
		channel, text := message[0], message[1:]
		if c.inBase64 {
			channel -= '0'
			var err error
			if text, err = base64.StdEncoding.DecodeString(string(text)); err != nil {
				c.t.Fatal(err)
			}
		}
		said[channel] += string(text)
	}
	return said
}

// All versions of the protocol that a client may use, back to those of very old kubelets.
func TestVersionsOfRemoteCommand(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	address := func() string {
		return s.execURL(t, &runtimeapi.ExecRequest{
			ContainerId: id, Cmd: []string{"sh", "-c", "read x; echo got $x; echo oops >&2; exit 42"}, Stdin: true, Stdout: true,
			Stderr: true,
		})
	}
	for _, protocol := range []string{"channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"} {
		t.Run("SPDY "+protocol, func(t *testing.T) {
			u, err := url.Parse(address())
			if err != nil {
				t.Fatal(err)
			}
			transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
			if err != nil {
				t.Fatal(err)
			}
			x, err := remotecommand.NewSPDYExecutorForProtocols(transport, upgrader, http.MethodPost, u, protocol)
			if err != nil {
				t.Fatal(err)
			}
			stdout, stderr := &harness.Screen{}, &harness.Screen{}
			err = x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("x\n"), Stdout: stdout,
				Stderr: stderr})
			// The first version loses the content of its error stream: kubernetes issue 13395.
			if protocol != "channel.k8s.io" && (err == nil || !strings.Contains(err.Error(), "42")) {
				t.Errorf("%v", err)
			}
			stdout.Await(t, "got x")
			stderr.Await(t, "oops")
		})
	}
	for _, v := range []struct {
		protocol string
		base64   bool
	}{{"", false}, {"channel.k8s.io", false}, {"base64.channel.k8s.io", true}, {"v4.channel.k8s.io", false},
		{"v4.base64.channel.k8s.io", true}, {"v5.channel.k8s.io", false}} {
		t.Run("WebSocket "+v.protocol, func(t *testing.T) {
			c := openChannels(t, strings.Replace(address(), "http", "ws", 1), v.protocol, v.base64)
			c.send(0, "x\n")
			said := c.receiveUntil(func(said map[byte]string) bool { return said[3] != "" })
			if said[1] != "got x\n" || said[2] != "oops\n" || !strings.Contains(said[3], "42") {
				t.Errorf("%q", said)
			}
		})
	}
}
