package pod

import (
	"errors"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// A kubelet stops a pod, often twice, and then removes it. The network and the namespaces are released by the first stop
// that succeeds, and by no later call.
func TestASandboxIsStoppedOnce(t *testing.T) {
	n := newHost(t)
	p := n.open()
	cfg := hostPod("web")
	cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_POD
	s, err := p.Run(t.Context(), cfg, "")
	must(t, err)
	id := s.Record().ID

	n.network.stuck = fault.New(fault.Unavailable, "a plugin has failed")
	if err := p.Stop(t.Context(), id); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a network that cannot be detached: %v", err)
	}
	n.network.stuck = nil
	for range 2 {
		must(t, p.Stop(t.Context(), id))
	}
	must(t, p.Remove(t.Context(), id))
	n.empty()
	if got := len(n.network.detached); got != 2 {
		t.Errorf("the network was detached %d times; the first failed, so the second had to be the last", got)
	}
	if got := times(n.keeper.Calls(), "remove "+id); got != 1 {
		t.Errorf("the keeper released the namespaces %d times", got)
	}
}

// A container that has ended is deleted at the keeper once, although its exit, the stop of its pod and its removal all
// require that.
func TestAContainerIsDeletedOnce(t *testing.T) {
	n := newHost(t)
	box := n.pod(nil)
	r := n.container(box, nil)
	n.hold(box, &api.Container{Id: r.ID, State: api.State_RUNNING, StartedAt: 5})
	p := n.open()

	must(t, p.Stop(t.Context(), box.ID)) // kills it
	must(t, p.RemoveContainer(t.Context(), r.ID))
	must(t, p.Remove(t.Context(), box.ID))
	n.empty()
	n.close() // waits for the handling of the exit
	if got := times(n.keeper.Calls(), "delete "+r.ID); got != 1 {
		t.Errorf("the keeper deleted the container %d times", got)
	}
}

func times(calls []string, call string) (n int) {
	for _, c := range calls {
		if c == call {
			n++
		}
	}
	return n
}
