package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestStopSignals(t *testing.T) {
	s := newShell(t)
	for _, c := range []struct {
		signal runtimeapi.Signal
		number int // as the shell in the container numbers it
	}{
		{runtimeapi.Signal_SIGNAL_SIGHUP, 1},
		{runtimeapi.Signal_SIGNAL_SIGWINCH, 28},
		{runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, 37}, // stops systemd in a container
		{runtimeapi.Signal_SIGNAL_SIGRTMAX, 64},
	} {
		id := s.run(t, func(c2 *container, _ *security) { c2.StopSignal = c.signal },
			"sh", "-c", fmt.Sprintf("trap '' TERM; trap 'exit 7' %d; echo ready; while :; do sleep 0.05; done", c.number))
		harness.Eventually(t, 5*time.Second, "its trap is set", func() error {
			if s.LogText(t, id, "stdout") != "ready\n" {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		if got := s.ContainerStatus(t, id).StopSignal; got != c.signal {
			t.Errorf("the status says %s, not %s", got, c.signal)
		}
		s.StopContainer(t, id, 10)
		if st := s.ContainerStatus(t, id); st.ExitCode != 7 {
			t.Errorf("%s: exit code %d, want 7", c.signal, st.ExitCode)
		}
	}
}

// Every signal that the CRI names reaches a container's process as the signal of that name.
func TestEverySignal(t *testing.T) {
	s := newShell(t)
	program := filepath.Join(t.TempDir(), "signal")
	if out, err := exec.Command("cc", "-static", "-Os", "-s", "-o", program,
		"testdata/signal.c").CombinedOutput(); err != nil {
		t.Fatalf("build the container's program: %v: %s", err, out)
	}
	if n := len(runtimeapi.Signal_name); n != 66 {
		t.Errorf("the CRI has %d signals; this knows 65 and the default", n)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	few := make(chan struct{}, 8)
	for value, name := range runtimeapi.Signal_name {
		signal := runtimeapi.Signal(value)
		number := signalNumber(t, name)
		config := s.config(func(c *container, _ *security) {
			c.StopSignal = signal
			c.Mounts = []*runtimeapi.Mount{{HostPath: program, ContainerPath: "/signal", Readonly: true}}
		}, "/signal")
		wg.Go(func() {
			few <- struct{}{}
			defer func() { <-few }()
			id, err := s.endsBy(t, config)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			resp, err := s.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			want := int32(number)
			// KILL ends the container; STOP leaves that to the end of the grace period.
			if number == syscall.SIGKILL || number == syscall.SIGSTOP {
				want = 128 + int32(syscall.SIGKILL)
			}
			if got := resp.Status.ExitCode; got != want {
				t.Errorf("%s: exit code %d, want %d", name, got, want)
			}
			told := signal
			if signal == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
				told = runtimeapi.Signal_SIGNAL_SIGTERM
			}
			if got := resp.Status.StopSignal; got != told {
				t.Errorf("%s: the status says %s", name, got)
			}
		})
	}
}

// endsBy runs a container, waits until it reports that it is ready, and stops it.
func (s *shell) endsBy(t *testing.T, config *container) (id string, err error) {
	created, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod,
		Config: config, SandboxConfig: s.podConfig})
	if err != nil {
		return "", err
	}
	if _, err := s.Runtime.StartContainer(t.Context(),
		&runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return "", err
	}
	status, err := s.Runtime.ContainerStatus(t.Context(),
		&runtimeapi.ContainerStatusRequest{ContainerId: created.ContainerId})
	if err != nil {
		return "", err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if said, err := os.ReadFile(status.Status.LogPath); err == nil && strings.Contains(string(said), "ready") {
			break
		}
		if time.Now().After(deadline) {
			return "", errors.New("it does not say that it is ready")
		}
	}
	grace := int64(10)
	if config.StopSignal == runtimeapi.Signal_SIGNAL_SIGSTOP {
		grace = 1
	}
	_, err = s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: created.ContainerId,
		Timeout: grace})
	return created.ContainerId, err
}

// signalNumber returns the number of a CRI signal on Linux for x86 and ARM: those of signal(7), and
// the C library's real-time signals, which are the kernel's without the first two.
func signalNumber(t *testing.T, name string) syscall.Signal {
	t.Helper()
	name = strings.TrimPrefix(name, "SIGNAL_")
	if offset, ok := strings.CutPrefix(name, "SIGRTMINPLUS"); ok {
		n, err := strconv.Atoi(offset)
		if err != nil {
			t.Fatal(err)
		}
		return syscall.Signal(34 + n)
	}
	if offset, ok := strings.CutPrefix(name, "SIGRTMAXMINUS"); ok {
		n, err := strconv.Atoi(offset)
		if err != nil {
			t.Fatal(err)
		}
		return syscall.Signal(64 - n)
	}
	switch name {
	case "RUNTIME_DEFAULT":
		return unix.SIGTERM
	case "SIGRTMIN":
		return 34
	case "SIGRTMAX":
		return 64
	case "SIGIOT":
		return unix.SIGABRT
	case "SIGPOLL":
		return unix.SIGIO
	case "SIGCLD":
		return unix.SIGCHLD
	}
	number := unix.SignalNum(name)
	if number == 0 {
		t.Fatalf("no number is known for %s", name)
	}
	return number
}
