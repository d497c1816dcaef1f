package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/record"
)

// settleWait bounds how long a start waits for what has to be taken back, all of it together. It goes on behind the start: a
// CNI plugin that hangs must not keep the daemon from serving.
const settleWait = 10 * time.Second

// recovery is what a start has still to do when the keeper can be asked.
type recovery struct {
	rests []*ContainerRecord // of containers that were being made or removed when the last daemon ended
}

// recover brings the records in line with what the keeper holds, and takes back what was half-made when the last daemon
// ended. It returns the number of the newest event that it has seen. What goes wrong with one pod costs that pod alone; an
// error means that the keeper cannot be asked.
func (p *Pods) recover(ctx context.Context, todo *recovery) (seen uint64, err error) {
	// 1. What the keeper holds, with the number of an event that is not newer.
	held, err := p.ask(ctx)
	if err != nil {
		return 0, err
	}
	settling, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()

	// 2. What was being made or removed.
	for _, r := range todo.rests {
		p.complain("remove the rest of a container", p.removeRest(ctx, r))
	}

	// 3. What the keeper holds without a record belongs to nobody.
	p.sweep(settling, held)

	// 4. Each pod and container as it is now.
	for _, s := range p.allSandboxes() { // settling may remove one
		box := held.sandboxes[s.Record().ID]
		p.adopt(s, box)
		for _, c := range s.list() {
			p.reconcile(c, held.containers[c.Record().ID])
		}
		p.settle(settling, s, box)
	}

	// 5. Writable layers whose containers are gone.
	p.complain("remove writable layers without a container", p.sweepWritable())
	return held.seen, nil
}

// holdings are what the keeper holds, by id.
type holdings struct {
	seen       uint64 // the number of an event that is not newer
	sandboxes  map[string]*api.Sandbox
	containers map[string]*api.Container
}

// ask asks the keeper what it holds.
func (p *Pods) ask(ctx context.Context) (*holdings, error) {
	if err := p.Keeper.Ready(ctx, keeperWait); err != nil {
		return nil, err
	}
	info, err := p.Keeper.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the keeper: %w", err)
	}
	list, err := p.Keeper.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the keeper what it holds: %w", err)
	}
	held := &holdings{info.LastEvent, make(map[string]*api.Sandbox), make(map[string]*api.Container)}
	for _, s := range list.Sandboxes {
		held.sandboxes[s.Id] = s
	}
	for _, c := range list.Containers {
		held.containers[c.Id] = c
	}
	return held, nil
}

// keeperWait is how long the keeper may take to answer before it counts as one that hangs.
const keeperWait = 10 * time.Second

// sweep takes back what the keeper holds without a record. (A verb writes its record first and removes it last.) What has a
// record that cannot be read goes on.
func (p *Pods) sweep(ctx context.Context, held *holdings) {
	for id, c := range held.containers {
		if p.recorded(p.paths.containerRecord(c.SandboxId, id)) || p.recorded(p.paths.podRecord(c.SandboxId)+damaged) {
			continue
		}
		slog.Warn("taking back a container without a record", "container", id)
		p.complain("delete a container without a record", p.Keeper.Delete(ctx, id))
	}
	for id := range held.sandboxes {
		if p.recorded(p.paths.podRecord(id)) {
			continue
		}
		slog.Warn("taking back a pod without a record", "pod", id)
		p.complain("detach the network of a pod without a record", p.Network.Detach(ctx, p.networkPod(unknownSandbox(id)), nil))
		p.complain("release a pod without a record", p.Keeper.RemoveSandbox(ctx, id))
	}
}

// damaged is the end of the names of records that were set aside.
const damaged = ".damaged"

// recorded reports whether there is a record at path, or was one that cannot be read.
func (p *Pods) recorded(path string) bool {
	for _, name := range []string{path, path + damaged} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}

// adopt takes over how containers join a sandbox, and what is gone of it.
func (p *Pods) adopt(s *Sandbox, held *api.Sandbox) {
	if held != nil {
		s.namespaces.Store(&held.Namespaces)
	}
	p.lost(held)
	p.look(s)
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
	case r.State == NotReady && r.Gone == "" && held != nil: // its stop was cut off
		p.complain("stop "+r.name(), p.stopSandbox(ctx, s))
	}
}

// load reads all records into the maps.
func (p *Pods) load() (*recovery, error) {
	todo := &recovery{}
	dir := filepath.Join(p.Root, "pods")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the pods' records: %w", err)
	}
	for _, e := range entries {
		id := e.Name()
		r := &SandboxRecord{}
		switch err := record.Read(p.paths.podRecord(id), sandboxFormat, r); {
		case errors.Is(err, fault.NotFound):
			// The record goes first when a pod is removed, and comes first when it is made: this is the rest of one.
			if _, err := os.Stat(p.paths.podRecord(id) + damaged); err != nil {
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
		p.loadContainers(s, todo)
	}
	return todo, nil
}

func (p *Pods) loadContainers(s *Sandbox, todo *recovery) {
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
			if _, err := os.Stat(path + damaged); err != nil {
				todo.rests = append(todo.rests, p.recordOf(pod, e.Name()))
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
