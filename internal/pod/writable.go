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
// record. A layer with a dangling link is an orphan. Without such a link a layer is not this daemon's to remove, unless
// it is empty (isUnclaimed).
const owner = "owner"

// makeWritable creates the container's writable layer with its limits. Below a container_root the layer is claimed
// before anything else is created in it.
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
	// The top of the writable layer is the container's "/", so it has the mode of a root directory.
	if err := errors.Join(os.Chmod(upper, 0o755), giveToRoot(upper, s.config())); err != nil {
		return fmt.Errorf("make the writable layer: %w", err)
	}
	if r.Writable == nil {
		return nil
	}
	_, err := p.projects.Limit(quota.Limits(*r.Writable), upper, work)
	return err
}

// claimWritable creates the directory of a writable layer below a container_root, with its owner link.
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

// removeWritable removes a writable layer below a container_root. It releases the limits before it removes the
// directory that identifies them, and removes the owner link last.
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

// recordOf returns the record of a container. If that is gone or damaged, it returns as much of it as is known.
func (p *Pods) recordOf(pod, id string) *ContainerRecord {
	r := &ContainerRecord{}
	if err := record.Read(p.paths.containerRecord(pod, id), containerFormat, r); err != nil {
		r = &ContainerRecord{ContainerRoot: p.ContainerRoot}
	}
	r.ID, r.SandboxID = id, pod
	return r
}

// sweepWritable removes the writable layers below the container_root whose containers are gone. Such layers are left if
// records are lost, also those lost while another container_root was configured.
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

// isOrphan reports whether dir is a writable layer of this daemon whose container is gone.
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
		return false, nil // of another daemon, or of this one with another root
	}
	_, err = os.Lstat(container)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// isUnclaimed reports whether dir, which has no owner link, was created by an interrupted claimWritable.
func isUnclaimed(dir string) (bool, error) {
	if len(filepath.Base(dir)) != len(newID()) {
		return false, nil
	}
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0, err
}

// writableFilesystem returns a directory on the filesystem of a container's writable layer. A kubelet compares it with
// the directory of the images: the same directory means one filesystem, another directory another filesystem.
func (p *Pods) writableFilesystem(containerRoot string) string {
	var images, containers unix.Stat_t
	if containerRoot == "" || unix.Stat(p.Root, &images) == nil && unix.Stat(containerRoot, &containers) == nil && images.Dev == containers.Dev {
		return p.Root
	}
	return containerRoot
}

// prepareWritable creates the directory of the writable layers below the container_root.
func (p *Pods) prepareWritable() error {
	if p.ContainerRoot == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(p.ContainerRoot, "containers"), 0o711); err != nil {
		return fault.As(diskKind(err), fmt.Errorf("make the directory of the writable layers: %w", err))
	}
	return nil
}
