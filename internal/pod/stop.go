package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/step"
)

// killWait is how long a process may survive SIGKILL before that is an error.
const killWait = 10 * time.Second

// exitLook is how often a kill checks for the exit record: a daemon that is still recovering follows no events.
const exitLook = 50 * time.Millisecond

// Stop kills the containers of a sandbox, releases its network and namespaces, and makes it notready. It succeeds for
// an unknown id and for a stopped sandbox. If a step fails the sandbox is notready all the same, and another call
// continues with the remaining steps.
func (p *Pods) Stop(ctx context.Context, id string) error {
	s, err := p.Sandbox(id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.stopSandbox(ctx, s)
}

func (p *Pods) stopSandbox(ctx context.Context, s *Sandbox) error {
	r := s.Record()
	_, _, err := p.stops.Do(ctx, r.ID, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, p.stop(ctx, s)
	})
	if err != nil {
		return fmt.Errorf("stop %s: %w", r.name(), err)
	}
	return nil
}

func (p *Pods) stop(ctx context.Context, s *Sandbox) error {
	if s.stopped.Load() {
		return nil
	}
	// 1. From here on no container is created in the pod. Creations in flight undo their own work.
	step.Enter(ctx, "creations")
	if err := s.become(NotReady, nil); err != nil {
		slog.Error("the stop of a pod could not be recorded", "pod", s.Record().name(), "err", err)
	}
	s.creates.Wait()
	failpoint.At("stop pod: not ready")

	// 2. No container runs, and the keeper has released all of them.
	step.Enter(ctx, "containers")
	if err := p.endAll(ctx, s); err != nil {
		return err
	}
	failpoint.At("stop pod: containers ended")

	// 3. The network, while the namespace still exists.
	r := s.Record()
	if r.NetnsPath != "" {
		step.Enter(ctx, "network")
		if err := p.Network.Detach(ctx, p.networkPod(r), r.Network); err != nil {
			return fmt.Errorf("detach the network: %w", err)
		}
		failpoint.At("stop pod: network detached")
	}

	// 4. The namespaces.
	step.Enter(ctx, "namespaces")
	if err := p.releaseSandbox(ctx, r.ID); err != nil {
		return fmt.Errorf("release the namespaces: %w", err)
	}
	s.namespaces.Store(new(map[string]string))
	if err := (&namespace.Set{NetnsPath: r.NetnsPath}).Close(); err != nil { // if the keeper did not know the pod
		return fmt.Errorf("release the network namespace: %w", err)
	}
	failpoint.At("stop pod: namespaces released")

	// 5. The cgroup, if Kuri chose it.
	step.Enter(ctx, "cgroup")
	if err := p.removeCgroup(r); err != nil {
		return fmt.Errorf("remove the cgroup: %w", err)
	}
	failpoint.At("stop pod: cgroup removed")
	s.stopped.Store(true)
	return nil
}

// releaseSandbox has the keeper release the namespaces of a pod in which no container is left or being created. The
// keeper refuses while it holds a container. One that is unknown here is left of a creation that failed, and whose undo
// failed as well because no keeper served at that moment: it is deleted.
func (p *Pods) releaseSandbox(ctx context.Context, id string) error {
	err := p.Keeper.RemoveSandbox(ctx, id)
	if !errors.Is(err, fault.Precondition) {
		return err
	}
	held, lerr := p.ask(ctx)
	if lerr != nil {
		return lerr
	}
	for _, c := range held.containers {
		if c.SandboxId != id {
			continue
		}
		slog.Warn("deleting a container without a record", "container", c.Id)
		if err := p.Keeper.Delete(ctx, c.Id); err != nil {
			return err
		}
	}
	return p.Keeper.RemoveSandbox(ctx, id)
}

