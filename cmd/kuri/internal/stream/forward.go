package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	//lint:ignore SA1019 the dialer of client-go has these types still
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func ForwardCommand(c *cli.CLI) *cobra.Command {
	var addresses []string
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]PORT...",
		Short: "Forward local TCP ports to ports of a pod",
		Long: `Listen on 127.0.0.1 and [::1] and forward each connection to a port of a pod, until interrupted or until the pod ends. LOCAL
is PORT when it is not given, and any free port when it is 0 or empty. A connection that the pod refuses is told, and ends alone.`,
		Example: `  kuri port-forward web 8080             port 8080 here is port 8080 of the pod web
  kuri port-forward web 8080:80 0:443    8080 is its port 80, any free port its 443
  kuri port-forward --address 0.0.0.0 web 8080:80`,
		Args:              cli.RangeArgs(2, cli.Many),
		ValidArgsFunction: c.CompletePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			ports, err := parsePorts(args[1:])
			if err != nil {
				return err
			}
			rt, err := c.Runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			have, err := cli.TakeInventory(ctx, rt)
			if err != nil {
				return err
			}
			pod, err := have.Pod(args[0])
			if err != nil {
				return err
			}
			f := &forwarder{CLI: c, rt: rt, pod: pod.Id, name: cli.PodName(pod), turn: make(chan struct{}, 1)}
			return f.run(ctx, addresses, ports)
		},
	}
	cmd.Flags().StringSliceVar(&addresses, "address", []string{localhost}, "`ADDRESSES` to listen at")
	return cmd
}

// localhost means both loopback addresses, of which one suffices.
const localhost = "localhost"

// forwardedPort is a local port, 0 for any free one, and the port of the pod to which it is forwarded.
type forwardedPort struct{ local, remote uint16 }

// parsePorts parses PORT, LOCAL:PORT, 0:PORT and :PORT.
func parsePorts(args []string) ([]forwardedPort, error) {
	var out []forwardedPort
	for _, arg := range args {
		local, remote, both := strings.Cut(arg, ":")
		if !both {
			remote = local
		}
		to, err := strconv.ParseUint(remote, 10, 16)
		from := to
		if both && err == nil {
			from = 0
			if local != "" {
				from, err = strconv.ParseUint(local, 10, 16)
			}
		}
		if err != nil || to == 0 {
			return nil, cli.Usagef("%q: expected PORT or LOCAL:PORT, each a number from 1 to 65535, LOCAL 0 for any free port",
				arg)
		}
		out = append(out, forwardedPort{uint16(from), uint16(to)})
	}
	return out, nil
}

// forwarder forwards connections to a pod. All of them use one connection to the runtime's
// streaming server, which is opened again if it breaks.
type forwarder struct {
	*cli.CLI
	rt        *client.Runtime
	pod, name string

	turn     chan struct{} // guards current
	current  httpstream.Connection
	requests atomic.Int64

	saying sync.Mutex // guards standard error
}

// run forwards until ctx ends or the pod stops:
//
//  1. open the connection to the runtime, which reports errors of the pod
//  2. listen
//  3. serve each connection independently
func (f *forwarder) run(ctx context.Context, addresses []string, ports []forwardedPort) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := f.connection(ctx); err != nil {
		return err
	}
	defer f.close()
	listeners, err := f.listen(addresses, ports)
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	if err != nil {
		return err
	}
	for _, l := range listeners {
		go func() { // exits when the listener is closed
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go f.serve(ctx, conn, l.remote)
			}
		}()
	}
	return f.watch(ctx)
}

// listener is a local listener for a port of the pod.
type listener struct {
	net.Listener
	remote uint16
}

// listen listens for all ports at all addresses and prints them. One of localhost's two addresses
// suffices if the machine does not have the other. A port in use is an error, because clients would
// reach the other program.
func (f *forwarder) listen(addresses []string, ports []forwardedPort) (all []listener, err error) {
	for _, p := range ports {
		for _, address := range addresses {
			hosts := []string{address}
			if address == localhost {
				hosts = []string{"127.0.0.1", "::1"}
			}
			here := 0
			for _, host := range hosts {
				l, listenErr := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(p.local))))
				if listenErr != nil {
					err = listenErr
					if errors.Is(err, syscall.EADDRINUSE) {
						return all, fmt.Errorf("port %d of this machine is another program's: name a free one, or 0 for any (0:%d): %w",
							p.local, p.remote, err)
					}
					continue
				}
				here++
				p.local = uint16(l.Addr().(*net.TCPAddr).Port) // use the same port for the other address
				all = append(all, listener{l, p.remote})
				fmt.Fprintf(f.Out, "Forwarding from %s -> %d\n", l.Addr(), p.remote)
			}
			if here == 0 {
				return all, fmt.Errorf("listen for port %d of %s: %w", p.remote, f.name, err)
			}
		}
	}
	return all, nil
}

