package pod

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
)

// A record is a copy of the kernel's state. A ready pod whose namespaces or cgroup were removed is not ready: the
// kubelet then creates another. The keeper reports the end of a pod's init. Nothing reports the other losses, so they
// are checked on each request for the pod. That takes some microseconds and cannot hang: the files are the kernel's
// own.

// look makes the sandbox notready if part of it is gone.
func (p *Pods) look(s *Sandbox) {
	r := s.Record()
	if r.State != Ready {
		return
	}
	why := missingNetns(r.NetnsPath)
	if why == "" {
		why = p.missingCgroup(s, r, lacksFile)
	}
	if why != "" {
		s.lose(why)
	}
}

// lose makes a ready sandbox notready because part of it is gone. Its processes keep running until it is stopped.
func (s *Sandbox) lose(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Record().State != Ready {
		return // it is being stopped, which explains the loss
	}
	slog.Warn("a pod is no longer ready", "pod", s.Record().name(), "why", why)
	if err := s.becomeLocked(NotReady, func(r *SandboxRecord) { r.Gone = why }); err != nil {
		slog.Error("the loss of a pod could not be recorded", "pod", s.Record().name(), "err", err)
	}
}

// missingNetns returns why no network namespace is pinned at path. It returns "" if one is, or if path is "".
func missingNetns(path string) string {
	if path == "" {
		return ""
	}
	var st unix.Statfs_t
	switch err := unix.Statfs(path, &st); {
	case err == unix.ENOENT:
		return fmt.Sprintf("its network namespace is gone: %s was removed", path)
	case err == nil && st.Type != unix.NSFS_MAGIC:
		return fmt.Sprintf("its network namespace is gone: %s was unmounted", path)
	}
	return ""
}

// missingCgroup returns a reason if the cgroup above the pod's containers was removed. It returns "" if the cgroup
// exists, or never did. lacks reports whether a path does not exist.
func (p *Pods) missingCgroup(s *Sandbox, r *SandboxRecord, lacks func(path string) bool) string {
	roots := r.CgroupRoots
	if len(roots) == 0 && s.hadCgroup.Load() && p.Driver != cgroup.Systemd { // systemd removes empty slices that it created
		roots = p.Cgroups.Main()
	}
	if len(roots) == 0 {
		return ""
	}
	dir, err := p.Driver.Dir(r.CgroupParent)
	if err != nil {
		return ""
	}
	for _, root := range roots {
		if lacks(root + dir) {
			return fmt.Sprintf("its cgroup is gone: %s was removed", filepath.Join(root, dir))
		}
	}
	return ""
}

// noteCgroup notes that the sandbox's cgroup was created, if the container has a cgroup.
func (s *Sandbox) noteCgroup(r *ContainerRecord) {
	if r.StartFailure == "" {
		s.hadCgroup.Store(true)
	}
}

// cgroupRoots returns the hierarchies in which the cgroup above a sandbox's containers exists.
func (p *Pods) cgroupRoots(r *SandboxRecord) []string {
	dir, err := p.Driver.Dir(r.CgroupParent)
	if err != nil {
		return nil
	}
	return p.Cgroups.Roots(dir)
}

// ready returns nil if the sandbox is ready, else an error of kind Precondition with its state and the reason.
func (r *SandboxRecord) ready() error {
	switch {
	case r.State == Ready:
		return nil
	case r.Gone != "":
		return fault.New(fault.Precondition, "%s is %s: %s; stop and remove it, and make another", r.name(), r.State, r.Gone)
	}
	return fault.New(fault.Precondition, "%s is %s, not ready", r.name(), r.State)
}
