package e2e

import (
	"fmt"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestStopSignals(t *testing.T) {
	s := newShell(t)
	for _, c := range []struct {
		signal runtimeapi.Signal
		number int // as the shell in the container knows it
	}{
		{runtimeapi.Signal_SIGNAL_SIGHUP, 1},
		{runtimeapi.Signal_SIGNAL_SIGWINCH, 28},
		{runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, 37}, // how systemd in a container is stopped
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
