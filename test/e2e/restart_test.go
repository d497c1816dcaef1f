package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/test/harness"
)

// polling calls a daemon as a kubelet does, over connections that it keeps, until its test ends.
type polling struct {
	calls  atomic.Int64
	mu     sync.Mutex // guards failed
	failed []error

	stop context.CancelFunc
	done sync.WaitGroup
}

func poll(t *testing.T, d *harness.Daemon, pod, container string) *polling {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	p := &polling{stop: stop}
	rt, err := client.DialRuntime(ctx, "unix://"+d.Socket, client.Options{Timeout: harness.Patient(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	images, err := client.DialImages(ctx, "unix://"+d.ImageSocket, client.Options{Timeout: harness.Patient(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close(); images.Close() })
	verbs := map[string]func() error{
		"Version":  func() error { _, err := rt.Version(ctx, &runtimeapi.VersionRequest{}); return err },
		"Status":   func() error { _, err := rt.Status(ctx, &runtimeapi.StatusRequest{}); return err },
		"ListPods": func() error { _, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err },
		"PodStatus": func() error {
			_, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			return err
		},
		"ListContainers": func() error { _, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err },
		"ContainerStatus": func() error {
			_, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
			return err
		},
		"ExecSync": func() error {
			r, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 10})
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("exit code %d", r.ExitCode)
			}
			return err
		},
		"ListImages": func() error { _, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); return err },
	}
	for name, verb := range verbs {
		p.done.Go(func() {
			for every := time.Tick(50 * time.Millisecond); ctx.Err() == nil; <-every {
				if err := verb(); ctx.Err() == nil {
					p.calls.Add(1)
					if err != nil {
						p.mu.Lock()
						p.failed = append(p.failed, fmt.Errorf("%s: %w", name, err))
						p.mu.Unlock()
					}
				}
			}
		})
	}
	return p
}

func (p *polling) end() (calls int64, failed []error) {
	p.stop()
	p.done.Wait()
	return p.calls.Load(), p.failed
}

func runningContainer(t *testing.T, d *harness.Daemon) (pod, container string) {
	t.Helper()
	image := d.PullBusybox(t)
	config := harness.Pod("restarts")
	pod = d.RunPod(t, config)
	return pod, d.Run(t, pod, harness.Container("main", image, "sleep", "100000"), config)
}

// A daemon that is restarted in order fails no call of a client that polls it: what is in flight is answered, and what comes
// meanwhile waits.
func TestRestartFailsNoCall(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	pod, container := runningContainer(t, d)
	p := poll(t, d, pod, container)
	for range 10 {
		d.Stop(t)
		d.Continue(t)
		time.Sleep(100 * time.Millisecond) // in which it is polled
	}
	calls, failed := p.end()
	if calls < 100 || len(failed) > 0 {
		t.Errorf("of %d calls %d failed: %v", calls, len(failed), errors.Join(failed...))
	}
}

// A daemon that is killed cuts the calls in flight, and refuses none: every failure is a connection that broke.
func TestKillRefusesNoConnection(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	pod, container := runningContainer(t, d)
	p := poll(t, d, pod, container)
	for range 10 {
		d.Kill9(t)
		for range 5 { // nobody serves, and nobody is refused
			c, err := net.Dial("unix", d.Socket)
			if err != nil {
				t.Fatalf("dial while no daemon runs: %v", err)
			}
			c.Close()
		}
		d.Continue(t)
		time.Sleep(100 * time.Millisecond)
	}
	calls, failed := p.end()
	if calls < 100 {
		t.Errorf("%d calls in all", calls)
	}
	for _, err := range failed {
		if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "no such file") {
			t.Error(err)
		}
	}
}

// An ExecSync that is under way when the daemon is asked to end is answered.
func TestRestartAnswersAnExec(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	_, container := runningContainer(t, d)
	rt, err := client.DialRuntime(t.Context(), "unix://"+d.Socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	said := make(chan error, 1)
	go func() {
		r, err := rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"sh", "-c", "touch /tmp/began; sleep 1; echo done"}, Timeout: 30})
		if err == nil && string(r.Stdout) != "done\n" {
			err = fmt.Errorf("it said %q", r.Stdout)
		}
		said <- err
	}()
	harness.Eventually(t, 10*time.Second, "the command runs", func() error {
		r, err := d.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"ls", "/tmp/began"}})
		if err == nil && r.ExitCode != 0 {
			err = errors.New("not yet")
		}
		return err
	})
	d.Stop(t)
	d.Continue(t)
	if err := <-said; err != nil {
		t.Error(err)
	}
}

// A socket whose file has been removed is made anew by the next daemon; the one that the holder keeps is not it.
func TestSocketRemoved(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	d.Stop(t)
	if err := os.Remove(d.Socket); err != nil {
		t.Fatal(err)
	}
	d.Continue(t)
	if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
}
