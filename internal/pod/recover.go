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

// settlers is how many pods are settled at once: a hanging CNI plugin of one must not delay the others.
const settlers = 8

// recovery is the part of a start that needs the keeper.
type recovery struct {
	rests  []*ContainerRecord // of containers whose creation or removal was interrupted, or whose record is lost
	pods   []string           // ids, likewise
	exited []string           // ids of exited containers without a record that the keeper still holds
}

// recover brings the records in line with the keeper's state. It returns the number of the newest event that this
// covers, and settle, the remaining work. settle may take long and need not be waited for: the reported states of pods
// and containers are already right. An error with one pod affects only that pod; the returned error means that the
// keeper does not answer.
func (p *Pods) recover(ctx context.Context, todo *recovery) (seen uint64, settle func(context.Context), err error) {
	// 1. The keeper's pods and containers, and the number of an event that is not newer. List ours
	// first: one that is removed while the keeper answers must not be taken for one without a record.
	known := p.ids()
	held, err := p.ask(ctx)
	if err != nil {
		return 0, nil, err
	}

	// 2. The keeper's pods and containers without a readable record keep running.
	p.salvage(held, todo, known)

	// 3. Each pod and container as it is now. After a reboot this rewrites every record.
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
	_ = each.Wait() // no function returns an error

	// 4. In a pod with the remainder of a container, no container may be created until the remainder is gone.
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, r := range todo.rests {
		if s := p.sandboxes[r.SandboxID]; s != nil {
			s.settling.CompareAndSwap(nil, &settling{make(chan struct{}), false})
		}
	}
	return held.seen, func(ctx context.Context) { p.settleAll(ctx, todo, held) }, nil
}

// settling marks a sandbox in which an earlier daemon has left incomplete work.
type settling struct {
	done chan struct{}
	stop bool // the sandbox itself must be stopped or removed
}

// settleAll undoes work that was incomplete when the last daemon ended, and releases the resources of pods that are
// gone.
func (p *Pods) settleAll(ctx context.Context, todo *recovery, held *holdings) {
	if ctx.Err() != nil {
		return // the daemon is already closing
	}
	// 1. Interrupted creations and removals. A pod or container that the keeper holds is not one, unless its record
	// says so.
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

	// 3. Pods in which nothing can run any more.
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
	_ = all.Wait() // no function returns an error
}

// inOrder reports whether no incomplete work of an earlier daemon is left in the sandbox.
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

// settled waits until the sandbox is in order or ctx ends.
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

// settledAs waits until all sandboxes with that identity, in any attempt, are in order.
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

// holdings are the keeper's sandboxes and containers, by id.
type holdings struct {
	seen       uint64 // number of an event that is not newer than the maps
	sandboxes  map[string]*api.Sandbox
	containers map[string]*api.Container
}

// ask requests the holdings from the keeper.
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

// keeperWait is how long the keeper may take to answer before it counts as hung.
const keeperWait = 10 * time.Second

// salvage takes over the sandboxes and containers that the keeper holds and that have no readable
// record. (A record is written before the request to the keeper and removed after it, so a missing
// record was lost.) After a start beside a hung keeper, clients stop and remove others meanwhile.
// Those are in known, the ids that were in memory before the keeper was asked.
func (p *Pods) salvage(held *holdings, todo *recovery, known map[string]bool) {
	for id, box := range held.sandboxes {
		if !known[id] {
			// The records of its containers may be intact.
			p.addContainers(p.salvageSandbox(box), p.readContainers(id), todo)
		}
	}
	for id, c := range held.containers {
		_, err := p.Container(id)
		switch {
		case known[id] || err == nil || todo.creating(id): // one in creation will be undone
		case c.State == api.State_EXITED:
			todo.exited = append(todo.exited, id)
		default:
			p.salvageContainer(c)
		}
	}
}

// creating reports whether the container was being created.
func (t *recovery) creating(id string) bool {
	return slices.ContainsFunc(t.rests, func(r *ContainerRecord) bool { return r.ID == id && r.State == Creating })
}

