package pod

import (
	"cmp"
	"slices"
)

// PodDump is a pod in a state dump: its identity and state, but not its configuration. So it has no environment,
// annotations or credentials.
type PodDump struct {
	ID         string          `json:"id"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	State      State           `json:"state"`
	Gone       string          `json:"gone,omitempty"`
	Salvaged   bool            `json:"salvaged,omitempty"`
	CreatedAt  int64           `json:"created_at"` // nanoseconds since the epoch, as all times here
	Containers []ContainerDump `json:"containers,omitempty"`
}

// ContainerDump is a container in a state dump.
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

// Dump returns all pods and containers at one moment, oldest pod first.
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
