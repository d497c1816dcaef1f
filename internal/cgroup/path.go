package cgroup

import "github.com/kuri-cri/kuri/internal/fault"

// Driver says who makes cgroups.
type Driver string

// The drivers.
const (
	Cgroupfs Driver = "cgroupfs" // Kuri makes the directories itself
	Systemd  Driver = "systemd"  // Kuri asks the unit manager for slices and scopes
)

// Choose returns the driver for the configured name: "systemd", "cgroupfs", or "auto" (or ""), which is systemd when the
// node's unit manager is.
func Choose(configured string, systemd bool) (Driver, error) {
	return "", fault.New(fault.Unimplemented, "cgroup.Choose is being written")
}

// Parent returns the cgroup below which a pod's containers are put, in the driver's syntax (a path, or the name of a
// slice): cgroupParent as the CRI gives it, or one made for the pod alone when that is empty. own tells whether it holds
// this pod only, so that the pod's usage can be read from it.
func (d Driver) Parent(cgroupParent, podID, podUID string) (parent string, own bool, err error) {
	return "", false, fault.New(fault.Unimplemented, "cgroup.Parent is being written")
}

// Path returns the OCI cgroupsPath of the container (or pod's init) id below parent, which [Driver.Parent] returned.
func (d Driver) Path(parent, id string) string { return "" }

// Dir returns the directory, below the root of each hierarchy, of an OCI cgroupsPath or of what [Driver.Parent] returned.
func (d Driver) Dir(path string) (string, error) {
	return "", fault.New(fault.Unimplemented, "cgroup.Dir is being written")
}
