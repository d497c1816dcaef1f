package client

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

// runtimeServer answers a few calls of RuntimeService and notes by which names it was called.
type runtimeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	name string
	fail error // what Version answers, if not nil

	mu     sync.Mutex
	called []string
}

func (s *runtimeServer) note(ctx context.Context) {
	m, _ := grpc.Method(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.called = append(s.called, m)
}

func (s *runtimeServer) Version(ctx context.Context,
	_ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	s.note(ctx)
	if s.fail != nil {
		return nil, s.fail
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: s.name, RuntimeVersion: "1",
		RuntimeApiVersion: "v1"}, nil
}

func (s *runtimeServer) ListPodSandbox(ctx context.Context,
	_ *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	s.note(ctx)
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: s.name}}}, nil
}

func (s *runtimeServer) GetContainerEvents(_ *runtimeapi.GetEventsRequest,
	out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	s.note(out.Context())
	return out.Send(&runtimeapi.ContainerEventResponse{ContainerId: s.name})
}

type imageServer struct {
	runtimeapi.UnimplementedImageServiceServer
}

func (imageServer) ImageFsInfo(context.Context,
	*runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

func (imageServer) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{Id: "sha256:1"}}}, nil
}

// under returns a service's description with the API version in its name replaced.
func under(d grpc.ServiceDesc, version string) *grpc.ServiceDesc {
	d.ServiceName = strings.Replace(d.ServiceName, ".v1.", "."+version+".", 1)
	return &d
}

