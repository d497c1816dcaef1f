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

// What a kubelet uses for its connections.
const (
	maxMessage        = 16 << 20 // bytes; a list of all containers of a large node is a few MiB
	firstRedial       = 100 * time.Millisecond
	lastRedial        = 3 * time.Second
	minConnectTimeout = 5 * time.Second
)

// Options says how an endpoint is dialled and used. The zero value is good: calls have the caller's deadlines only, and
// an endpoint that nobody serves is an error at once.
type Options struct {
	// Timeout bounds each unary call whose context has no deadline, by the kubelet's rules: RunPodSandbox gets twice
	// Timeout, StopContainer and ExecSync get Timeout and the time that the request itself allows, and PullImage,
	// ExecSync without a timeout of its own and CheckpointContainer are not bounded. 0 bounds nothing.
	Timeout time.Duration
	// Wait lets dialling wait, until its context ends, for an endpoint that is not served yet.
	Wait bool
}

// Runtime is a connection to a runtime endpoint. Its methods are those of runtime.v1.RuntimeService.
type Runtime struct {
	runtimeapi.RuntimeServiceClient
	// Network, Files and Doctor are Kuri's own additions to the RuntimeService, see api/kuri/v1. On another runtime their
	// calls answer Unimplemented.
	Network kuriv1.NetworkClient
	Files   kuriv1.FilesClient
	Doctor  kuriv1.DoctorClient
	*conn
}

// Images is a connection to an image endpoint. Its methods are those of runtime.v1.ImageService.
type Images struct {
	runtimeapi.ImageServiceClient
	// Kuri is Kuri's own addition to the ImageService, see api/kuri/v1. On another runtime its calls answer
	// Unimplemented.
	Kuri kuriv1.ImagesClient
	*conn
}

// DialRuntime connects to the runtime endpoint and chooses the API version by asking for its Version.
//
// ctx bounds the dialling alone. Errors: [*UnreachableError] when nothing answers on the socket, [*NotServedError] when
// what answers is not a RuntimeService in a version that this package speaks, and otherwise the runtime's own answer,
// with its gRPC status in the chain.
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

// DialImages connects to the image endpoint and chooses the API version by asking for its ImageFsInfo. For ctx and
// errors see [DialRuntime].
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

// conn is what Runtime and Images have in common.
type conn struct {
	endpoint string
	version  string
	grpc     *grpc.ClientConn
	dialErr  atomic.Pointer[error] // why the last attempt to connect failed; nil after one that succeeded
	heard    atomic.Bool           // whether anything ever came over the socket
}

// APIVersion returns the version that was chosen, "v1" or "v1alpha2".
func (c *conn) APIVersion() string { return c.version }

// Endpoint returns the endpoint as it was given.
func (c *conn) Endpoint() string { return c.endpoint }

// Close ends the connection and all calls on it.
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

// connect opens the socket and remembers why it could not: gRPC folds the reason into a text.
func (c *conn) connect(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		c.dialErr.Store(&err)
		return nil, err
	}
	c.dialErr.Store(nil)
	return &listened{nc, &c.heard}, nil
}

// listened is a connection that notes whether anything comes.
type listened struct {
	net.Conn
	heard *atomic.Bool
}

func (l *listened) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if n > 0 && !l.heard.Load() {
		l.heard.Store(true)
	}
	return n, err
}

// errSilent is the reason of an UnreachableError for a socket that is open while nobody serves it, as it may be while a
// runtime is stopped.
var errSilent = errors.New("the socket is open and nobody answers")

// explain turns the failure of a first call into an UnreachableError when the socket could not be opened, or nobody answered
// on it.
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

// UnreachableError says that the socket of an endpoint could not be opened, or that nobody answered on it.
type UnreachableError struct {
	Endpoint string
	Reason   error // of the last attempt; errors.Is finds os.ErrNotExist, os.ErrPermission or syscall.ECONNREFUSED in it
	status   error // the gRPC status of the call that had to wait for it
}

func (e *UnreachableError) Error() string {
	reason := e.Reason
	var call *os.SyscallError
	if errors.As(reason, &call) {
		reason = call.Err // what was called, and for which address, is said already
	}
	return fmt.Sprintf("cannot reach a CRI runtime at %s: %v", e.Endpoint, reason)
}

// Unwrap gives the reason and the gRPC status to errors.Is and errors.As.
func (e *UnreachableError) Unwrap() []error { return []error{e.Reason, e.status} }
