package creation

import (
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// LearnNames makes the cgroup library detect, on v1, the file names of block I/O weights in this
// kernel. The library stores them in a variable without a lock at the first container's start,
// while other starts may read it. No weight is set.
func LearnNames() {
	if cgroup.Unified() {
		return
	}
	dir, _ := cgroups.GetOwnCgroupPath("blkio") // without a hierarchy no weight can be set
	none := &cgroups.Resources{SkipDevices: true}
	if m, err := fs.NewManager(&cgroups.Cgroup{Resources: none}, map[string]string{"blkio": dir}); err == nil {
		_ = m.Set(none)
	}
}
