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
)

// settleWait bounds how long a start waits for what has to be taken back, all of it together. It goes on behind the start: a
// CNI plugin that hangs must not keep the daemon from serving.
const settleWait = 10 * time.Second

// recovery is what a start has still to do when the keeper can be asked.
type recovery struct {
	rests []*ContainerRecord // of containers that were being made or removed when the last daemon ended, or whose record is lost
	pods  []string           // likewise, of pods
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

	// 2. What was being made or removed. What the keeper holds was not, unless its record says so.
	for _, id := range todo.pods {
		if held.sandboxes[id] == nil {
			p.complain("remove the rest of a pod", p.removeDirs(id))
		}
	}
	p.removeRests(ctx, todo, held)

	// 3. What the keeper holds without a record that can be read goes on running.
	p.salvage(ctx, held)

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

// salvage takes in what the keeper holds without a record that can be read. (Records come before and go after what the keeper
// is asked for: one that is not there was lost.)
func (p *Pods) salvage(ctx context.Context, held *holdings) {
	for id, box := range held.sandboxes {
		if _, err := p.Sandbox(id); err != nil {
			// Its containers' own records may be whole.
			todo := &recovery{}
			p.loadContainers(p.salvageSandbox(box), todo)
			p.removeRests(ctx, todo, held)
		}
	}
	for id, c := range held.containers {
		_, err := p.Container(id)
		switch {
		case err == nil:
		case c.State == api.State_EXITED:
			p.complain("delete an exited container without a record", p.Keeper.Delete(ctx, id))
		default:
			p.salvageContainer(c)
		}
	}
}

// sweep takes back what a running daemon had the keeper make and has given up: what the keeper holds and that is neither known
// nor has a record, or the rest of one. (A verb writes its record first and removes it last.)
func (p *Pods) sweep(ctx context.Context, held *holdings) {
	for id, c := range held.containers {
		if _, err := p.Container(id); err == nil || recorded(p.paths.containerRecord(c.SandboxId, id), p.paths.containerCopy(c.SandboxId, id)) {
			continue
		}
		slog.Warn("taking back a container without a record", "container", id)
		p.complain("delete a container without a record", p.Keeper.Delete(ctx, id))
	}
	for id := range held.sandboxes {
		if _, err := p.Sandbox(id); err == nil || recorded(p.paths.podRecord(id), p.paths.podCopy(id)) {
			continue
		}
		slog.Warn("taking back a pod without a record", "pod", id)
		p.complain("detach the network of a pod without a record", p.Network.Detach(ctx, p.networkPod(unknownSandbox(id)), nil))
		p.complain("release a pod without a record", p.Keeper.RemoveSandbox(ctx, id))
	}
}

// recorded reports whether there is a record at path, was one that cannot be read, or is its copy.
func recorded(path, copyPath string) bool {
	for _, name := range []string{path, path + ".damaged", copyPath} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}

func unknownSandbox(id string) *SandboxRecord {
	return &SandboxRecord{ID: id, NetnsPath: netnsPath(id), Config: message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{}}}
}

// adopt takes over how containers join a sandbox that the keeper holds, and what is gone of it.
func (p *Pods) adopt(s *Sandbox, held *api.Sandbox) {
	if held == nil {
		return
	}
	s.namespaces.Store(&held.Namespaces)
	p.lost(held)
	p.look(s)
	if r := s.Record(); r.State == Ready {
		p.complain("make the files of "+r.name()+" anew", p.ensureFiles(r))
	}
}

func (p *Pods) complain(what string, err error) {
	if err != nil {
		slog.Error("recovery: something may be left behind", "step", what, "err", err)
	}
}

// settle makes a sandbox what it can still be: one that was being made is taken back whole; one whose namespaces are
// gone (after a reboot) is stopped, so that its addresses come back and the kubelet makes another. One that is lost and has
// processes is notready, and left to whoever stops it.
func (p *Pods) settle(ctx context.Context, s *Sandbox, held *api.Sandbox) {
	r := s.Record()
	switch {
	case r.State == Creating:
		slog.Info("taking back a pod that was being made when kurid ended", "pod", r.name())
		p.complain("take back "+r.name(), p.Remove(ctx, r.ID))
	case r.State == Ready && held == nil && p.lives(s):
		s.lose("the keeper does not know it any more: the state directory, or the keeper's records in it, were removed; what runs in it goes on")
	case r.State == Ready && held == nil:
		slog.Info("a pod's namespaces are gone, it is stopped", "pod", r.name(), "rebooted", r.BootID != p.bootID)
		p.complain("stop "+r.name(), p.stopSandbox(ctx, s))
	case r.State == NotReady && r.Gone == "" && held != nil: // its stop was cut off
		p.complain("stop "+r.name(), p.stopSandbox(ctx, s))
	}
}

// load reads all records into the maps.
func (p *Pods) load() *recovery {
	todo := &recovery{}
	for _, id := range namesIn(filepath.Join(p.Root, "pods"), filepath.Join(p.State, "pods")) {
		r := &SandboxRecord{}
		_, err := readRecord(p.paths.podRecord(id), p.paths.podCopy(id), sandboxFormat, r)
		if errors.Is(err, fault.NotFound) {
			// The record goes first when a pod is removed, and comes first when it is made: this is the rest of one.
			todo.pods = append(todo.pods, id)
		}
		if err != nil {
			continue
		}
		s := &Sandbox{paths: p.paths, view: &p.view, containers: make(map[string]*Container)}
		s.namespaces.Store(new(map[string]string))
		s.rec.Store(r)
		p.add(s)
		p.labels.keep(r.ID, r.Labels)
		p.loadContainers(s, todo)
	}
	return todo
}

func (p *Pods) loadContainers(s *Sandbox, todo *recovery) {
	pod := s.Record().ID
	for _, id := range namesIn(filepath.Join(p.paths.podDir(pod), "containers"), filepath.Join(p.paths.podState(pod), "containers")) {
		r := &ContainerRecord{}
		_, err := readRecord(p.paths.containerRecord(pod, id), p.paths.containerCopy(pod, id), containerFormat, r)
		switch {
		case errors.Is(err, fault.NotFound):
			todo.rests = append(todo.rests, p.recordOf(pod, id))
			continue
		case err == nil && r.State == Creating:
			todo.rests = append(todo.rests, r)
			continue
		case err != nil:
			continue
		}
		c := newContainer(p.paths, s, r)
		s.noteCgroup(r)
		c.release = p.Layers.Hold(r.Layers)
		if r.Salvaged {
			c.release = p.Layers.Hold(p.Layers.All())
		}
		p.labels.keep(r.ID, r.Labels)
		s.containers[r.ID] = c
		p.addContainer(c)
	}
}

// removeRests removes what is left of containers that were being made or removed.
func (p *Pods) removeRests(ctx context.Context, todo *recovery, held *holdings) {
	for _, r := range todo.rests {
		if r.State == Creating || held.containers[r.ID] == nil {
			p.complain("remove the rest of a container", p.removeRest(ctx, r))
		}
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
