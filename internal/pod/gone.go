package pod

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
)

// A record is a copy of what the kernel has. A ready pod whose namespaces or cgroup somebody has taken away is not ready:
// the kubelet then makes another. The keeper tells the end of a pod's init; the rest tells nobody, and is looked at whenever
// somebody asks for the pod. That takes some microseconds and cannot hang: the files are the kernel's own.

// look makes the sandbox notready if something of it is gone.
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

// lose makes a ready sandbox notready because something of it is gone. What still runs in it goes on until it is stopped.
func (s *Sandbox) lose(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Record().State != Ready {
		return // it is being stopped, and that is why
	}
	slog.Warn("a pod is not ready any more", "pod", s.Record().name(), "why", why)
	if err := s.becomeLocked(NotReady, func(r *SandboxRecord) { r.Gone = why }); err != nil {
		slog.Error("that a pod is not ready any more could not be recorded", "pod", s.Record().name(), "err", err)
	}
}

// missingNetns says that no network namespace is pinned at path, "" when one is or path is "".
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

// missingCgroup says that the cgroup above the pod's containers is not there any more, "" when it is or never was. Lacks
// reports whether a file is not there.
func (p *Pods) missingCgroup(s *Sandbox, r *SandboxRecord, lacks func(path string) bool) string {
	roots := r.CgroupRoots
	if len(roots) == 0 && s.hadCgroup.Load() && p.Driver != cgroup.Systemd { // which removes empty slices that it made itself
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

// noteCgroup notes that the sandbox's cgroup was made, when a container of it was that has one.
func (s *Sandbox) noteCgroup(r *ContainerRecord) {
	if r.StartFailure == "" {
		s.hadCgroup.Store(true)
	}
}

// cgroupRoots lists the hierarchies in which the cgroup above a sandbox's containers is.
func (p *Pods) cgroupRoots(r *SandboxRecord) []string {
	dir, err := p.Driver.Dir(r.CgroupParent)
	if err != nil {
		return nil
	}
	return p.Cgroups.Roots(dir)
}

// ready returns nil for a ready sandbox, for any other an error of kind Precondition that says what it is, and why.
func (r *SandboxRecord) ready() error {
	switch {
	case r.State == Ready:
		return nil
	case r.Gone != "":
		return fault.New(fault.Precondition, "%s is %s: %s; stop and remove it, and make another", r.name(), r.State, r.Gone)
	}
	return fault.New(fault.Precondition, "%s is %s, not ready", r.name(), r.State)
}