// sweep undoes calls to the keeper that a running daemon has given up. It deletes the keeper's sandboxes and containers
// that are unknown here and have neither a record nor a trace of one. (A verb writes its record first and removes it
// last.)
func (p *Pods) sweep(ctx context.Context, held *holdings) {
	for id, c := range held.containers {
		if _, err := p.Container(id); err == nil || recorded(p.paths.containerRecord(c.SandboxId, id), p.paths.containerCopy(c.SandboxId, id)) {
			continue
		}
		slog.Warn("deleting a container without a record", "container", id)
		p.complain("delete a container without a record", p.Keeper.Delete(ctx, id))
	}
	for id := range held.sandboxes {
		if _, err := p.Sandbox(id); err == nil || recorded(p.paths.podRecord(id), p.paths.podCopy(id)) {
			continue
		}
		slog.Warn("removing a pod without a record", "pod", id)
		p.complain("detach the network of a pod without a record", p.Network.Detach(ctx, p.networkPod(unknownSandbox(id)), nil))
		p.complain("release a pod without a record", p.Keeper.RemoveSandbox(ctx, id))
	}
}

// recorded reports whether there is a record at path, a damaged one that was set aside, or a copy.
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

// adopt takes over the namespace paths of a sandbox that the keeper holds, and makes the sandbox notready if part of it
// is gone. It restores the files of a ready sandbox. The sandbox may have been stopped and removed since the keeper
// answered: then adopt changes nothing.
func (p *Pods) adopt(s *Sandbox, held *api.Sandbox) {
	if held == nil {
		return
	}
	s.take(held.Namespaces)
	p.lost(held)
	p.look(s)
	if s.begin() != nil {
		return // it is not ready
	}
	defer s.creates.Done() // a stop waits, so that no file of a removed pod is restored
	r := s.Record()
	p.complain("make the files of "+r.name()+" anew", p.ensureFiles(r))
}

// take replaces the namespace paths of a sandbox that is not being stopped. A stop clears them after it has changed the
// state.
func (s *Sandbox) take(paths map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Record().State != NotReady {
		s.namespaces.Store(&paths)
	}
}

func (p *Pods) complain(what string, err error) {
	if err != nil {
		slog.Error("recovery: something may be left behind", "step", what, "err", err)
	}
}

// unsettled reports whether a sandbox must be stopped or removed. That is so if its creation or stop was interrupted by
// the end of the last daemon. It is also so if its namespaces are gone, after a reboot; unsettled then makes it
// notready.
func (p *Pods) unsettled(s *Sandbox, held *api.Sandbox) bool {
	r := s.Record()
	switch {
	case r.State == Creating:
		return true
	case r.State == Ready && held == nil && p.lives(s): // it is left running until a client stops it
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
	return r.State == NotReady && r.Gone == "" && held != nil // its stop was interrupted
}

// settle removes a sandbox whose creation was interrupted. It stops any other, so that its addresses are released and
// the kubelet creates another.
func (p *Pods) settle(ctx context.Context, s *Sandbox, held *api.Sandbox) {
	r := s.Record()
	if r.State == Creating {
		slog.Info("removing a pod whose creation was interrupted", "pod", r.name())
		p.complain("take back "+r.name(), p.Remove(ctx, r.ID))
		return
	}
	if held == nil {
		slog.Info("stopping a pod whose namespaces are gone", "pod", r.name(), "rebooted", r.BootID != p.bootID)
	}
	p.complain("stop "+r.name(), p.stopSandbox(ctx, s))
}

// removeRests removes the remainders of containers whose creation or removal was interrupted.
func (p *Pods) removeRests(ctx context.Context, todo *recovery, held *holdings) {
	for _, r := range todo.rests {
		if r.State == Creating || held.containers[r.ID] == nil {
			err := p.removeRest(ctx, r)
			p.complain("remove the rest of a container", err)
			if err == nil { // it must not count as a container whose record is lost
				delete(held.containers, r.ID)
			}
		}
	}
}

// removeRest removes the remainder of a container whose creation or removal was interrupted. The keeper may still be
// creating the container and lists it only afterwards; its Delete waits for that.
func (p *Pods) removeRest(ctx context.Context, r *ContainerRecord) error {
	if err := p.Keeper.Delete(ctx, r.ID); err != nil {
		return err
	}
	return p.removeContainerDirs(r)
}
