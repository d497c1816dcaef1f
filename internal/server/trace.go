package server

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/step"
)

// traced are the operations that a pod's start is made of; historySize of them are kept, some hundred KiB.
var traced = map[string]bool{"RunPodSandbox": true, "PullImage": true, "CreateContainer": true, "StartContainer": true}

const historySize = 1000

// pulledBefore is how long before its sandbox a pod's images may have been pulled to count as a
// part of its start: kuri run pulls first, a kubelet later.
const pulledBefore = time.Minute

// operation is a step.Report in the key "operations" of a verbose status. Times are nanoseconds.
type operation struct {
	Kind        string          `json:"kind"`
	Container   string          `json:"container,omitempty"`
	ContainerID string          `json:"containerID,omitempty"`
	Image       string          `json:"image,omitempty"` // of a pull
	Began       int64           `json:"began"`           // since the epoch
	Took        int64           `json:"took"`
	Steps       []operationStep `json:"steps"`
	Error       string          `json:"error,omitempty"`
	Caller      string          `json:"caller,omitempty"` // the program
}

type operationStep struct {
	Name  string          `json:"name"`
	After int64           `json:"after"` // since the operation began
	Took  int64           `json:"took"`
	Parts []operationStep `json:"parts,omitempty"` // the keeper's own steps, likewise after the operation's beginning
}

// remember keeps an operation that has ended, if it is a part of a start.
func (s *Server) remember(r step.Report) {
	if traced[r.Kind] {
		s.history.Add(r)
	}
}

// operations returns the JSON of the operations that have started a pod, or one of its containers where that is not "".
func operations(h *step.History, snap *pod.Snapshot, container string) string {
	images := make(map[string]bool)
	for _, c := range snap.Containers {
		if container == "" || c.ID == container {
			images[c.ImageName], images[c.ImageID], images[c.ImageRef] = true, true, true
		}
	}
	since := time.Unix(0, snap.Sandbox.CreatedAt).Add(-pulledBefore)
	found := h.Find(func(r step.Report) bool {
		if r.Kind == "PullImage" {
			return images[r.Subject.Image] && r.Began.After(since)
		}
		return r.Subject.PodID == snap.Sandbox.ID && (container == "" || r.Subject.ContainerID == container)
	})
	slices.SortStableFunc(found, func(a, b step.Report) int { return cmp.Compare(a.Began.UnixNano(), b.Began.UnixNano()) })
	out := make([]operation, 0, len(found))
	for _, r := range found {
		out = append(out, toldOperation(r))
	}
	raw, err := json.Marshal(out)
	if err != nil { // numbers and texts
		return "[]"
	}
	return string(raw)
}

func toldOperation(r step.Report) operation {
	o := operation{
		Kind: r.Kind, Container: r.Subject.Container, ContainerID: r.Subject.ContainerID, Began: r.Began.UnixNano(),
		Took:  int64(r.Took),
		Steps: jsonSteps(r.Steps, r.Began), Caller: r.Caller.Program,
	}
	if r.Kind == "PullImage" {
		o.Image = r.Subject.Image
	}
	if r.Err != nil {
		o.Error = status.Convert(r.Err).Message()
	}
	return o
}

func jsonSteps(steps []step.Step, began time.Time) []operationStep {
	out := make([]operationStep, len(steps))
	for i, one := range steps {
		out[i] = operationStep{Name: one.Name, After: int64(one.Began.Sub(began)), Took: int64(one.Took)}
		if len(one.Parts) > 0 {
			out[i].Parts = jsonSteps(one.Parts, began)
		}
	}
	return out
}
