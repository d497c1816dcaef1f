package spec

import (
	"os"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is what this machine's kernel has and what we may do on it. It is read once at start by package node.
type Node struct {
	Hostname       string
	Capabilities   []string // our bounding set, "CAP_CHOWN" …, in the kernel's order: no container gets more
	MinOOMScoreAdj int      // the lowest oom_score_adj that we may set; -1000 with CAP_SYS_RESOURCE
	CgroupV2       bool     // the unified hierarchy alone; false on v1 and on the hybrid layout
	CgroupOptions  []string // of the node's mount of cgroup v2, those that every mount of it in its cgroup namespace changes
	Swap           bool     // the memory controller accounts for swap
	CPUQuota       bool     // the cpu controller has CFS bandwidth control
	HugepageSizes  []string // page sizes that the hugetlb controller limits, "2MB", "1GB"; empty without the controller
	Seccomp        bool     // the kernel has seccomp filters
	AppArmor       bool     // AppArmor is enabled
	SELinux        bool     // SELinux is enabled
	Ulimits        Ulimits  // of kurid itself: a container has them where nothing else is said
	MountSetattr   bool     // the kernel has mount_setattr(2): mounts can be made read-only with all below them
	Systemd        bool     // the unit manager of the node is systemd
	// NoUserNamespaces is why pods cannot have user namespaces; "" when they can. It is found out by the keeper.
	NoUserNamespaces string
	KernelVersion    string // as uname -r says
	// BlockIO has the block I/O classes by name. RDT are the names of the RDT classes, nil without resctrl; they come and
	// go, so they are read when a container asks for one.
	BlockIO map[string]*specs.LinuxBlockIO
	RDT     []string
}

// Input is all that a container's spec depends on. The messages are read, never changed.
type Input struct {
	Pod       *runtime.PodSandboxConfig
	Container *runtime.ContainerConfig
	Image     imagespec.ImageConfig
	ImageName string // for the annotations: the reference that the user gave, or the image id
	Node      Node

	PodID       string
	ContainerID string
	Rootfs      string // absolute path at which the keeper mounts the container's root
	CgroupsPath string // OCI syntax, see cgroup.Path

	// Namespaces has the pod's namespaces by OCI type ("network", "ipc", "uts", "pid", "user") with the path to join each by. A
	// type that is missing is not shared by the pod.
	Namespaces map[string]string
	TargetPID  int32 // with pid mode TARGET: the first process of the target container; else 0

	Shm        string // the pod's /dev/shm to bind; "" gives the container a tmpfs of its own
	ResolvConf string // host paths of the files to bind over /etc/resolv.conf, /etc/hosts and /etc/hostname;
	Hosts      string // "" leaves the image's own file
	Hostname   string

	// Volumes are the directories of the image's VOLUMEs, absolute and free of links. They are there when the container's
	// mounts are made.
	Volumes []string

	User    ResolvedUser
	Mounts  []ResolvedMount  // one for each of Container.Mounts, in the same order
	Devices []ResolvedDevice // those that Container.Devices names; with privileged, the node's as well

	Labels Labels // of a container on a node with SELinux

	LocalhostSeccomp []byte // content of the profile that [SeccompFile] names

	Ulimits   Ulimits // of every container's processes, by configuration
	PidsLimit int64   // processes and threads in the container at most; 0 for no limit (the CRI has no field for it)
}

// ResolvedUser is a container's first user, as numbers.
type ResolvedUser struct {
	UID            uint32
	GID            uint32
	AdditionalGIDs []uint32 // ascending, each once, with GID among them
}

// ResolvedMount is the host's side of one of Container.Mounts.
type ResolvedMount struct {
	// Source is a path, absolute and free of symbolic links: the host's, or where the image that the mount names will be
	// mounted (with the path in it).
	Source string
}

// ResolvedDevice is a device node to make in the container.
type ResolvedDevice struct {
	Path        string // in the container
	Source      string // on the node, free of symbolic links
	Type        string // "c" or "b"
	Major       int64
	Minor       int64
	FileMode    os.FileMode // permission bits
	UID         uint32
	GID         uint32
	Permissions string // of the device cgroup: of "r", "w", "m"
}