// endAll kills the running containers and has the keeper delete all containers, so that nothing holds the namespaces.
func (p *Pods) endAll(ctx context.Context, s *Sandbox) error {
	list := s.list()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() {
			if errs[i] = p.kill(ctx, c); errs[i] == nil {
				errs[i] = p.delete(ctx, c)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// delete has the keeper delete an exited container with its cgroup, and ends processes of it that the keeper does not
// know. Calls at the same time share one run.
func (p *Pods) delete(ctx context.Context, c *Container) error {
	r := c.Record()
	_, _, err := p.deletes.Do(ctx, r.ID, func(ctx context.Context) (struct{}, error) {
		if c.deleted.Load() {
			return struct{}{}, nil
		}
		if err := p.Keeper.Delete(ctx, r.ID); err != nil {
			return struct{}{}, err
		}
		if err := p.endProcesses(ctx, r); err != nil {
			return struct{}{}, err
		}
		c.deleted.Store(true)
		return struct{}{}, nil
	})
	return err
}

// StopContainer sends a container its stop signal, waits for grace, and then kills it. It succeeds for an unknown id
// and for a container that does not run. The grace of each call begins with that call, so of two calls the one whose
// grace ends first kills.
func (p *Pods) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := p.Container(id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	r := c.Record()
	if err := p.stopContainer(ctx, c, grace); err != nil {
		return fmt.Errorf("stop %s: %w", r.name(), err)
	}
	return nil
}

func (p *Pods) stopContainer(ctx context.Context, c *Container, grace time.Duration) error {
	r := c.Record()
	if r.State != Running || grace <= 0 {
		step.Enter(ctx, "kill")
		return p.kill(ctx, c)
	}
	step.Enter(ctx, "signal")
	// The keeper does not know the container if it has exited meanwhile.
	if err := p.Keeper.Signal(ctx, r.ID, unix.Signal(r.StopSignal), false); err != nil && !errors.Is(err, fault.NotFound) {
		return fmt.Errorf("send %s: %w", r.StopName, err)
	}
	if c.unheld.Load() {
		if pids := p.processes(r); len(pids) > 0 {
			unix.Kill(pids[0], unix.Signal(r.StopSignal)) // an error means that it has ended meanwhile
		}
	}
	failpoint.At("stop container: signalled")
	// The stop continues if the caller gives up.
	step.Enter(ctx, step.Grace)
	_, _, err := p.graces.Do(ctx, stopping{r.ID, grace}, func(ctx context.Context) (struct{}, error) {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.exited:
			return struct{}{}, nil
		case <-p.closing:
			return struct{}{}, fault.New(fault.Unavailable, "kurid is ending; ask the next one again")
		case <-timer.C:
			step.Enter(ctx, "kill")
			return struct{}{}, p.kill(ctx, c)
		}
	})
	return err
}

// kill kills a container's processes and returns once its exit is recorded.
func (p *Pods) kill(ctx context.Context, c *Container) error {
	r := c.Record()
	if r.State == Exited {
		return nil
	}
	if r.StartFailure != "" {
		c.failStart()
		return nil
	}
	err := p.Keeper.Signal(ctx, r.ID, unix.SIGKILL, true)
	if errors.Is(err, fault.NotFound) && c.unheld.Load() {
		err = p.endProcesses(ctx, r)
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return fmt.Errorf("kill %s: %w", r.name(), err)
	}
	// The exit of a container that ended during its creation was reported before the container was known here.
	if e, err := keeper.ReadExit(p.paths.bundle(r.SandboxID, r.ID)); err == nil {
		p.recordExit(c, e)
	}
	timer, look := time.NewTimer(killWait), time.NewTicker(exitLook)
	defer timer.Stop()
	defer look.Stop()
	for {
		select {
		case <-c.exited:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of %s: %w", r.name(), ctx.Err())
		case <-timer.C:
			pids := append([]int{r.Pid}, p.processes(r)...)
			return fault.New(fault.Unavailable, "%s has not ended %s after SIGKILL: %s", r.name(), killWait, stuck(pids))
		case <-look.C:
			if e, err := keeper.ReadExit(p.paths.bundle(r.SandboxID, r.ID)); err == nil {
				p.recordExit(c, e)
			}
		}
	}
}

// stuck describes the process for which the end of a killed container has to wait. pids are the
// container's processes, the first one first.
func stuck(pids []int) string {
	pid := process.Stuck(pids)
	stat, err := process.ReadStat(pid)
	if err != nil || stat.State == 0 {
		return fmt.Sprintf("its first process %d is gone, others of it may be left", pid)
	}
	return fmt.Sprintf("process %d is in state %c, waiting in %q; a state D ends only when the device or filesystem that it waits for answers",
		pid, stat.State, process.WaitChannel(pid))
}
