package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/spec"
)

// UpdateContainer changes the resources of a container that is created or runs. A zero field stays as it is. Either all
// of the change applies, or none of it and the error says which field and why. Error kinds: NotFound, Precondition (it
// has exited; the kernel does not accept a value), Invalid and Unimplemented (a field). The work continues when ctx
// ends; another call for the same change joins it.
func (p *Pods) UpdateContainer(ctx context.Context, id string, change *runtime.LinuxContainerResources, annotations map[string]string) error {
	c, err := p.Container(id)
	if err != nil {
		return err
	}
	r := c.Record()
	for key := range annotations {
		if err := spec.CheckUpdateAnnotation(key); err != nil {
			return fmt.Errorf("update %s: %w", r.name(), err)
		}
	}
	body, err := protojson.Marshal(change)
	if err != nil {
		return err
	}
	_, _, err = p.updates.Do(ctx, updating{r.ID, string(body)}, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, p.update(ctx, c, change)
	})
	if err != nil {
		return fmt.Errorf("update %s: %w", r.name(), err)
	}
	return nil
}

func (p *Pods) update(ctx context.Context, c *Container, change *runtime.LinuxContainerResources) error {
	// 1. One update after the other: each builds on the result of the one before.
	c.updating <- struct{}{}
	defer func() { <-c.updating }()
	r := c.Record()
	if r.State != Created && r.State != Running {
		return fault.New(fault.Precondition, "it is %s; only a created or running container has resources to change", r.State)
	}

	// 2. The resulting limits on this node.
	next := spec.MergeResources(r.CurrentResources(), change)
	limits, score, notes, err := spec.Resources(next, p.Node)
	if err != nil {
		return err
	}
	for _, note := range notes {
		slog.Warn("part of the request has no effect on this node", "container", r.name(), "note", note)
	}
	body, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("encode the resources: %w", err)
	}
	req := &api.UpdateRequest{Id: r.ID, Resources: body}
	if change.GetOomScoreAdj() != 0 {
		req.OomScoreAdj = proto.Int32(int32(score))
	}

	// 3. The intent. If the daemon is killed, its successor finishes the change, see [Pods.resumeUpdate].
	if err := c.amend(func(r *ContainerRecord) { r.Change.msg = change }); err != nil {
		return err
	}
	failpoint.At("update container: intent recorded")

	// 4. The kernel, all or nothing.
	if err := p.Keeper.Update(ctx, req); err != nil {
		if !errors.Is(err, fault.Unavailable) { // else it is unknown whether it applies
			p.complain("forget the change of "+r.name(), c.amend(func(r *ContainerRecord) { r.Change.msg = nil }))
		}
		return err
	}
	failpoint.At("update container: applied")

	// 5. The record, which the status reports.
	err = c.amend(func(r *ContainerRecord) { r.Resources.msg, r.Change.msg = next, nil })
	failpoint.At("update container: recorded")
	return err
}

// resumeWait bounds how long a start waits for an interrupted change of a container's resources.
const resumeWait = 5 * time.Second

// resumeUpdate finishes an update during which the last daemon was killed. The kernel may have the change or not, and
// the status must report the kernel's values. A change that fails is given up, and then nothing of it applies.
func (p *Pods) resumeUpdate(ctx context.Context, c *Container) {
	r := c.Record()
	if r.Change.msg == nil || r.State != Created && r.State != Running {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resumeWait)
	defer cancel()
	slog.Info("finished a change of resources that the end of kurid had interrupted", "container", r.name())
	p.complain("change the resources of "+r.name(), p.UpdateContainer(ctx, r.ID, r.Change.msg, nil))
}

// UpdateSandbox records the new resources and overhead of a pod. The caller has already set the pod's cgroup, as the
// CRI requires. Error kinds: NotFound (an unknown sandbox), Precondition (a stopped one).
func (p *Pods) UpdateSandbox(id string, overhead, resources *runtime.LinuxContainerResources) error {
	s, err := p.Sandbox(id)
	if err != nil {
		return err
	}
	for field, v := range map[string]*runtime.LinuxContainerResources{"overhead": overhead, "resources": resources} {
		if err := spec.CheckResources(v); err != nil {
			return fmt.Errorf("update %s: %s: %w", s.Record().name(), field, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.Record()
	if err := r.ready(); err != nil {
		return fmt.Errorf("update %s: %w", r.name(), err)
	}
	defer failpoint.At("update pod: recorded")
	return s.becomeLocked(Ready, func(r *SandboxRecord) {
		if overhead != nil {
			r.Overhead.msg = proto.CloneOf(overhead)
		}
		if resources != nil {
			r.Resources.msg = proto.CloneOf(resources)
		}
	})
}
