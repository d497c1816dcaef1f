package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// settleWait bounds how long a start waits for what has to be taken back, all of it together. It goes on behind the start: a
// CNI plugin that hangs must not keep the daemon from serving.
const settleWait = 10 * time.Second

// recover reads the records, brings them in line with what the keeper holds, and takes back what was half-made when the
// last daemon ended. It returns the number of the newest event that it has seen. What goes wrong with one pod costs that
// pod alone; an error means that the keeper or the disk cannot be asked at all.
func (p *Pods) recover(ctx context.Context) (seen uint64, err error) {
	// 1. What the keeper holds, with the number of an event that is not newer.
	info, err := p.Keeper.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask the keeper: %w", err)
	}
	held, err := p.Keeper.List(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask the keeper what it holds: %w", err)
	}
	sandboxes := make(map[string]*api.Sandbox)
	for _, s := range held.Sandboxes {
		sandboxes[s.Id] = s
	}
	containers := make(map[string]*api.Container)
	for _, c := range held.Containers {
		containers[c.Id] = c
	}

	// 2. What the records say.
	p.load(ctx, func(id string) bool { return sandboxes[id] != nil || containers[id] != nil })

	settling, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()

	// 3. What the keeper holds without a record that can be read goes on running. (Records come before and go after what the
	// keeper is asked for: one that is not there was lost.)
	for id, held := range sandboxes {
		if p.sandboxes[id] == nil {
			p.salvageSandbox(held)
		}
	}
	for id, held := range containers {
		switch {
		case p.containers[id] != nil:
		case held.State == api.State_EXITED:
			p.complain("delete an exited container without a record", p.Keeper.Delete(ctx, id))
		default:
			p.salvageContainer(held)
		}
	}

	// 4. Each pod and container as it is now.
	for _, s := range slices.Collect(maps.Values(p.sandboxes)) { // settling may remove one
		id := s.Record().ID
		if held, ok := sandboxes[id]; ok {
			s.namespaces.Store(&held.Namespaces)
		}
		for _, c := range s.list() {
			p.reconcile(c, containers[c.Record().ID])
		}
		p.settle(settling, s, sandboxes[id])
	}

	// 5. Writable layers whose containers are gone.
	p.complain("remove writable layers without a container", p.sweepWritable())
	return info.LastEvent, nil
}

func (p *Pods) complain(what string, err error) {
	if err != nil {
		slog.Error("recovery: something may be left behind", "step", what, "err", err)
	}
}

// settle makes a sandbox what it can still be: one that was being made is taken back whole; one whose namespaces are
// gone (after a reboot) is stopped, so that its addresses come back and the kubelet makes another.
func (p *Pods) settle(ctx context.Context, s *Sandbox, held *api.Sandbox) {
	r := s.Record()
	switch {
	case r.State == Creating:
		slog.Info("taking back a pod that was being made when kurid ended", "pod", r.name())
		p.complain("take back "+r.name(), p.Remove(ctx, r.ID))
	case r.State == Ready && held == nil:
		slog.Info("a pod's namespaces are gone, it is stopped", "pod", r.name(), "rebooted", r.BootID != p.bootID)
		p.complain("stop "+r.name(), p.stopSandbox(ctx, s))
	case r.State == NotReady && held != nil:
		p.complain("stop "+r.name(), p.stopSandbox(ctx, s))
	}
}

// load reads all records into the maps. held reports whether the keeper has the pod or container of an id.
func (p *Pods) load(ctx context.Context, held func(id string) bool) {
	for _, id := range namesIn(filepath.Join(p.Root, "pods"), filepath.Join(p.State, "pods")) {
		r := &SandboxRecord{}
		_, err := readRecord(p.paths.podRecord(id), p.paths.podCopy(id), sandboxFormat, r)
		if errors.Is(err, fault.NotFound) && !held(id) {
			// The record goes first when a pod is removed, and comes first when it is made: this is the rest of one.
			p.complain("remove the rest of a pod", p.removeDirs(id))
		}
		if err != nil {
			continue
		}
		s := &Sandbox{paths: p.paths, view: &p.view, containers: make(map[string]*Container)}
		s.namespaces.Store(new(map[string]string))
		s.rec.Store(r)
		p.add(s)
		p.labels.keep(r.ID, r.Labels)
		p.loadContainers(ctx, s, held)
	}
}

func (p *Pods) loadContainers(ctx context.Context, s *Sandbox, held func(id string) bool) {
	pod := s.Record().ID
	for _, id := range namesIn(filepath.Join(p.paths.podDir(pod), "containers"), filepath.Join(p.paths.podState(pod), "containers")) {
		r := &ContainerRecord{}
		_, err := readRecord(p.paths.containerRecord(pod, id), p.paths.containerCopy(pod, id), containerFormat, r)
		switch {
		case errors.Is(err, fault.NotFound) && held(id):
			continue // salvaged
		case errors.Is(err, fault.NotFound), err == nil && r.State == Creating:
			p.complain("remove the rest of a container", p.removeRest(ctx, p.recordOf(pod, id)))
			continue
		case err != nil:
			continue
		}
		c := newContainer(p.paths, s, r)
		c.release = p.Layers.Hold(r.Layers)
		if r.Salvaged {
			c.release = p.Layers.Hold(p.Layers.All())
		}
		p.labels.keep(r.ID, r.Labels)
		s.containers[r.ID] = c
		p.addContainer(c)
	}
}

// removeRest removes what is left of a container that was being removed, or made. The keeper may still be making it, and
// does not list it until it is made; asked to delete it, it waits for that.
func (p *Pods) removeRest(ctx context.Context, r *ContainerRecord) error {
	if err := p.Keeper.Delete(ctx, r.ID); err != nil {
		return err
	}
	return p.removeContainerDirs(r)
}
