package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/quota"
	"github.com/kuri-cri/kuri/internal/step"
)

// Remove stops a sandbox if need be and removes its containers and all that belongs to it. An unknown id is a success.
func (p *Pods) Remove(ctx context.Context, id string) error {
	s, err := p.Sandbox(id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	r := s.Record()
	_, _, err = p.removes.Do(ctx, r.ID, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, p.remove(ctx, s)
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", r.name(), err)
	}
	return nil
}

func (p *Pods) remove(ctx context.Context, s *Sandbox) error {
	if err := p.stopSandbox(ctx, s); err != nil {
		return err
	}
	failpoint.At("remove pod: stopped")
	for _, c := range s.list() {
		if err := p.removeContainer(ctx, c); err != nil {
			return err
		}
	}
	failpoint.At("remove pod: containers removed")
	step.Enter(ctx, "directories")
	if err := p.removeSandbox(s.Record()); err != nil {
		return err
	}
	failpoint.At("remove pod: directories removed")
	p.forget(s)
	return nil
}

// removeSandbox takes away what is on disk of a pod, and gives its labels back.
func (p *Pods) removeSandbox(r *SandboxRecord) error {
	if err := p.removeDirs(r.ID); err != nil {
		return err
	}
	p.labels.release(r.ID)
	return nil
}

// removeDirs takes away a pod's directories, the record first: what is left without a record is rubbish to the next
// start.
func (p *Pods) removeDirs(pod string) error {
	if err := removeFile(p.paths.podCopy(pod)); err != nil {
		return err
	}
	if err := removeFile(p.paths.podRecord(pod)); err != nil {
		return err
	}
	failpoint.At("remove pod: record removed")
	// Containers are removed before their pod; what is left of one that was being made, or removed, may hold a quota, or
	// have a writable layer elsewhere.
	entries, err := os.ReadDir(filepath.Join(p.paths.podDir(pod), "containers"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := p.removeContainerDirs(p.recordOf(pod, e.Name())); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(p.paths.podState(pod)), os.RemoveAll(p.paths.podDir(pod)))
}

// removeFile removes a file; none is no error.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveContainer kills a container if it runs, and removes all that belongs to it but its log, which is the caller's.
// An unknown id is a success.
func (p *Pods) RemoveContainer(ctx context.Context, id string) error {
	c, err := p.Container(id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.removeContainer(ctx, c)
}

func (p *Pods) removeContainer(ctx context.Context, c *Container) error {
	r := c.Record()
	_, _, err := p.removes.Do(ctx, r.ID, func(ctx context.Context) (struct{}, error) {
		// 1. Nothing of it runs.
		step.Enter(ctx, "kill")
		if err := p.kill(ctx, c); err != nil {
			return struct{}{}, err
		}
		failpoint.At("remove container: ended")
		// 2. The keeper forgets it, and with it its cgroup goes.
		step.Enter(ctx, "delete")
		if err := p.Keeper.Delete(ctx, r.ID); err != nil {
			return struct{}{}, err
		}
		if err := p.endProcesses(ctx, r); err != nil {
			return struct{}{}, err
		}
		failpoint.At("remove container: deleted")
		// 3. Its directories and its record.
		step.Enter(ctx, "directories")
		if err := p.removeContainerDirs(r); err != nil {
			return struct{}{}, err
		}
		failpoint.At("remove container: directories removed")
		// 4. Its layers, its labels, and its name.
		c.release()
		p.labels.release(r.ID)
		p.forgetContainer(c)
		return struct{}{}, nil
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", r.name(), err)
	}
	return nil
}

// removeContainerDirs takes away a container's directories. A writable layer that lies elsewhere goes before the record
// that tells where; the rest goes after it, as rubbish to the next start.
func (p *Pods) removeContainerDirs(r *ContainerRecord) error {
	if r.ContainerRoot != "" {
		if err := removeWritable(p.paths.writable(r)); err != nil {
			return fmt.Errorf("remove the writable layer: %w", err)
		}
	}
	for _, path := range []string{p.paths.containerCopy(r.SandboxID, r.ID), p.paths.containerRecord(r.SandboxID, r.ID)} {
		if err := removeFile(path); err != nil {
			return err
		}
	}
	failpoint.At("remove container: record removed")
	// The limits go before the directory that tells whose they are.
	dir := p.paths.containerDir(r.SandboxID, r.ID)
	if err := quota.Release(filepath.Join(dir, "upper")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(p.paths.bundle(r.SandboxID, r.ID)), os.RemoveAll(dir))
}
