package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	goruntime "runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// settlers is how many pods are settled at once: one whose CNI plugin hangs must not keep the others.
const settlers = 8

// recovery is what a start has still to do when the keeper can be asked.
type recovery struct {
	rests  []*ContainerRecord // of containers that were being made or removed when the last daemon ended, or whose record is lost
	pods   []string           // likewise, of pods
	exited []string           // containers that the keeper holds still
}

// recover brings the records in line with what the keeper holds. It returns the number of the newest event that it has seen,
// and what is left to do then, which may take long and need not be waited for: what is told of pods and containers is right
// already. What goes wrong with one pod costs that pod alone; an error means that the keeper cannot be asked.
func (p *Pods) recover(ctx context.Context, todo *recovery) (seen uint64, settle func(context.Context), err error) {
	// 1. What the keeper holds, with the number of an event that is not newer.
	held, err := p.ask(ctx)
	if err != nil {
		return 0, nil, err
	}

	// 2. What the keeper holds without a record that can be read goes on running.
	p.salvage(held, todo)

	// 3. Each pod and container as it is now. After a reboot that writes every record anew.
	var each errgroup.Group
	each.SetLimit(2 * goruntime.GOMAXPROCS(0))
	for _, s := range p.allSandboxes() {
		each.Go(func() error {
			box := held.sandboxes[s.Record().ID]
			p.adopt(s, box)
			for _, c := range s.list() {
				p.reconcile(c, held.containers[c.Record().ID])
				p.resumeUpdate(ctx, c)
			}
			if p.unsettled(s, box) {
				s.settling.Store(&settling{make(chan struct{}), true})
			}
			return nil
		})
	}
	each.Wait()

	// 4. In a pod with the rest of a container none is made until that is gone.
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, r := range todo.rests {
		if s := p.sandboxes[r.SandboxID]; s != nil {
			s.settling.CompareAndSwap(nil, &settling{make(chan struct{}), false})
		}
	}
	return held.seen, func(ctx context.Context) { p.settleAll(ctx, todo, held) }, nil
}

// settling is a sandbox of which an earlier daemon has left something that is not in order yet.
type settling struct {
	done chan struct{}
	stop bool // the sandbox cannot stay as it is, either
}

// settleAll takes back what was half-made when the last daemon ended, and gives back what pods have that are gone.
func (p *Pods) settleAll(ctx context.Context, todo *recovery, held *holdings) {
	if ctx.Err() != nil {
		return // the daemon ends already
	}
	// 1. What was being made or removed. What the keeper holds was not, unless its record says so.
	for _, id := range todo.pods {
		if held.sandboxes[id] == nil {
			p.complain("remove the rest of a pod", p.removeDirs(id))
		}
	}
	for _, id := range todo.exited {
		p.complain("delete an exited container without a record", p.Keeper.Delete(ctx, id))
	}
	p.removeRests(ctx, todo, held)

	// 2. Writable layers whose containers are gone.
	p.complain("remove writable layers without a container", p.sweepWritable())

	// 3. Pods that nobody can run in any more.
	var all errgroup.Group
	all.SetLimit(settlers)
	for _, s := range p.allSandboxes() { // settling may remove one
		left := s.settling.Load()
		if left == nil {
			continue
		}
		all.Go(func() error {
			defer close(left.done)
			if left.stop && ctx.Err() == nil {
				p.settle(ctx, s, held.sandboxes[s.Record().ID])
			}
			return nil
		})
	}
	all.Wait()
}

// inOrder reports whether nothing is left of an earlier daemon's work on the sandbox.
func (s *Sandbox) inOrder() bool {
	left := s.settling.Load()
	if left == nil {
		return true
	}
	select {
	case <-left.done:
		return true
	default:
		return false
	}
}

// settled returns when the sandbox is in order.
func (s *Sandbox) settled(ctx context.Context) error {
	if s.inOrder() {
		return nil
	}
	select {
	case <-s.settling.Load().done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until what an earlier kurid has left of %s is in order: %w", s.Record().name(), ctx.Err())
	}
}

// settledAs returns when all sandboxes of that identity, in any attempt, are in order.
func (p *Pods) settledAs(ctx context.Context, id identity) error {
	for _, s := range p.allSandboxes() {
		if s.inOrder() {
			continue
		}
		other := identityOf(s.Record().config().GetMetadata())
		if other.attempt = id.attempt; other != id {
			continue
		}
		if err := s.settled(ctx); err != nil {
			return err
		}
	}
	return nil
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
func (p *Pods) salvage(held *holdings, todo *recovery) {
	for id, box := range held.sandboxes {
		if _, err := p.Sandbox(id); err != nil {
			// Its containers' own records may be whole.
			p.addContainers(p.salvageSandbox(box), p.readContainers(id), todo)
		}
	}
	for id, c := range held.containers {
		_, err := p.Container(id)
		switch {
		case err == nil || todo.creating(id): // the latter is taken back
		case c.State == api.State_EXITED:
			todo.exited = append(todo.exited, id)
		default:
			p.salvageContainer(c)
		}
	}
}

// creating reports whether a container was being made.
func (t *recovery) creating(id string) bool {
	return slices.ContainsFunc(t.rests, func(r *ContainerRecord) bool { return r.ID == id && r.State == Creating })
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

// unsettled reports whether a sandbox cannot stay as it is: one that was being made or stopped when the last daemon ended, and
// one whose namespaces are gone, after a reboot, which is not ready from now on.
func (p *Pods) unsettled(s *Sandbox, held *api.Sandbox) bool {
	r := s.Record()
	switch {
	case r.State == Creating:
		return true
	case r.State == Ready && held == nil && p.lives(s): // and is left to whoever stops it
		s.lose("the keeper does not know it any more: the state directory, or the keeper's records in it, were removed; what runs in it goes on")
		return false
	case r.State == Ready && held == nil:
		why := "the keeper that held its namespaces has ended"
		if r.BootID != p.bootID {
			why = "the node was started anew"
		}
		s.lose(why)
		return true
	}
	return r.State == NotReady && r.Gone == "" && held != nil // its stop was cut off
}

// settle makes a sandbox what it can still be: one that was being made is taken back whole; another is stopped, so that its
// addresses come back and the kubelet makes another.
func (p *Pods) settle(ctx context.Context, s *Sandbox, held *api.Sandbox) {
	r := s.Record()
	if r.State == Creating {
		slog.Info("taking back a pod that was being made when kurid ended", "pod", r.name())
		p.complain("take back "+r.name(), p.Remove(ctx, r.ID))
		return
	}
	if held == nil {
		slog.Info("a pod's namespaces are gone, it is stopped", "pod", r.name(), "rebooted", r.BootID != p.bootID)
	}
	p.complain("stop "+r.name(), p.stopSandbox(ctx, s))
}

// removeRests removes what is left of containers that were being made or removed.
func (p *Pods) removeRests(ctx context.Context, todo *recovery, held *holdings) {
	for _, r := range todo.rests {
		if r.State == Creating || held.containers[r.ID] == nil {
			err := p.removeRest(ctx, r)
			p.complain("remove the rest of a container", err)
			if err == nil { // it is not to be taken for one whose record is lost
				delete(held.containers, r.ID)
			}
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
