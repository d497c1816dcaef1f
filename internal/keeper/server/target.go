package server

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// holdTarget opens the PID namespace of another container of the sandbox, which the spec names by
// the path /proc/PID/ns/pid, and replaces the path by that of the descriptor. It is valid until
// release: the container may exit in the meantime, and its pid may be reused. The error is of kind
// Precondition if no container of the sandbox has that process.
func (s *Server) holdTarget(spec *specs.Spec, box *sandbox) (release func(), err error) {
	for i := range spec.Linux.Namespaces {
		ns := &spec.Linux.Namespaces[i]
		var pid int
		if ns.Type != specs.PIDNamespace {
			continue
		}
		if n, _ := fmt.Sscanf(ns.Path, "/proc/%d/ns/pid", &pid); n != 1 || ns.Path != fmt.Sprintf("/proc/%d/ns/pid", pid) {
			continue // a private one, or the pod's
		}
		target := s.running(box, pid)
		if target == nil {
			return nil, fault.New(fault.Precondition,
				"share a PID namespace: no running container of the pod has the process %d; it has exited meanwhile", pid)
		}
		held, err := os.Open(ns.Path)
		if err == nil && target.pidfd.HasEnded() {
			err = errors.Join(errors.New("it has exited meanwhile"), held.Close())
		}
		if err != nil {
			return nil, fault.New(fault.Precondition, "share the PID namespace of container %s: %w", target.id, err)
		}
		ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), held.Fd())
		return func() { held.Close() }, nil
	}
	return func() {}, nil
}

// running returns the container of the sandbox with that first process, or nil if there is none.
func (s *Server) running(box *sandbox, pid int) *container {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if state := c.currentState(); c.sandboxID == box.id && (state == api.State_CREATED || state == api.State_RUNNING) &&
			c.made.Pid == pid {
			return c
		}
	}
	return nil
}
