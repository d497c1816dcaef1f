package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/listen"
)

// serve starts a server that has no pods and no images: enough for what is asked of the server itself.
func serve(t *testing.T, o Options) {
	t.Helper()
	o.Socket = sockets(t)
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
}

// sockets opens Unix sockets beside no holder.
func sockets(t *testing.T) func(string) (net.Listener, error) {
	all := listen.New(holder.Connect(t.TempDir()))
	t.Cleanup(all.Close)
	return all.Unix
}

func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestVersionEchoesTheVersionItWasAskedIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kuri.sock")
	serve(t, Options{Listen: path, Version: "9.9"})
	conn := dial(t, path)
	for _, v := range []string{"v1", "v1alpha2"} {
		resp := &runtime.VersionResponse{}
		if err := conn.Invoke(t.Context(), "/runtime."+v+".RuntimeService/Version", &runtime.VersionRequest{},
			resp); err != nil {
			t.Fatal(v, err)
		}
		if resp.RuntimeApiVersion != v || resp.RuntimeName != "kuri" || resp.RuntimeVersion != "9.9" || resp.Version == "" {
			t.Errorf("%s: %+v", v, resp)
		}
	}
}

// A server without pods has nothing to list them from: the request fails, and the next is answered.
func TestAPanicCostsItsOwnRequest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kuri.sock")
	serve(t, Options{Listen: path, Version: "9.9"})
	rt := runtime.NewRuntimeServiceClient(dial(t, path))
	for range 2 {
		_, err := rt.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{})
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a bug in Kuri, please report it") ||
			strings.Contains(err.Error(), "goroutine") {
			t.Errorf("%v", err)
		}
	}
	if _, err := rt.Version(t.Context(), &runtime.VersionRequest{}); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotThereSaysSoInASentence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kuri.sock")
	serve(t, Options{Listen: path})
	conn := dial(t, path)
	rt := runtime.NewRuntimeServiceClient(conn)
	calls := map[string]func() error{
		"CheckpointContainer": func() error {
			_, err := rt.CheckpointContainer(t.Context(), &runtime.CheckpointContainerRequest{})
			return err
		},
		"CheckpointPod": func() error {
			_, err := rt.CheckpointPod(t.Context(), &runtime.CheckpointPodRequest{})
			return err
		},
		"RestorePod": func() error {
			_, err := rt.RestorePod(t.Context(), &runtime.RestorePodRequest{})
			return err
		},
	}
	for name, call := range calls {
		err := call()
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "this version of Kuri has no") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServicesOnTwoSockets(t *testing.T) {
	dir := t.TempDir()
	rt, img := filepath.Join(dir, "rt.sock"), filepath.Join(dir, "img.sock")
	serve(t, Options{Listen: rt, ImageListen: img})
	version := func(path string) error {
		return dial(t, path).Invoke(t.Context(), "/runtime.v1.RuntimeService/Version", &runtime.VersionRequest{},
			&runtime.VersionResponse{})
	}
	images := func(path string) error {
		return dial(t, path).Invoke(t.Context(), "/runtime.v1alpha2.ImageService/ImageStatus", &runtime.ImageStatusRequest{},
			&runtime.ImageStatusResponse{})
	}
	if err := version(rt); err != nil {
		t.Error(err)
	}
	if err := version(img); status.Code(err) != codes.Unimplemented {
		t.Errorf("the image socket serves the RuntimeService: %v", err)
	}
	// An empty reference is refused by the handler itself: so it is there.
	if err := images(img); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if err := images(rt); status.Code(err) != codes.Unimplemented {
		t.Errorf("the runtime socket serves the ImageService: %v", err)
	}
}

func TestSocketIsPrivateAndIsNotTakenFromAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kuri.sock")
	// One that a dead process left is replaced.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err := Listen(Options{Listen: path, Socket: sockets(t)})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(Options{Listen: path, Socket: sockets(t)}); !errors.Is(err, fault.Precondition) ||
		!strings.Contains(err.Error(), "--listen") {
		t.Fatalf("a second server: %v", err)
	}
	s.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket is left: %v", err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Options{Listen: path, Socket: sockets(t)}); !errors.Is(err, fault.Precondition) {
		t.Fatalf("a file that is not a socket: %v", err)
	}
}

func TestKindsBecomeCodes(t *testing.T) {
	for kind, code := range codeOf {
		if got := status.Code(coded(fault.New(kind, "x"))); got != code {
			t.Errorf("%s: %s, want %s", kind, got, code)
		}
	}
	gaveUp := fault.As(fault.Unavailable, context.DeadlineExceeded)
	if got := status.Code(coded(gaveUp)); got != codes.DeadlineExceeded {
		t.Errorf("a caller's deadline: %s", got)
	}
	// The kubelet's client strips the code's name only when it is Unknown, and then looks for the word at the beginning.
	for _, text := range []string{"RegistryUnavailable: pull image a: no answer", "SignatureValidationFailed: a"} {
		got := coded(fault.New(fault.Unavailable, "%s", text))
		if status.Code(got) != codes.Unknown || got.Error() != "rpc error: code = Unknown desc = "+text {
			t.Errorf("%v", got)
		}
	}
	if got := status.Code(coded(fault.New(fault.Unavailable, "pull: RegistryUnavailable: "))); got != codes.Unavailable {
		t.Errorf("%v", got)
	}
	if got := status.Code(coded(errors.New("x"))); got != codes.Unknown {
		t.Errorf("no kind: %s", got)
	}
	if got := coded(status.Error(codes.Aborted, "x")); status.Code(got) != codes.Aborted {
		t.Errorf("an error with a code: %v", got)
	}
}
