package spec

import (
	"os"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node describes the kernel of this machine and our privileges on it. Package node reads it once at
// start.
type Node struct {
	Hostname       string
	Capabilities   []string // our bounding set, "CAP_CHOWN" …, in the kernel's order; the maximum for containers
	MinOOMScoreAdj int      // the lowest oom_score_adj we may set; -1000 with CAP_SYS_RESOURCE
	CgroupV2       bool     // only the unified hierarchy; false on v1 and the hybrid layout
	CgroupOptions  []string // mount options of the node's cgroup v2, which any mount in its cgroup namespace changes
	Swap           bool     // the memory controller accounts for swap
	CPUQuota       bool     // the cpu controller has CFS bandwidth control
	HugepageSizes  []string // page sizes of the hugetlb controller, "2MB", "1GB"; empty without it
	Seccomp        bool     // the kernel has seccomp filters
	AppArmor       bool     // AppArmor is enabled
	SELinux        bool     // SELinux is enabled
	Ulimits        Ulimits  // of kurid itself: the default for containers
	MountSetattr   bool     // the kernel has mount_setattr(2), for recursive read-only mounts
	Systemd        bool     // the unit manager of the node is systemd
	// NoUserNamespaces is the reason why pods cannot have user namespaces; "" if they can. The
	// keeper determines it.
	NoUserNamespaces string
	KernelVersion    string // like uname -r
	// BlockIO holds the block I/O classes by name. RDT lists the names of the RDT classes, nil
	// without resctrl. RDT classes come and go, so they are read when a container requests one.
	BlockIO map[string]*specs.LinuxBlockIO
	RDT     []string
}

// Input holds everything that a container's spec depends on. The messages must not be modified.
type Input struct {
	Pod       *runtime.PodSandboxConfig
	Container *runtime.ContainerConfig
	Image     imagespec.ImageConfig
	ImageName string // for the annotations: the reference given by the user, or the image id
	Node      Node

	PodID       string
	ContainerID string
	Rootfs      string // absolute path where the keeper mounts the container's root
	CgroupsPath string // OCI syntax, see cgroup.Path

	// Namespaces maps the OCI type of each namespace of the pod ("network", "ipc", "uts", "pid",
	// "user") to its path. The pod does not share types that are missing.
	Namespaces map[string]string
	TargetPID  int32 // with pid mode TARGET: the first process of the target container; else 0

	Shm        string // the pod's /dev/shm, bind-mounted; "" gives the container its own tmpfs
	ResolvConf string // host paths of the files bind-mounted over /etc/resolv.conf, /etc/hosts and /etc/hostname;
	Hosts      string // "" keeps the image's file
	Hostname   string

	// Volumes are the directories of the image's VOLUMEs, absolute and free of symbolic links. They
	// exist before the container's mounts are made.
	Volumes []string

	User    ResolvedUser
	Mounts  []ResolvedMount  // one for each of Container.Mounts, in the same order
	Devices []ResolvedDevice // those of Container.Devices; if privileged, the node's as well

	Labels Labels // on a node with SELinux

	LocalhostSeccomp []byte // contents of the profile that [SeccompFile] names

	Ulimits Ulimits // defaults of the configuration for all processes in containers
	// maximum number of processes and threads in the container; 0: unlimited (the CRI has no field
	// for it)
	PidsLimit int64
}

// ResolvedUser is the user of a container's first process, as numbers.
type ResolvedUser struct {
	UID            uint32
	GID            uint32
	AdditionalGIDs []uint32 // ascending, without duplicates, including GID
}

// ResolvedMount is the host side of one of Container.Mounts.
type ResolvedMount struct {
	// Source is an absolute path free of symbolic links: on the host, or where the mount's image
	// will be mounted (including the path in the image).
	Source string
}

// ResolvedDevice is a device node to create in the container.
type ResolvedDevice struct {
	Path        string // in the container
	Source      string // on the node, free of symbolic links
	Type        string // "c" or "b"
	Major       int64
	Minor       int64
	FileMode    os.FileMode // permission bits
	UID         uint32
	GID         uint32
	Permissions string // of the device cgroup: a subset of "rwm"
}
