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

// Remove stops a sandbox if necessary and removes its containers and everything that belongs to it. It succeeds for an
// unknown id.
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

// removeSandbox removes a pod's files and releases its labels.
func (p *Pods) removeSandbox(r *SandboxRecord) error {
	if err := p.removeDirs(r.ID); err != nil {
		return err
	}
	p.labels.release(r.ID)
	return nil
}

// removeDirs removes a pod's directories, the record first: the next start discards directories without a record.
func (p *Pods) removeDirs(pod string) error {
	if err := removeFile(p.paths.podCopy(pod)); err != nil {
		return err
	}
	if err := removeFile(p.paths.podRecord(pod)); err != nil {
		return err
	}
	failpoint.At("remove pod: record removed")
	// Containers are removed before their pod. A container whose creation or removal was interrupted may still hold a
	// quota, or have a writable layer elsewhere.
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

// removeFile removes a file. It succeeds if there is none.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveContainer kills a container if it runs, and removes everything that belongs to it except its log, which belongs
// to the caller. It succeeds for an unknown id.
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
		// 1. Its processes.
		step.Enter(ctx, "kill")
		if err := p.kill(ctx, c); err != nil {
			return struct{}{}, err
		}
		failpoint.At("remove container: ended")
		// 2. The keeper's state of it, and its cgroup.
		step.Enter(ctx, "delete")
		if err := p.delete(ctx, c); err != nil {
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

// removeContainerDirs removes a container's directories. A writable layer elsewhere is removed before the record, which
// says where it is. The rest is removed after the record: the next start discards it.
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
	// Release the limits first: they are identified by the directory.
	dir := p.paths.containerDir(r.SandboxID, r.ID)
	if err := quota.Release(filepath.Join(dir, "upper")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(p.paths.bundle(r.SandboxID, r.ID)), os.RemoveAll(dir))
}
