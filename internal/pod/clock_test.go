package pod

import (
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The clock was set back: a kubelet still finds the sandbox and the container of its last attempt to be
// the newest, and no others are affected.
func TestNewestAfterTheClockWasSetBack(t *testing.T) {
	n := newHost(t)
	const hour = int64(time.Hour)
	later := time.Now().UnixNano() + hour
	first := n.pod(func(r *SandboxRecord) { r.CreatedAt, r.State = later, NotReady })
	held := n.pod(func(r *SandboxRecord) { r.CreatedAt = later })
	made := n.container(held, func(r *ContainerRecord) {
		r.State, r.CreatedAt, r.StartedAt, r.FinishedAt = Exited, later, later, later
		r.Config.msg = &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "c"}}
	})
	n.hold(held, nil)
	p := n.open()

	again := first.config()
	again.Metadata.Attempt = 1
	for cfg, after := range map[*runtime.PodSandboxConfig]bool{again: true, hostPod("other"): false} {
		s, err := p.Run(t.Context(), cfg, "")
		must(t, err)
		if at := s.Record().CreatedAt; at > later != after {
			t.Errorf("attempt %d of pod %s was created at %d, another at %d", cfg.Metadata.Attempt, cfg.Metadata.Name, at, later)
		}
	}
	s := p.containers[made.ID].sandbox
	if at := s.createdAfter("c", later-hour); at <= later {
		t.Errorf("the next container of the name is created at %d, the one before at %d", at, later)
	}
	if at := s.createdAfter("d", later-hour); at != later-hour {
		t.Errorf("a container of another name is created at %d, want %d", at, later-hour)
	}
}