// serve listens on socket and serves rt and img, where not nil, in the given versions. It returns what stops it.
func serve(t *testing.T, socket string, rt *runtimeServer, img runtimeapi.ImageServiceServer,
	versions ...string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	for _, v := range versions {
		if rt != nil {
			s.RegisterService(under(runtimeapi.RuntimeService_ServiceDesc, v), rt)
		}
		if img != nil {
			s.RegisterService(under(runtimeapi.ImageService_ServiceDesc, v), img)
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			s.Stop()
			if err := <-done; err != nil {
				t.Errorf("serve %s: %v", socket, err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func newSocket(t *testing.T) (path, endpoint string) {
	dir, err := os.MkdirTemp("", "kuri") // t.TempDir's path may be longer than a socket's may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	return path, "unix://" + path
}

func newContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestTheNewestServedVersionIsChosenAndUsed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		served []string
		want   string
	}{
		{"both", []string{"v1", "v1alpha2"}, "v1"},
		{"v1 only", []string{"v1"}, "v1"},
		{"v1alpha2 only", []string{"v1alpha2"}, "v1alpha2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := newContext(t)
			path, endpoint := newSocket(t)
			server := &runtimeServer{name: "a"}
			serve(t, path, server, imageServer{}, tt.served...)

			rt, err := DialRuntime(ctx, endpoint, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer rt.Close()
			if rt.APIVersion() != tt.want {
				t.Errorf("runtime: version %s, want %s", rt.APIVersion(), tt.want)
			}
			if r, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); err != nil || r.Items[0].Id != "a" {
				t.Errorf("unary call: %v %v", r, err)
			}
			events, err := rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if e, err := events.Recv(); err != nil || e.ContainerId != "a" {
				t.Errorf("stream: %v %v", e, err)
			}
			if _, err := events.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("end of stream: %v", err)
			}
			prefix := "/runtime." + tt.want + ".RuntimeService/"
			if want := []string{prefix + "Version", prefix + "ListPodSandbox",
				prefix + "GetContainerEvents"}; !slices.Equal(server.called, want) {
				t.Errorf("called %v, want %v", server.called, want)
			}

			img, err := DialImages(ctx, endpoint, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			if img.APIVersion() != tt.want {
				t.Errorf("image: version %s, want %s", img.APIVersion(), tt.want)
			}
			if r, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err != nil || len(r.Images) != 1 {
				t.Errorf("image call: %v %v", r, err)
			}
			progress, err := img.Kuri.WatchPull(ctx, &kuriv1.WatchPullRequest{})
			if err == nil {
				_, err = progress.Recv()
			}
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("Kuri's own service elsewhere: %v", err)
			}
		})
	}
}

func TestNeitherVersionServed(t *testing.T) {
	ctx := newContext(t)
	path, endpoint := newSocket(t)
	serve(t, path, &runtimeServer{}, nil, "v1", "v1alpha2") // no ImageService
	_, err := DialImages(ctx, endpoint, Options{})
	var missing *NotServedError
	if !errors.As(err, &missing) {
		t.Fatalf("%v", err)
	}
	if want := []string{"runtime.v1.ImageService", "runtime.v1alpha2.ImageService"}; !slices.Equal(missing.Tried, want) {
		t.Errorf("tried %v", missing.Tried)
	}
	if want := []string{"runtime.v1.RuntimeService", "runtime.v1alpha2.RuntimeService"}; !slices.Equal(missing.Offered,
		want) {
		t.Errorf("offered %v", missing.Offered)
	}
	for _, part := range []string{endpoint, "neither runtime.v1.ImageService nor runtime.v1alpha2.ImageService",
		"offers runtime.v1.RuntimeService", "unknown service"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("code %s", status.Code(err))
	}

	path, endpoint = newSocket(t)
	serve(t, path, nil, nil)
	if _, err := DialRuntime(ctx, endpoint, Options{}); err == nil ||
		!strings.Contains(err.Error(), "offers no other CRI service") {
		t.Errorf("a server of nothing: %v", err)
	}
}

// A socket may be kept open while no runtime serves it: that is told as such.
func TestSocketThatNobodyServes(t *testing.T) {
	path, endpoint := newSocket(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = DialRuntime(newContext(t), endpoint, Options{})
	var unreachable *UnreachableError
	if !errors.As(err, &unreachable) || !strings.Contains(unreachable.Error(), "nobody answers") {
		t.Errorf("got %v", err)
	}
}

func TestAnotherErrorDoesNotFallBack(t *testing.T) {
	for _, code := range []codes.Code{codes.Unknown, codes.Unavailable, codes.DeadlineExceeded, codes.Internal,
		codes.PermissionDenied, codes.ResourceExhausted} {
		t.Run(code.String(), func(t *testing.T) {
			path, endpoint := newSocket(t)
			server := &runtimeServer{fail: status.Error(code, "not now")}
			serve(t, path, server, nil, "v1", "v1alpha2")
			_, err := DialRuntime(newContext(t), endpoint, Options{})
			if status.Code(err) != code || !strings.Contains(err.Error(), "not now") {
				t.Errorf("got %v", err)
			}
			var unreachable *UnreachableError
			if errors.As(err, &unreachable) {
				t.Error("a runtime that answered is called unreachable")
			}
			if want := []string{"/runtime.v1.RuntimeService/Version"}; !slices.Equal(server.called, want) {
				t.Errorf("called %v", server.called)
			}
		})
	}
}

func TestSeparateImageEndpointOfAnotherVersion(t *testing.T) {
	ctx := newContext(t)
	rtPath, rtEndpoint := newSocket(t)
	imgPath, imgEndpoint := newSocket(t)
	serve(t, rtPath, &runtimeServer{}, nil, "v1")
	serve(t, imgPath, nil, imageServer{}, "v1alpha2")
	rt, err := DialRuntime(ctx, rtEndpoint, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	img, err := DialImages(ctx, imgEndpoint, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if rt.APIVersion() != "v1" || img.APIVersion() != "v1alpha2" {
		t.Errorf("runtime %s, image %s", rt.APIVersion(), img.APIVersion())
	}
	if _, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err != nil {
		t.Error(err)
	}
}

func TestTheVersionOutlivesTheServer(t *testing.T) {
	ctx := newContext(t)
	path, endpoint := newSocket(t)
	stop := serve(t, path, &runtimeServer{name: "old"}, nil, "v1alpha2")
	rt, err := DialRuntime(ctx, endpoint, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	stop()
	if _, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("while it is down: %v", err)
	}

	updated := &runtimeServer{name: "new"}
	serve(t, path, updated, nil, "v1", "v1alpha2")
	r, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}, grpc.WaitForReady(true))
	if err != nil || r.Items[0].Id != "new" {
		t.Fatalf("after the restart: %v %v", r, err)
	}
	if want := []string{"/runtime.v1alpha2.RuntimeService/ListPodSandbox"}; !slices.Equal(updated.called, want) {
		t.Errorf("called %v, want %v", updated.called, want)
	}
}

func TestUnreachable(t *testing.T) {
	path, endpoint := newSocket(t)
	_, err := DialRuntime(newContext(t), endpoint, Options{})
	var unreachable *UnreachableError
	if !errors.As(err, &unreachable) || !errors.Is(err, os.ErrNotExist) || status.Code(err) != codes.Unavailable {
		t.Fatalf("no socket: %v", err)
	}
	if !strings.Contains(err.Error(), "cannot reach a CRI runtime at "+endpoint+": no such file") {
		t.Errorf("text: %v", err)
	}

	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // the socket stays, nobody listens
	if _, err := DialImages(newContext(t), endpoint, Options{}); !errors.As(err, &unreachable) ||
		!strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody listens: %v", err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := DialRuntime(ctx, endpoint, Options{Wait: true}); !errors.As(err, &unreachable) ||
		status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("waited in vain: %v", err)
	}
}

func TestSlowStart(t *testing.T) {
	path, endpoint := newSocket(t)
	ctx := newContext(t)
	type result struct {
		rt  *Runtime
		err error
	}
	dialled := make(chan result, 1)
	go func() {
		rt, err := DialRuntime(ctx, endpoint, Options{Wait: true})
		dialled <- result{rt, err}
	}()
	time.Sleep(250 * time.Millisecond) // several attempts fail
	serve(t, path, &runtimeServer{name: "late"}, nil, "v1")
	r := <-dialled
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.rt.Close()
	if r.rt.APIVersion() != "v1" {
		t.Errorf("version %s", r.rt.APIVersion())
	}
}

func TestARuntimeThatHangsIsBoundedByTimeout(t *testing.T) {
	path, endpoint := newSocket(t)
	l, err := net.Listen("unix", path) // accepts in the kernel, never speaks
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begun := time.Now()
	_, err = DialRuntime(context.Background(), endpoint, Options{Timeout: 200 * time.Millisecond})
	if status.Code(err) != codes.DeadlineExceeded || time.Since(begun) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(begun), err)
	}
}

