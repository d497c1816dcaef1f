package metric

import (
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network/link"
)

// Labels are the labels of every metric. They are empty where cAdvisor's are: a pod has no
// container and no image.
type Labels struct {
	Container string // name in the pod
	ID        string // path of the cgroup
	Image     string
	Name      string // id of the container, or of the sandbox
	Namespace string
	Pod       string
}

// labelKeys are the keys of Labels, in the order of Values.
var labelKeys = []string{"container", "id", "image", "name", "namespace", "pod"}

// Values returns the labels in the order of labelKeys.
func (l Labels) Values() []string {
	return []string{l.Container, l.ID, l.Image, l.Name, l.Namespace, l.Pod}
}

// Reading is one reading of a container or a pod. A field that is nil or not OK was not read.
type Reading struct {
	Time      time.Time
	Started   time.Time // zero if unknown
	Cgroup    *cgroup.Detail
	Disk      *Disk
	Processes *Processes
	OpenFiles cgroup.Value // soft limit of the first process
	Links     []link.Counter
	Device    func(major, minor uint32) string // returns the path of a block device, "" if unknown
}

// Disk is a container's writable layer and its filesystem.
type Disk struct {
	Device                  string // path of the filesystem's device
	Used                    cgroup.Value
	Limit                   cgroup.Value // in bytes: of the layer, or of the filesystem
	InodesTotal, InodesFree cgroup.Value // of the filesystem
}

// Processes counts the open files of a container's processes.
type Processes struct{ Count, Files, Sockets uint64 }
