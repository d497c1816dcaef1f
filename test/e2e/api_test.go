package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// dial connects to a socket with none of the client package's defaults.
func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// call sends a request with all fields unset.
func call(t *testing.T, conn *grpc.ClientConn, method string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
}

// get fetches a page and returns its body. While nothing listens it retries for a few seconds.
func get(t *testing.T, url string) string {
	t.Helper()
	var body string
	harness.Eventually(t, 10*time.Second, "GET "+url+" answers", func() error {
		c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s", resp.Status)
		}
		body = string(b)
		return err
	})
	return body
}

// Both services serve every RPC in both versions of the API: an unimplemented RPC returns a
// sentence, and no empty request crashes the daemon.
func TestEveryRPCInBothVersions(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	conn := dial(t, d.Socket)
	count := 0
	for _, service := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc,
		runtimeapi.ImageService_ServiceDesc} {
		_, short, _ := strings.Cut(service.ServiceName, "runtime.v1.")
		for _, version := range []string{"v1", "v1alpha2"} {
			for _, m := range service.Methods {
				count++
				method := fmt.Sprintf("/runtime.%s.%s/%s", version, short, m.MethodName)
				check(t, method, call(t, conn, method))
			}
			for _, s := range service.Streams {
				count++
				method := fmt.Sprintf("/runtime.%s.%s/%s", version, short, s.StreamName)
				check(t, method, stream(t, conn, method))
			}
		}
	}
	if count != 2*43 {
		t.Errorf("%d RPCs, want 43 in each version", count)
	}
	if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// check rejects errors without a sentence and errors for a method that does not exist.
func check(t *testing.T, method string, err error) {
	t.Helper()
	s := status.Convert(err)
	switch {
	case strings.Contains(s.Message(), "unknown method") || strings.Contains(s.Message(), "unknown service"):
		t.Errorf("%s is not served: %v", method, err)
	case err != nil && len(strings.Fields(s.Message())) < 4:
		t.Errorf("%s answers %v, which is no sentence", method, err)
	case s.Code() == codes.Unknown || s.Code() == codes.Internal:
		t.Errorf("%s answers an empty request with a code that tells nothing: %v", method, err)
	}
}

func stream(t *testing.T, conn *grpc.ClientConn, method string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) && status.Code(err) != codes.DeadlineExceeded {
		return err
	}
	return nil
}

// Version replies in the API version of the request.
func TestVersionEchoesTheVersion(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	conn := dial(t, d.Socket)
	for _, version := range []string{"v1", "v1alpha2"} {
		var got runtimeapi.VersionResponse
		if err := conn.Invoke(t.Context(), "/runtime."+version+".RuntimeService/Version",
			&runtimeapi.VersionRequest{Version: version}, &got); err != nil {
			t.Fatal(err)
		}
		if got.RuntimeApiVersion != version || got.RuntimeName != "kuri" || got.RuntimeVersion == "" || got.Version == "" {
			t.Errorf("in %s: %v", version, &got)
		}
	}
}

// A client that speaks only v1alpha2 runs a pod like any other client.
func TestPodOverV1alpha2(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	conn := dial(t, d.Socket)
	invoke := func(method string, req, resp any) {
		t.Helper()
		if err := conn.Invoke(t.Context(), "/runtime.v1alpha2.RuntimeService/"+method, req, resp); err != nil {
			t.Fatalf("%s: %v", method, err)
		}
	}
	p := harness.Pod("old")
	p.LogDirectory = t.TempDir()
	var pod runtimeapi.RunPodSandboxResponse
	invoke("RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: p}, &pod)
	var c runtimeapi.CreateContainerResponse
	invoke("CreateContainer", &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId,
		Config: harness.Container("main", image, "sh", "-c", "exit 5"), SandboxConfig: p}, &c)
	invoke("StartContainer", &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId},
		&runtimeapi.StartContainerResponse{})
	if got := d.WaitExit(t, c.ContainerId).ExitCode; got != 5 {
		t.Errorf("exit code %d, want 5", got)
	}
}

func TestUnknownIDs(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ctx, none := t.Context(), strings.Repeat("0", 64)
	// These succeed for an unknown id: a kubelet repeats them until they do.
	if _, err := d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: none}); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
	if _, err := d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: none}); err != nil {
		t.Errorf("RemovePodSandbox: %v", err)
	}
	if _, err := d.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: none}); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if _, err := d.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: none}); err != nil {
		t.Errorf("RemoveContainer: %v", err)
	}
	if _, err := d.Images.RemoveImage(ctx,
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "nobody/has:this"}}); err != nil {
		t.Errorf("RemoveImage: %v", err)
	}
	if resp, err := d.Images.ImageStatus(ctx,
		&runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "nobody/has:this"}}); err != nil ||
		resp.Image != nil {
		t.Errorf("ImageStatus: %v, %v; want no image and no error", resp, err)
	}
	// These fail for an unknown id.
	_, err := d.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: none})
	harness.WantError(t, err, codes.NotFound, none)
	_, err = d.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: none})
	harness.WantError(t, err, codes.NotFound, none)
	_, err = d.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: none})
	harness.WantError(t, err, codes.NotFound, none)
	_, err = d.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: none, Cmd: []string{"true"}})
	harness.WantError(t, err, codes.NotFound, none)
	_, err = d.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: none})
	harness.WantError(t, err, codes.NotFound, none)
	_, err = d.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: none})
	harness.WantError(t, err, codes.NotFound, none)
	_, err = d.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: none})
	harness.WantError(t, err, codes.NotFound, none)
	_, err = d.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: none,
		Config: harness.Container("c", "x"), SandboxConfig: harness.Pod("p")})
	harness.WantError(t, err, codes.NotFound, none)
}
