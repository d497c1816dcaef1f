package e2e

import (
	"fmt"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

type (
	container = runtimeapi.ContainerConfig
	security  = runtimeapi.LinuxContainerSecurityContext
)

// shell is a daemon with busybox and one pod to run containers in.
type shell struct {
	*harness.Daemon
	image, pod string
	podConfig  *runtimeapi.PodSandboxConfig
	count      int
}

func newShell(t *testing.T, options ...harness.Options) *shell {
	t.Helper()
	var o harness.Options
	if len(options) > 0 {
		o = options[0]
	}
	s := &shell{Daemon: harness.Start(t, o), podConfig: harness.Pod("shell")}
	s.image = s.PullBusybox(t)
	s.pod = s.RunPod(t, s.podConfig)
	return s
}

// run runs a command in a container whose configuration change may alter, and returns the container's id.
func (s *shell) run(t *testing.T, change func(*container, *security), command ...string) string {
	t.Helper()
	return s.Run(t, s.pod, s.config(change, command...), s.podConfig)
}

func (s *shell) config(change func(*container, *security), command ...string) *container {
	s.count++
	c := harness.Container(fmt.Sprint("c", s.count), s.image, command...)
	if change != nil {
		change(c, c.Linux.SecurityContext)
	}
	return c
}

// says runs a command to completion and returns its standard output. It must exit with 0.
func (s *shell) says(t *testing.T, change func(*container, *security), command ...string) string {
	t.Helper()
	id := s.run(t, change, command...)
	if st := s.WaitExit(t, id); st.ExitCode != 0 {
		t.Errorf("%q exits %d: %s", command, st.ExitCode, s.LogText(t, id, "stderr"))
	}
	return s.LogText(t, id, "stdout")
}

// refuses creates and starts a container that must not run, and returns the error.
func (s *shell) refuses(t *testing.T, change func(*container, *security), command ...string) error {
	t.Helper()
	resp, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod,
		Config: s.config(change, command...), SandboxConfig: s.podConfig})
	if err != nil {
		return err
	}
	_, err = s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId})
	return err
}
