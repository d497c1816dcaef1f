package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
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
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// transports are the ways in which kubectl's own client opens the streams of a URL.
var transports = map[string]func(*testing.T, string) remotecommand.Executor{"SPDY": over("SPDY"), "WebSocket": over("WebSocket")}

func over(name string) func(*testing.T, string) remotecommand.Executor {
	return func(t *testing.T, address string) remotecommand.Executor {
		t.Helper()
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		x, err := harness.Transports[name].Command(&rest.Config{Host: u.Host}, u)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
}

func (s *shell) execURL(t *testing.T, req *runtimeapi.ExecRequest) string {
	t.Helper()
	resp, err := s.Runtime.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

func TestExecStreams(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	for name, open := range transports {
		t.Run(name, func(t *testing.T) {
			// Stdin until end of file, both outputs, and the exit code.
			var stdout, stderr bytes.Buffer
			in := strings.Repeat("0123456789abcdef", 1<<17)
			req := &runtimeapi.ExecRequest{
				ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo oops >&2; exit 42"}, Stdin: true, Stdout: true, Stderr: true,
			}
			err := open(t, s.execURL(t, req)).StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: strings.NewReader(in), Stdout: &stdout, Stderr: &stderr,
			})
			var exit utilexec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 42 || stdout.String() != in || stderr.String() != "oops\n" {
				t.Errorf("%d bytes, %q, %v", stdout.Len(), stderr.String(), err)
			}

			// No stdin, and success.
			stdout.Reset()
			req = &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo done"}, Stdout: true}
			err = open(t, s.execURL(t, req)).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &stdout})
			if err != nil || stdout.String() != "done\n" {
				t.Errorf("%q %v", stdout.String(), err)
			}

			// No such program.
			req = &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"nonesuch"}, Stdout: true}
			err = open(t, s.execURL(t, req)).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &stdout})
			// The error contains the name of the program, and no id.
			if err == nil || !strings.Contains(err.Error(), "nonesuch") || strings.Contains(err.Error(), id) {
				t.Errorf("no such program: %v", err)
			}

			// A background process does not delay the end of the stream.
			start := time.Now()
			req = &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 60 & echo started"}, Stdout: true}
			if err = open(t, s.execURL(t, req)).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &stdout}); err != nil || time.Since(start) > 20*time.Second {
				t.Errorf("after %s: %v", time.Since(start), err)
			}
		})
	}
}

// writes is a writer that passes its input to a function.
type writes func([]byte)

func (f writes) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// A command that exits, or a client that disconnects, is not logged as an error of the node.
func TestStreamsThatEndAreNoErrors(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sh", "-c", "while :; do echo on; sleep 0.05; done")
	for name, open := range transports {
		req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"cat"}, Stdin: true, Stdout: true}
		if err := open(t, s.execURL(t, req)).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("x"), Stdout: io.Discard}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		resp, err := s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		open(t, resp.Url).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: writes(func([]byte) { leave() })})
		leave()
	}
	harness.Eventually(t, 20*time.Second, "two clients that have left", func() error {
		if n := strings.Count(s.Log(t), "the client of a stream has disconnected"); n != len(transports) {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	for line := range strings.Lines(s.Log(t)) {
		if strings.Contains(line, "level=ERROR") {
			t.Errorf("the log has %s", line)
		}
	}
}

func TestExecTerminal(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	for name, open := range transports {
		t.Run(name, func(t *testing.T) {
			keyboard, keys := io.Pipe()
			sizes, out := make(harness.Sizes), &harness.Screen{}
			req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true}
			x := open(t, s.execURL(t, req))
			done := make(chan error, 1)
			go func() {
				done <- x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: keyboard, Stdout: out, Tty: true, TerminalSizeQueue: sizes})
			}()
			sizes <- remotecommand.TerminalSize{Width: 111, Height: 22}
			io.WriteString(keys, "tty\n")
			out.Await(t, "/dev/pts/")
			harness.Eventually(t, 10*time.Second, "the size", func() error {
				io.WriteString(keys, "stty size\n")
				time.Sleep(100 * time.Millisecond)
				return out.Shows("22 111")
			})
			io.WriteString(keys, "exit 3\n")
			var exit utilexec.CodeExitError
			if err := <-done; !errors.As(err, &exit) || exit.Code != 3 {
				t.Errorf("%v", err)
			}
			keys.Close()
			close(sizes)
		})
	}
}

// When a client disconnects its command is ended, whether or not the stream is busy.
func TestExecEndsWithItsClient(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sh", "-c", "while :; do sleep 0.2; done")
	for name, open := range transports {
		for i, script := range []string{"sleep 5%d1 & setsid sleep 5%d2 & sleep 5%d3", "exec 0</dev/null; sleep 5%d1", "while :; do echo 5%d1; done"} {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				number := 100 + 10*i + len(name)
				script := strings.ReplaceAll(script, "%d", fmt.Sprint(number))
				req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo go; " + script}, Stdin: true, Stdout: true}
				address, cut := line(t, s.execURL(t, req))
				x := open(t, address)
				out, done := &harness.Screen{}, make(chan error, 1)
				go func() {
					done <- x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: endless{}, Stdout: out})
				}()
				out.Await(t, "go")
				time.Sleep(200 * time.Millisecond)
				cut()
				<-done
				harness.Eventually(t, 10*time.Second, "an end of the command", func() error {
					if left := harness.Processes(t, "5"+fmt.Sprint(number)); len(left) > 0 {
						return fmt.Errorf("there is %v", left)
					}
					return nil
				})
			})
		}
	}
}

