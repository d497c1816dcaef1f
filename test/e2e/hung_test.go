package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// While the keeper does not answer, kurid says so and serves the calls that it can, even after a
// restart, and it continues when the keeper answers again.
func TestAKeeperThatHangs(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	short := s.run(t, nil, "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 5")
	keeper := s.KeeperPid()
	stop := func() {
		t.Helper()
		if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 5*time.Second, "the keeper is stopped", func() error {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", keeper))
			if err == nil && !strings.Contains(string(stat), ") T ") {
				err = errors.New("it runs")
			}
			return err
		})
	}
	goOn := func() { syscall.Kill(keeper, syscall.SIGCONT) }
	t.Cleanup(goOn)

	within := func(what string, limit time.Duration, call func(ctx context.Context) error) error {
		t.Helper()
		start := time.Now()
		err := call(t.Context())
		if took := time.Since(start); took > harness.Patient(limit) {
			t.Errorf("%s took %s: %v", what, took, err)
		}
		return err
	}
	check := func() {
		t.Helper()
		if err := within("the status", 5*time.Second, func(ctx context.Context) error {
			resp, err := s.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
			if err != nil {
				return err
			}
			for _, c := range resp.Status.Conditions {
				if c.Type == "RuntimeReady" && (c.Status || !strings.Contains(c.Message, fmt.Sprintf("process %d", keeper)) ||
					!strings.Contains(c.Message, "is stopped")) {
					t.Errorf("the status says %v", c)
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		for what, call := range map[string]func(ctx context.Context) error{
			"the list of pods": func(ctx context.Context) error {
				resp, err := s.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
				if err == nil && len(resp.Items) != 1 {
					err = fmt.Errorf("%d pods", len(resp.Items))
				}
				return err
			},
			"the list of containers": func(ctx context.Context) error {
				resp, err := s.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
				if err == nil && len(resp.Containers) < 2 {
					err = fmt.Errorf("%d containers", len(resp.Containers))
				}
				return err
			},
			"a container's status": func(ctx context.Context) error {
				_, err := s.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
				return err
			},
			"the stats": func(ctx context.Context) error {
				_, err := s.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
				return err
			},
			"the images": func(ctx context.Context) error {
				_, err := s.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
				return err
			},
		} {
			if err := within(what, 5*time.Second, call); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		for what, call := range map[string]func(ctx context.Context) error{
			"an exec": func(ctx context.Context) error {
				_, err := s.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 30})
				return err
			},
			"a stop": func(ctx context.Context) error {
				_, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
				return err
			},
			"a container": func(ctx context.Context) error {
				_, err := s.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod,
					Config: s.config(nil, "sleep", "1000"), SandboxConfig: s.podConfig})
				return err
			},
		} {
			harness.WantError(t, within(what, 9*time.Second, call), codes.Unavailable, "is stopped",
				fmt.Sprintf("process %d", keeper))
		}
	}

	stop()
	check()
	s.Kill9(t)
	s.Continue(t)
	check()
	if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", st.State)
	}
	goOn()
	harness.Eventually(t, 10*time.Second, "the keeper goes on", func() error {
		_, err := s.Runtime.ExecSync(t.Context(),
			&runtimeapi.ExecSyncRequest{ContainerId: short, Cmd: []string{"touch", "/go"}})
		return err
	})
	if st := s.WaitExit(t, short); st.ExitCode != 5 {
		t.Errorf("exit code %d, want 5", st.ExitCode)
	}
	// Work that abandoned calls had begun is undone.
	harness.Eventually(t, 10*time.Second, "nothing is left of the containers that were given up", func() error {
		n := 0
		forCgroups(func(root string) {
			dirs, _ := filepath.Glob(root + "/kuri-" + s.pod + "/*")
			for _, d := range dirs {
				if info, err := os.Stat(d); err == nil && info.IsDir() && !strings.HasSuffix(d, id) {
					n++
				}
			}
		})
		if n > 0 {
			return fmt.Errorf("%d cgroups", n)
		}
		return nil
	})
	if status.Code(func() error {
		_, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id})
		return err
	}()) != codes.OK {
		t.Error("the container cannot be stopped afterwards")
	}
}
