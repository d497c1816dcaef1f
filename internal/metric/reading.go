package metric

import (
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network"
)

// Labels are those that every metric has. They are empty where cAdvisor's are: a pod has no container and no image.
type Labels struct {
	Container string // name in the pod
	ID        string // path of the cgroup
	Image     string
	Name      string // id of the container, or of the sandbox
	Namespace string
	Pod       string
}

// LabelKeys are the keys of Labels, in the order of Values.
var labelKeys = []string{"container", "id", "image", "name", "namespace", "pod"}

// Values returns the labels in the order of the keys that descriptors begin with.
func (l Labels) Values() []string {
	return []string{l.Container, l.ID, l.Image, l.Name, l.Namespace, l.Pod}
}

// Reading is what was read of a container or a pod at one moment. What is nil or not OK was not.
type Reading struct {
	Time      time.Time
	Started   time.Time // zero when it is not known
	Cgroup    *cgroup.Detail
	Disk      *Disk
	Processes *Processes
	OpenFiles cgroup.Value // soft limit of the first process
	Links     []network.Counter
	Device    func(major, minor uint32) string // the path of a block device, "" when it is not known
}

// Disk is a container's writable layer, and the filesystem on which it lies.
type Disk struct {
	Device                  string // path of the filesystem's device
	Used                    cgroup.Value
	Limit                   cgroup.Value // bytes: of the layer, or of the filesystem
	InodesTotal, InodesFree cgroup.Value // of the filesystem
}

// Processes is what the processes of a container have open.
type Processes struct{ Count, Files, Sockets uint64 }