// line puts a connection that can be cut between a client and the server of a URL. To the server a
// cut looks as if the client's process were killed.
func line(t *testing.T, address string) (through string, cut func()) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	context.AfterFunc(ctx, func() { l.Close() })
	server := u.Host
	go func() {
		client, err := l.Accept()
		if err != nil {
			return
		}
		conn, err := net.Dial("tcp", server)
		if err != nil {
			client.Close()
			return
		}
		context.AfterFunc(ctx, func() { conn.Close(); client.Close() })
		go io.Copy(conn, client)
		io.Copy(client, conn)
		client.Close()
	}()
	u.Host = l.Addr().String()
	return u.String(), cancel
}

// endless is an input without an end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '\n'
	}
	return len(b), nil
}

func TestStreamURLsAreGoodOnce(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	address := s.execURL(t, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	if u, err := url.Parse(address); err != nil || !net.ParseIP(u.Hostname()).IsLoopback() {
		t.Errorf("%s is not of this node alone: %v", address, err)
	}
	for i, want := range []bool{true, false} {
		err := transports["SPDY"](t, address).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		if (err == nil) != want {
			t.Errorf("time %d: %v", i, err)
		}
	}

	_, err := s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Tty: true, Stderr: true})
	harness.WantError(t, err, codes.InvalidArgument, "tty")
	_, err = s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}})
	harness.WantError(t, err, codes.InvalidArgument, "stdout")
	_, err = s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Stdout: true})
	harness.WantError(t, err, codes.InvalidArgument, "cmd")
	_, err = s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: "nonesuch", Cmd: []string{"true"}, Stdout: true})
	harness.WantError(t, err, codes.NotFound, "nonesuch")
	_, err = s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
	harness.WantError(t, err, codes.FailedPrecondition, "stdin")
	_, err = s.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: s.pod, Port: []int32{70000}})
	harness.WantError(t, err, codes.InvalidArgument, "70000")
}

func TestAttachStreams(t *testing.T) {
	s := newShell(t)
	for name, open := range transports {
		t.Run(name, func(t *testing.T) {
			id := s.run(t, func(c *container, _ *security) { c.Stdin, c.StdinOnce = true, true }, "sh", "-c", "echo early; cat; echo eof; sleep 1")
			attach := func(stdin bool) string {
				resp, err := s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: stdin, Stdout: true, Stderr: true})
				if err != nil {
					t.Fatal(err)
				}
				return resp.Url
			}
			keyboard, keys := io.Pipe()
			first, other := &harness.Screen{}, &harness.Screen{}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 2)
			x, y := open(t, attach(true)), open(t, attach(false))
			go func() {
				done <- x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: keyboard, Stdout: first, Stderr: first})
			}()
			first.Await(t, "early") // output from before is kept for the first client
			go func() {
				y.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: other, Stderr: other})
				done <- nil
			}()
			io.WriteString(keys, "hello\n")
			first.Await(t, "hello")
			harness.Eventually(t, 10*time.Second, "an echo for the other", func() error {
				io.WriteString(keys, "again\n")
				time.Sleep(50 * time.Millisecond)
				return other.Shows("again")
			})
			keys.Close() // closes one direction: the output continues
			first.Await(t, "eof")
			other.Await(t, "eof")
			for range 2 {
				if err := <-done; err != nil {
					t.Errorf("the end of the container: %v", err)
				}
			}
			if status := s.WaitExit(t, id); status.ExitCode != 0 {
				t.Errorf("exit %d", status.ExitCode)
			}
		})
	}
}

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
	ports := []int32{harness.EchoIn(t, "/run/netns/kuri-"+s.pod, "127.0.0.1:0"), 9, harness.EchoIn(t, "/run/netns/kuri-"+s.pod, "[::1]:0")}
	for protocol, inBase64 := range map[string]bool{"": false, "v4.channel.k8s.io": false, "v4.base64.channel.k8s.io": true} {
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
			ContainerId: id, Cmd: []string{"sh", "-c", "read x; echo got $x; echo oops >&2; exit 42"}, Stdin: true, Stdout: true, Stderr: true,
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
			err = x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("x\n"), Stdout: stdout, Stderr: stderr})
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
	}{{"", false}, {"channel.k8s.io", false}, {"base64.channel.k8s.io", true}, {"v4.channel.k8s.io", false}, {"v4.base64.channel.k8s.io", true}, {"v5.channel.k8s.io", false}} {
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
