package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

// The kubelet's connection parameters.
const (
	maxMessage        = 16 << 20 // bytes; a list of all containers of a large node is a few MiB
	firstRedial       = 100 * time.Millisecond
	lastRedial        = 3 * time.Second
	minConnectTimeout = 5 * time.Second
)

// Options configures a connection. With the zero value calls have only the caller's deadlines, and
// dialling an endpoint that is not served fails at once.
type Options struct {
	// Timeout limits unary calls whose context has no deadline, by the kubelet's rules: RunPodSandbox gets twice Timeout.
	// StopContainer and ExecSync get Timeout plus the timeout in the request. PullImage, CheckpointContainer and ExecSync
	// without a timeout have no limit. 0 means no limits.
	Timeout time.Duration
	// Wait makes dialling wait for an endpoint that is not yet served, until the context ends.
	Wait bool
}

// Runtime is a connection to a runtime endpoint. Its methods are those of runtime.v1.RuntimeService.
type Runtime struct {
	runtimeapi.RuntimeServiceClient
	// Network, Files and Doctor are Kuri's extensions of the RuntimeService, see api/kuri/v1. Other runtimes return
	// Unimplemented.
	Network kuriv1.NetworkClient
	Files   kuriv1.FilesClient
	Doctor  kuriv1.DoctorClient
	*conn
}

// Images is a connection to an image endpoint. Its methods are those of runtime.v1.ImageService.
type Images struct {
	runtimeapi.ImageServiceClient
	// Kuri is Kuri's extension of the ImageService, see api/kuri/v1. Other runtimes return Unimplemented.
	Kuri kuriv1.ImagesClient
	*conn
}

// DialRuntime connects to a runtime endpoint and chooses the API version with a Version call.
//
// ctx bounds only the dialling. The error is an [*UnreachableError] if nothing answers on the
// socket, a [*NotServedError] if the endpoint serves no supported version of the RuntimeService,
// and otherwise wraps the runtime's gRPC status.
func DialRuntime(ctx context.Context, endpoint string, o Options) (*Runtime, error) {
	c, err := dial(ctx, endpoint, o, runtimeService)
	if err != nil {
		return nil, err
	}
	return &Runtime{
		RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(c.in(c.version)),
		Network:              kuriv1.NewNetworkClient(c.grpc),
		Files:                kuriv1.NewFilesClient(c.grpc),
		Doctor:               kuriv1.NewDoctorClient(c.grpc),
		conn:                 c,
	}, nil
}

// DialImages connects to an image endpoint and chooses the API version with an ImageFsInfo call.
// See [DialRuntime] for ctx and errors.
func DialImages(ctx context.Context, endpoint string, o Options) (*Images, error) {
	c, err := dial(ctx, endpoint, o, imageService)
	if err != nil {
		return nil, err
	}
	return &Images{
		ImageServiceClient: runtimeapi.NewImageServiceClient(c.in(c.version)),
		Kuri:               kuriv1.NewImagesClient(c.grpc),
		conn:               c,
	}, nil
}

// conn is the common part of Runtime and Images.
type conn struct {
	endpoint string
	version  string
	grpc     *grpc.ClientConn
	dialErr  atomic.Pointer[error] // error of the last attempt to connect; nil after success
	heard    atomic.Bool           // whether anything was ever received
}

// APIVersion returns the negotiated version, "v1" or "v1alpha2".
func (c *conn) APIVersion() string { return c.version }

// Endpoint returns the endpoint as it was passed to the Dial function.
func (c *conn) Endpoint() string { return c.endpoint }

// Close closes the connection and ends all calls on it.
func (c *conn) Close() error { return c.grpc.Close() }

func dial(ctx context.Context, endpoint string, o Options, s service) (*conn, error) {
	socket, err := SocketPath(endpoint)
	if err != nil {
		return nil, err
	}
	c := &conn{endpoint: endpoint}
	c.grpc, err = grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), // the default would be the socket's path, which some servers refuse
		grpc.WithContextDialer(c.connect),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstRedial, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastRedial},
			MinConnectTimeout: minConnectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(deadlines(o.Timeout)),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	if c.version, err = c.negotiate(ctx, s, grpc.WaitForReady(o.Wait)); err != nil {
		c.grpc.Close()
		return nil, err
	}
	return c, nil
}

// connect opens the socket and stores the error, because gRPC passes it on only as text.
func (c *conn) connect(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		c.dialErr.Store(&err)
		return nil, err
	}
	c.dialErr.Store(nil)
	return &observedConn{nc, &c.heard}, nil
}

// observedConn is a connection that records whether anything was received.
type observedConn struct {
	net.Conn
	heard *atomic.Bool
}

func (o *observedConn) Read(b []byte) (int, error) {
	n, err := o.Conn.Read(b)
	if n > 0 && !o.heard.Load() {
		o.heard.Store(true)
	}
	return n, err
}

// errSilent is the reason of an UnreachableError if the socket is open but not served, as while a
// socket-activated runtime is stopped.
var errSilent = errors.New("the socket is open, but nobody answers")

// explain turns the error of a first call into an UnreachableError if the socket could not be opened or did not answer.
func (c *conn) explain(err error) error {
	code := status.Code(err)
	if code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled {
		return err
	}
	if reason := c.dialErr.Load(); reason != nil {
		return &UnreachableError{Endpoint: c.endpoint, Reason: *reason, status: err}
	}
	if !c.heard.Load() {
		return &UnreachableError{Endpoint: c.endpoint, Reason: errSilent, status: err}
	}
	return err
}

// UnreachableError reports that the socket of an endpoint could not be opened, or that nothing answered on it.
type UnreachableError struct {
	Endpoint string
	Reason   error // of the last attempt; errors.Is finds os.ErrNotExist, os.ErrPermission or syscall.ECONNREFUSED in it
	status   error // the gRPC status of the failed call
}

func (e *UnreachableError) Error() string {
	reason := e.Reason
	var call *os.SyscallError
	if errors.As(reason, &call) {
		reason = call.Err // Endpoint already says the address
	}
	return fmt.Sprintf("cannot reach a CRI runtime at %s: %v", e.Endpoint, reason)
}

// Unwrap returns the reason and the gRPC status.
func (e *UnreachableError) Unwrap() []error { return []error{e.Reason, e.status} }
