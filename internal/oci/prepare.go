package oci

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/configs/validate"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// prepare validates the configuration, checks that neither the id nor the cgroup is in use, and makes the directory of the
// records, as libcontainer.Create does. It differs in two ways: the mount points of the v1 hierarchies are looked up once for
// all containers, and the state of a freezer is read only where there is one.
func (e *Embedded) prepare(id string, config *configs.Config) (dir string, m cgroups.Manager, err error) {
	if id == "." || strings.Contains(id, "/") || !filepath.IsLocal(id) {
		return "", nil, libcontainer.ErrInvalidID
	}
	if err := validate.Validate(config); err != nil {
		return "", nil, err
	}
	paths, err := e.hierarchies.paths(config.Cgroups)
	if err != nil {
		return "", nil, err
	}
	if m, err = manager.NewWithPaths(config.Cgroups, paths); err != nil {
		return "", nil, err
	}
	if err := unused(m); err != nil {
		return "", nil, err
	}
	dir = filepath.Join(e.root, id)
	err = os.Mkdir(dir, 0o711)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(e.root, 0o700); err == nil {
			err = os.Mkdir(dir, 0o711)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		err = libcontainer.ErrExist
	}
	return dir, m, err
}

// unused returns an error if the cgroup has processes or is frozen.
func unused(m cgroups.Manager) error {
	if m.Exists() {
		pids, err := m.GetAllPids()
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("list the processes of the container's cgroup: %w", err)
		}
		if len(pids) > 0 {
			return fmt.Errorf("container's cgroup is not empty: %d processes found", len(pids))
		}
	}
	if freezer := m.Path("freezer"); freezer == "" || !cgroups.PathExists(freezer) {
		return nil
	}
	state, err := m.GetFreezerState()
	if err != nil {
		return fmt.Errorf("read the freezer state of the container's cgroup: %w", err)
	}
	if state == cgroups.Frozen {
		return errors.New("container's cgroup is frozen")
	}
	return nil
}

// hierarchies caches the mount points of the cgroup v1 hierarchies: finding them takes more than a hundred system calls. The
// cache is dropped when an entry of /sys/fs/cgroup comes or goes. The zero value is ready for concurrent use.
type hierarchies struct {
	mu     sync.Mutex // guards the rest; held over system calls on cgroupfs and tmpfs
	dir    unix.Stat_t
	points map[string]string // by the cgroup library's names of controllers
}

// paths returns the directories of a cgroup by controller; nil where the cgroup library has to find them itself.
func (h *hierarchies) paths(config *cgroups.Cgroup) (map[string]string, error) {
	if cgroup.Unified() || config.Systemd || !filepath.IsAbs(config.Path) || config.Name != "" || config.Parent != "" {
		return nil, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var dir unix.Stat_t
	if err := unix.Stat("/sys/fs/cgroup", &dir); err != nil {
		return nil, nil
	}
	if h.points == nil || dir.Dev != h.dir.Dev || dir.Ino != h.dir.Ino || dir.Mtim != h.dir.Mtim {
		// The paths of the root cgroup are the mount points. Without the devices controller this is an error.
		root, err := manager.New(&cgroups.Cgroup{Path: "/", Resources: &cgroups.Resources{}})
		if err != nil {
			return nil, err
		}
		h.dir, h.points = dir, root.GetPaths()
	}
	paths := make(map[string]string, len(h.points))
	for name, point := range h.points {
		paths[name] = filepath.Join(point, config.Path)
	}
	return paths, nil
}

// makeCgroup makes the directories of a cgroup, in which nobody is yet. On v1 a directory is made with one system call, and
// the cpuset is taken from a parent that has one; the cgroup library looks at every directory first, and reads the cpusets of
// all ancestors. Whatever else is needed is done by the library, on top of what is there.
func makeCgroup(m cgroups.Manager, r *cgroups.Resources) error {
	if cgroup.Unified() || r.SkipDevices || r.CpuRtRuntime != 0 || r.CpuRtPeriod != 0 || r.CpusetCpus != "" || r.CpusetMems != "" {
		return m.Apply(-1)
	}
	for controller, dir := range m.GetPaths() {
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) { // as where controllers share a hierarchy
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

// inheritCpuset gives a new cgroup the CPUs and memory nodes of its parent; without them it takes no process. A parent with
// both has ancestors with both.
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

// limit sets all limits of a cgroup that was just made.
func limit(m cgroups.Manager, r *cgroups.Resources) error {
	done, err := allowDevices(m, r)
	if err != nil {
		return err
	}
	if done {
		others := *r
		others.SkipDevices = true
		r = &others
	}
	return m.Set(r)
}

// allowDevices writes the device rules of a new v1 cgroup and reports whether it did. It takes what kubelets ask for: nothing
// is allowed but a list of devices. Everything else is the cgroup library's, and so is a result that is not as expected.
// The library opens devices.allow anew for each of a dozen rules, and reads the list before and after them.
func allowDevices(m cgroups.Manager, r *cgroups.Resources) (bool, error) {
	dir := m.Path("devices")
	if cgroup.Unified() || dir == "" || r.SkipDevices {
		return false, nil
	}
	wanted, ok := allowList(r.Devices)
	if !ok {
		return false, nil
	}
	if err := cgroups.WriteFile(dir, "devices.deny", "a *:* rwm"); err != nil {
		return false, err
	}
	allow, err := cgroups.OpenFile(dir, "devices.allow", unix.O_WRONLY)
	if err != nil {
		return false, err
	}
	defer allow.Close()
	for _, rule := range wanted {
		if _, err := allow.WriteString(rule); err != nil {
			return false, nil // as where the parent does not allow it: the library says why
		}
	}
	have, err := cgroups.ReadFile(dir, "devices.list")
	if err != nil {
		return false, err
	}
	return slices.Equal(slices.Sorted(strings.Lines(have)), slices.Sorted(strings.Lines(strings.Join(wanted, "\n")+"\n"))), nil
}

// allowList returns the rules for devices.allow, one for each device; false if the rules are not a list of what is allowed.
func allowList(rules []*devices.Rule) (list []string, ok bool) {
	if len(rules) < 2 || rules[0].Allow || rules[0].Type != devices.WildcardDevice || rules[0].Major != devices.Wildcard || rules[0].Minor != devices.Wildcard {
		return nil, false
	}
	merged := make(map[devices.Rule]devices.Permissions)
	for _, r := range rules[1:] {
		if !r.Allow || r.Type != devices.CharDevice && r.Type != devices.BlockDevice || r.Permissions.IsEmpty() || !r.Permissions.IsValid() {
			return nil, false
		}
		key := devices.Rule{Type: r.Type, Major: r.Major, Minor: r.Minor}
		merged[key] = merged[key].Union(r.Permissions)
	}
	all := make([]devices.Rule, 0, len(merged))
	for r, permissions := range merged {
		r.Permissions = permissions
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b devices.Rule) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
	})
	for _, r := range all {
		list = append(list, r.CgroupString())
	}
	return list, true
}
