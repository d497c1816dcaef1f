package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
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
			if err = open(t, s.execURL(t, req)).StreamWithContext(t.Context(),
				remotecommand.StreamOptions{Stdout: &stdout}); err != nil || time.Since(start) > 20*time.Second {
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
		if err := open(t, s.execURL(t, req)).StreamWithContext(t.Context(),
			remotecommand.StreamOptions{Stdin: strings.NewReader("x"), Stdout: io.Discard}); err != nil {
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
				done <- x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: keyboard, Stdout: out, Tty: true,
					TerminalSizeQueue: sizes})
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
		for i, script := range []string{"sleep 5%d1 & setsid sleep 5%d2 & sleep 5%d3", "exec 0</dev/null; sleep 5%d1",
			"while :; do echo 5%d1; done"} {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				number := 100 + 10*i + len(name)
				script := strings.ReplaceAll(script, "%d", fmt.Sprint(number))
				req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo go; " + script}, Stdin: true,
					Stdout: true}
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

	_, err := s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Tty: true,
		Stderr: true})
	harness.WantError(t, err, codes.InvalidArgument, "tty")
	_, err = s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}})
	harness.WantError(t, err, codes.InvalidArgument, "stdout")
	_, err = s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Stdout: true})
	harness.WantError(t, err, codes.InvalidArgument, "cmd")
	_, err = s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: "nonesuch", Cmd: []string{"true"},
		Stdout: true})
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
			id := s.run(t, func(c *container, _ *security) { c.Stdin, c.StdinOnce = true, true }, "sh", "-c",
				"echo early; cat; echo eof; sleep 1")
			attach := func(stdin bool) string {
				resp, err := s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: stdin, Stdout: true,
					Stderr: true})
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
