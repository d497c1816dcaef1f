package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/record"
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
	if err := p.load(ctx); err != nil {
		return 0, err
	}

	settling, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()

	// 3. What the keeper holds without a record belongs to nobody.
	for id := range containers {
		if _, err := p.Container(id); err != nil {
			slog.Warn("taking back a container without a record", "container", id)
			p.complain("delete a container without a record", p.Keeper.Delete(ctx, id))
		}
	}
	for id := range sandboxes {
		if _, err := p.Sandbox(id); err != nil {
			slog.Warn("taking back a pod without a record", "pod", id)
			p.complain("detach the network of a pod without a record", p.Network.Detach(settling, p.networkPod(unknownSandbox(id)), nil))
			p.complain("release a pod without a record", p.Keeper.RemoveSandbox(ctx, id))
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

func unknownSandbox(id string) *SandboxRecord {
	return &SandboxRecord{ID: id, NetnsPath: netnsPath(id), Config: message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{}}}
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

// load reads all records into the maps.
func (p *Pods) load(ctx context.Context) error {
	dir := filepath.Join(p.Root, "pods")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the pods' records: %w", err)
	}
	for _, e := range entries {
		id := e.Name()
		r := &SandboxRecord{}
		switch err := record.Read(p.paths.podRecord(id), sandboxFormat, r); {
		case errors.Is(err, fault.NotFound):
			// The record goes first when a pod is removed, and comes first when it is made: this is the rest of one.
			if _, err := os.Stat(p.paths.podRecord(id) + ".damaged"); err != nil {
				p.complain("remove the rest of a pod", p.removeDirs(id))
			}
			continue
		case err != nil:
			slog.Error("a pod's record cannot be read and is set aside", "pod", id, "err", err)
			p.complain("set a damaged record aside", record.SetAside(p.paths.podRecord(id)))
			continue
		}
		s := &Sandbox{paths: p.paths, view: &p.view, containers: make(map[string]*Container)}
		s.namespaces.Store(new(map[string]string))
		s.rec.Store(r)
		p.add(s)
		p.labels.keep(r.ID, r.Labels)
		p.loadContainers(ctx, s)
	}
	return nil
}

func (p *Pods) loadContainers(ctx context.Context, s *Sandbox) {
	pod := s.Record().ID
	entries, err := os.ReadDir(filepath.Join(p.paths.podDir(pod), "containers"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		slog.Error("a pod's containers cannot be read", "pod", pod, "err", err)
	}
	for _, e := range entries {
		r := &ContainerRecord{}
		path := p.paths.containerRecord(pod, e.Name())
		err := record.Read(path, containerFormat, r)
		if err != nil && !errors.Is(err, fault.NotFound) {
			slog.Error("a container's record cannot be read and is set aside", "container", e.Name(), "err", err)
			p.complain("set a damaged record aside", record.SetAside(path))
			continue
		}
		if err != nil || r.State == Creating {
			if _, err := os.Stat(path + ".damaged"); err != nil {
				p.complain("remove the rest of a container", p.removeRest(ctx, p.recordOf(pod, e.Name())))
			}
			continue
		}
		c := newContainer(p.paths, s, r)
		c.release = p.Layers.Hold(r.Layers)
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
