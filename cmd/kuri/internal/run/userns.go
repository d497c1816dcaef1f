package run

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// The node's ids for kuri run's pods with user namespaces, in ranges of manifest.IDsPerPod. They
// are far from the kubelet's, which start at 65536, and from those of users in /etc/subuid, which
// start at 100000 or 524288.
const (
	firstRange = 1 << 30
	endOfIDs   = 1 << 31
)

// idRange is a range of the node's ids.
type idRange struct{ first, length uint32 }

func (r idRange) overlaps(o idRange) bool {
	return uint64(r.first) < uint64(o.first)+uint64(o.length) && uint64(o.first) < uint64(r.first)+uint64(r.length)
}

// chooseIDs assigns each pod of the run with a user namespace a range of ids that no other pod of
// the runtime has.
func (r *run) chooseIDs(ctx context.Context, have *cli.Inventory) error {
	var taken []idRange
	asked := false
	for _, p := range r.pods {
		if !p.HasUserNamespace() {
			continue
		}
		if !asked {
			asked = true
			if err := r.requireUserNamespaces(ctx, p); err != nil {
				return err
			}
			for _, pod := range have.Pods {
				st, err := r.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id})
				if cli.IsGone(err) {
					continue
				}
				if err != nil {
					return fmt.Errorf("ask for the ids of pod %s: %w", cli.PodName(pod), err)
				}
				taken = append(taken, rangesOf(st.GetStatus())...)
			}
		}
		chosen, err := freeRange(taken)
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.Name(), err)
		}
		p.facts.FirstID = chosen.first
		taken = append(taken, chosen)
	}
	return nil
}

// requireUserNamespaces refuses a pod if its handler is known not to support user namespaces.
func (r *run) requireUserNamespaces(ctx context.Context, p *runningPod) error {
	st, err := r.rt.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask for the runtime's status: %w", err)
	}
	for _, h := range st.RuntimeHandlers {
		if h.Name == p.Handler() && !h.GetFeatures().GetUserNamespaces() {
			return fmt.Errorf("pod %s: hostUsers: false cannot be honoured, the runtime has no user namespaces on this node",
				p.Name())
		}
	}
	return nil
}

// rangesOf returns the node's ids that a pod has.
func rangesOf(st *runtimeapi.PodSandboxStatus) []idRange {
	var out []idRange
	o := st.GetLinux().GetNamespaces().GetOptions().GetUsernsOptions()
	for _, m := range append(o.GetUids(), o.GetGids()...) {
		out = append(out, idRange{m.HostId, m.Length})
	}
	return out
}

// freeRange returns a range that overlaps none of taken. The search starts at a random position, so
// that concurrent programs seldom choose the same range.
func freeRange(taken []idRange) (idRange, error) {
	const all = (endOfIDs - firstRange) / manifest.IDsPerPod
	begin := rand.IntN(all)
	for i := range all {
		r := idRange{firstRange + uint32((begin+i)%all)*manifest.IDsPerPod, manifest.IDsPerPod}
		free := true
		for _, t := range taken {
			free = free && !r.overlaps(t)
		}
		if free {
			return r, nil
		}
	}
	return idRange{}, errors.New("every range of user ids is another pod's")
}
