package pod

import (
	"cmp"
	"slices"
)

// PodDump is a pod as a state dump tells it: what it is and how it is, and nothing of what it was asked to be. So it has no
// environment, no annotation and no credential.
type PodDump struct {
	ID         string          `json:"id"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	State      State           `json:"state"`
	Gone       string          `json:"gone,omitempty"`
	Salvaged   bool            `json:"salvaged,omitempty"`
	CreatedAt  int64           `json:"created_at"` // nanoseconds since the epoch, as the others
	Containers []ContainerDump `json:"containers,omitempty"`
}

// ContainerDump is a container likewise.
type ContainerDump struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	State      State  `json:"state"`
	Pid        int    `json:"pid,omitempty"`
	Image      string `json:"image"`
	CreatedAt  int64  `json:"created_at"`
	StartedAt  int64  `json:"started_at,omitempty"`
	FinishedAt int64  `json:"finished_at,omitempty"`
	ExitCode   int32  `json:"exit_code,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// Dump returns all pods and containers at one moment, the oldest first.
func (v *view) Dump() []PodDump {
	v.mu.RLock()
	defer v.mu.RUnlock()
	dump := make([]PodDump, 0, len(v.sandboxes))
	for _, s := range v.sandboxes {
		r := s.rec.Load()
		m := r.config().GetMetadata()
		one := PodDump{
			ID: r.ID, Namespace: m.GetNamespace(), Name: m.GetName(), State: r.State, Gone: r.Gone, Salvaged: r.Salvaged, CreatedAt: r.CreatedAt,
		}
		for _, c := range s.shown {
			r := c.rec.Load()
			one.Containers = append(one.Containers, ContainerDump{
				ID: r.ID, Name: r.config().GetMetadata().GetName(), State: r.State, Pid: r.Pid, Image: r.ImageName,
				CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, ExitCode: r.ExitCode, Reason: r.Reason,
			})
		}
		dump = append(dump, one)
	}
	slices.SortFunc(dump, func(a, b PodDump) int { return cmp.Compare(a.CreatedAt, b.CreatedAt) })
	return dump
}