func TestSocketPath(t *testing.T) {
	long := "/" + strings.Repeat("x", 107)
	for _, tt := range []struct{ in, want, err string }{
		{in: "unix:///run/kuri/kuri.sock", want: "/run/kuri/kuri.sock"},
		{in: "unix:/run/kuri.sock", want: "/run/kuri.sock"},
		{in: "/run/kuri.sock", want: "/run/kuri.sock"},
		{in: "/run//a/../kuri.sock", want: "/run/kuri.sock"},
		{in: "", err: "no endpoint given"},
		{in: "tcp://127.0.0.1:1", err: "TCP is not supported"},
		{in: "http://localhost", err: "expected unix:///"},
		{in: "npipe:////./pipe/x", err: "expected unix:///"},
		{in: "unix://run/kuri.sock", err: "three slashes, unix:///run/kuri.sock"},
		{in: "unix:run/kuri.sock", err: "must be absolute"},
		{in: "kuri.sock", err: "expected unix:///"},
		{in: "unix:///", err: "missing"},
		{in: "unix:///a?b=c", err: "only a path"},
		{in: "unix://" + long, err: "has 108 bytes"},
		{in: "unix://%zz", err: "expected unix:///"},
	} {
		got, err := SocketPath(tt.in)
		if tt.err == "" && (err != nil || got != tt.want) {
			t.Errorf("%q: %q %v, want %q", tt.in, got, err, tt.want)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: error %v, want one with %q", tt.in, err, tt.err)
		}
	}
}

func TestLimitOf(t *testing.T) {
	const m = time.Minute
	for _, tt := range []struct {
		method  string
		req     any
		timeout time.Duration
		want    time.Duration
	}{
		{"Version", nil, m, m},
		{"Version", nil, 0, 0},
		{"RunPodSandbox", nil, m, 2 * m},
		{"PullImage", nil, m, 0},
		{"CheckpointContainer", nil, m, 0},
		{"StopContainer", &runtimeapi.StopContainerRequest{Timeout: 30}, m, m + 30*time.Second},
		{"StopContainer", &runtimeapi.StopContainerRequest{Timeout: -1}, m, m},
		{"StopContainer", &runtimeapi.StopContainerRequest{Timeout: 1 << 62}, m, m + 365*24*time.Hour},
		{"ExecSync", &runtimeapi.ExecSyncRequest{}, m, 0},
		{"ExecSync", &runtimeapi.ExecSyncRequest{Timeout: 5}, m, m + 5*time.Second},
	} {
		if got := limitOf(tt.method, tt.req, tt.timeout); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.method, got, tt.want)
		}
	}
}
