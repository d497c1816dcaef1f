package cgroup

import "github.com/kuri-cri/kuri/internal/fault"

// Hierarchies is the set of mounted cgroup hierarchies. It is immutable and safe for concurrent use.
type Hierarchies struct {
	roots map[string]string // mount points: "" the unified one, else v1 by controller; "name=systemd"
	v2    bool
}

// Open finds the mounted hierarchies.
func Open() (*Hierarchies, error) {
	return nil, fault.New(fault.Unimplemented, "cgroup.Open is being written")
}

// Unified tells whether cgroup v2 is alone, with all controllers.
func (h *Hierarchies) Unified() bool { return h.v2 }

// Join puts the process pid into the directory dir of every hierarchy, and makes it where it is missing.
func (h *Hierarchies) Join(dir string, pid int) error {
	return fault.New(fault.Unimplemented, "cgroup.Join is being written")
}

// Remove removes the directory dir, and the empty ones below it, from every hierarchy. What is not there is a success;
// what still holds processes is an error of kind Precondition.
func (h *Hierarchies) Remove(dir string) error {
	return fault.New(fault.Unimplemented, "cgroup.Remove is being written")
}
