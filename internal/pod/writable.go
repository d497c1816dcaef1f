package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/quota"
	"github.com/kuri-cri/kuri/internal/record"
)

// owner is the name of the link from a writable layer below a container_root to the directory of its container's
// record. A layer whose link leads to nothing is an orphan; one without such a link is not this daemon's to remove.
const owner = "owner"

// makeWritable makes the container's writable layer, with its limits. Below a container_root it is claimed before anything is in it.
func (p *Pods) makeWritable(s *SandboxRecord, r *ContainerRecord) error {
	upper, work := p.paths.upper(r), p.paths.work(r)
	if r.ContainerRoot != "" {
		if err := p.claimWritable(r); err != nil {
			return err
		}
	}
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return fmt.Errorf("make the writable layer: %w", err)
		}
	}
	// The writable layer's top is the container's "/": it has the mode that a root directory has.
	if err := errors.Join(os.Chmod(upper, 0o755), giveToRoot(upper, s.config())); err != nil {
		return fmt.Errorf("make the writable layer: %w", err)
	}
	if r.Writable == nil {
		return nil
	}
	_, err := p.projects.Limit(quota.Limits(*r.Writable), upper, work)
	return err
}

// claimWritable makes the directory of a writable layer below a container_root and says in it whose it is.
func (p *Pods) claimWritable(r *ContainerRecord) error {
	dir := p.paths.writable(r)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make the directory of the writable layer: %w", err)
	}
	if err := os.Symlink(p.paths.containerDir(r.SandboxID, r.ID), filepath.Join(dir, owner)); err != nil {
		return fmt.Errorf("note whose the writable layer is: %w", err)
	}
	return nil
}

// removeWritable removes a writable layer that lies below a container_root: the limits before the directory that tells
// whose they are, and the link that tells whose the layer is last.
func removeWritable(dir string) error {
	upper := filepath.Join(dir, "upper")
	if err := quota.Release(upper); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(upper), os.RemoveAll(filepath.Join(dir, "work"))); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// recordOf returns what is recorded of a container, or as much as is known of one whose record is gone or damaged.
func (p *Pods) recordOf(pod, id string) *ContainerRecord {
	r := &ContainerRecord{}
	if err := record.Read(p.paths.containerRecord(pod, id), containerFormat, r); err != nil {
		r = &ContainerRecord{ContainerRoot: p.ContainerRoot}
	}
	r.ID, r.SandboxID = id, pod
	return r
}

// sweepWritable removes the writable layers below the container_root whose containers are gone: what was left when their
// records were lost, or when they lay below a container_root that has been another one for a while.
func (p *Pods) sweepWritable() error {
	if p.ContainerRoot == "" {
		return nil
	}
	dir := filepath.Join(p.ContainerRoot, "containers")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for writable layers: %w", err)
	}
	var errs []error
	for _, e := range entries {
		layer := filepath.Join(dir, e.Name())
		orphan, err := p.isOrphan(layer)
		if err == nil && orphan {
			slog.Info("removing a writable layer without a container", "dir", layer)
			err = removeWritable(layer)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// isOrphan tells whether dir is a writable layer of this daemon's whose container is gone.
func (p *Pods) isOrphan(dir string) (bool, error) {
	container, err := os.Readlink(filepath.Join(dir, owner))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return isUnclaimed(dir)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTDIR):
		return false, nil // neither a layer nor a link
	case err != nil:
		return false, err
	case !strings.HasPrefix(container, filepath.Join(p.Root, "pods")+"/"):
		return false, nil // another daemon's, or of this one with another root
	}
	_, err = os.Lstat(container)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// isUnclaimed tells whether dir, which says of nobody that it is theirs, was made by claimWritable and nothing more.
func isUnclaimed(dir string) (bool, error) {
	if len(filepath.Base(dir)) != len(newID()) {
		return false, nil
	}
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0, err
}

// writableFilesystem returns a directory on the filesystem of a container's writable layer. A kubelet takes the same
// directory as the images' for one filesystem, and another directory for another one.
func (p *Pods) writableFilesystem(containerRoot string) string {
	var images, containers unix.Stat_t
	if containerRoot == "" || unix.Stat(p.Root, &images) == nil && unix.Stat(containerRoot, &containers) == nil && images.Dev == containers.Dev {
		return p.Root
	}
	return containerRoot
}

// prepareWritable makes the directory of the writable layers below the container_root.
func (p *Pods) prepareWritable() error {
	if p.ContainerRoot == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(p.ContainerRoot, "containers"), 0o711); err != nil {
		return fault.As(diskKind(err), fmt.Errorf("make the directory of the writable layers: %w", err))
	}
	return nil
}