// connection returns the connection to the runtime's streaming server, and opens it if there is none.
func (f *forwarder) connection(ctx context.Context) (httpstream.Connection, error) {
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-f.turn }()
	if f.current != nil && !isClosed(f.current) {
		return f.current, nil
	}
	resp, err := f.rt.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: f.pod})
	if err != nil {
		return nil, fmt.Errorf("forward ports of %s: %w", f.name, err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		return nil, fmt.Errorf("the runtime's URL for the streams: %w", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(restConfig(u))
	if err != nil {
		return nil, err
	}
	conn, _, err := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost,
		u).Dial(portForwardProtocol)
	if err != nil {
		return nil, fmt.Errorf("forward ports of %s: %w", f.name, streamingError(u, err))
	}
	f.current = conn
	return conn, nil
}

// portForwardProtocol is the only version of the protocol.
const portForwardProtocol = "portforward.k8s.io"

func isClosed(c httpstream.Connection) bool {
	select {
	case <-c.CloseChan():
		return true
	default:
		return false
	}
}

// lookEvery is the interval of the polls for the pod's status: an idle streaming server does not
// report the pod's end.
const lookEvery = time.Second

// watch returns the reason why forwarding ends: ctx, or the pod. A runtime that does not answer now
// may do so for the next connection.
func (f *forwarder) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lookEvery):
		}
		st, err := f.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: f.pod})
		switch {
		case cli.IsGone(err):
			return cli.NotFound("the pod %s is gone", f.name)
		case err == nil && st.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY:
			return fmt.Errorf("the pod %s has ended", f.name)
		}
	}
}

func (f *forwarder) close() {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.current != nil {
		f.current.Close()
	}
}

// serve forwards one connection. If the pod refuses it the connection is reset, so that its client
// does not take that for an empty response.
func (f *forwarder) serve(ctx context.Context, conn net.Conn, port uint16) {
	defer conn.Close()
	err := f.forward(ctx, conn, port)
	if err == nil || ctx.Err() != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	f.saying.Lock()
	defer f.saying.Unlock()
	f.Report(fmt.Errorf("port %d: %w", port, err))
}

// Streaming servers prefix the reason with refused; Kuri's appends its own attempt, tried.
var (
	refused = regexp.MustCompile(`^error forwarding port \d+ to pod [^:]*: `)
	tried   = regexp.MustCompile(`(nothing listens on port .*): dial tcp .*`)
)

func (f *forwarder) forward(ctx context.Context, conn net.Conn, port uint16) error {
	over, err := f.connection(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(int(port)))
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.FormatInt(f.requests.Add(1), 10))
	return forwardOver(over, headers, conn)
}

// refusalLimit is how long the pod's side may take to say why it refused a connection.
const refusalLimit = 2 * time.Second

// forwardOver forwards one connection. The headers name the port and the request.
func forwardOver(over httpstream.Connection, headers http.Header, conn net.Conn) error {
	// 1. The stream of errors from the pod's side, to which nothing is written.
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	problems, err := over.CreateStream(headers)
	if err != nil {
		over.Close() // the next connection gets a new one
		return fmt.Errorf("open a stream to the pod: %w", err)
	}
	defer over.RemoveStreams(problems)
	problems.Close()
	problem := make(chan string, 1)
	go func() {
		const most = 64 << 10
		text, _ := io.ReadAll(io.LimitReader(problems, most))
		problem <- strings.TrimSpace(string(text))
	}()

	// 2. The bytes, in both directions. A server that refuses the connection at once may reset this
	// stream before it has answered the request for it: then the reason is in the stream of errors.
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := over.CreateStream(headers)
	if err != nil {
		select {
		case text := <-problem:
			if text != "" {
				return refusal(text)
			}
		case <-time.After(refusalLimit):
		}
		over.Close()
		return fmt.Errorf("open a stream to the pod: %w", err)
	}
	defer over.RemoveStreams(data)
	ended := make(chan struct{}, 2)
	go func() {
		_, _ = io.Copy(conn, data)
		ended <- struct{}{}
	}()
	go func() {
		_, err := io.Copy(data, conn)
		data.Close() // closes one direction: output of the pod is still read
		if err != nil {
			ended <- struct{}{}
		}
	}()
	<-ended
	_ = data.Reset() // unsent data would block the other stream
	if text := <-problem; text != "" {
		return refusal(text)
	}
	return nil
}

// refusal returns the error for a text of the stream of errors.
func refusal(text string) error {
	text = strings.ReplaceAll(refused.ReplaceAllString(text, ""), "\n", "; ")
	return errors.New(tried.ReplaceAllString(text, "$1"))
}
