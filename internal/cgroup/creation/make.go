package creation

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// Make creates the directories of a cgroup without processes. On v1 it creates a directory
// with one system call, and copies the cpuset from a parent that has one; the cgroup library first
// checks every directory, and reads the cpusets of all ancestors. In all other cases the library
// creates the rest of the cgroup.
func Make(m cgroups.Manager, r *cgroups.Resources) error {
	if cgroup.Unified() || r.SkipDevices || r.CpuRtRuntime != 0 || r.CpuRtPeriod != 0 || r.CpusetCpus != "" ||
		r.CpusetMems != "" {
		return m.Apply(-1)
	}
	for controller, dir := range m.GetPaths() {
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) { // for example, controllers that share a hierarchy
			err = nil
		}
		if err == nil && controller == "cpuset" {
			err = inheritCpuset(dir)
		}
		if err != nil {
			return m.Apply(-1)
		}
	}
	return nil
}

var errNoCpuset = errors.New("the parent has no cpuset")

// inheritCpuset gives a new cgroup the CPUs and memory nodes of its parent; without them it accepts
// no process. If a parent has both, so have its ancestors.
func inheritCpuset(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := cgroups.ReadFile(filepath.Dir(dir), name)
		if err != nil {
			return err
		}
		if strings.TrimSpace(value) == "" {
			return errNoCpuset
		}
		if err := cgroups.WriteFile(dir, name, value); err != nil {
			return err
		}
	}
	return nil
}
