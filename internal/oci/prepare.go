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

// prepare validates the configuration, checks that neither the id nor the cgroup is in use, and
// creates the directory of the records, as libcontainer.Create does. It differs in two ways: the
// mount points of the v1 hierarchies are looked up once for all containers, and the freezer state
// is read only if there is a freezer.
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

// hierarchies caches the mount points of the cgroup v1 hierarchies, because finding them takes more
// than a hundred system calls. The cache is dropped when an entry of /sys/fs/cgroup is added or
// removed, or when something is mounted on an entry on which nothing was. The zero value is ready
// for concurrent use.
type hierarchies struct {
	mu     sync.Mutex // guards the fields below; held over system calls on cgroupfs and tmpfs
	dir    unix.Stat_t
	points map[string]string // by controller, with the cgroup library's names
	bare   []string          // directories on which nothing is mounted; usually there are none
}

// paths returns the directories of a cgroup by controller, or nil if the cgroup library must find
// them itself.
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
	if h.points == nil || dir.Dev != h.dir.Dev || dir.Ino != h.dir.Ino || dir.Mtim != h.dir.Mtim || h.covered() {
		// The paths of the root cgroup are the mount points. Without the devices controller this is
		// an error.
		root, err := manager.New(&cgroups.Cgroup{Path: "/", Resources: &cgroups.Resources{}})
		if err != nil {
			return nil, err
		}
		h.dir, h.points, h.bare = dir, root.GetPaths(), bareDirectories("/sys/fs/cgroup", dir.Dev)
	}
	paths := make(map[string]string, len(h.points))
	for name, point := range h.points {
		paths[name] = filepath.Join(point, config.Path)
	}
	return paths, nil
}

// covered reports whether something was mounted on a directory that was bare.
func (h *hierarchies) covered() bool {
	return slices.ContainsFunc(h.bare, func(path string) bool {
		var st unix.Stat_t
		return unix.Lstat(path, &st) == nil && st.Dev != h.dir.Dev
	})
}

// bareDirectories returns the directories in dir that are on its device: nothing is mounted there.
func bareDirectories(dir string, device uint64) (bare []string) {
	entries, _ := os.ReadDir(dir) // after an error there are fewer to watch
	for _, e := range entries {
		var st unix.Stat_t
		path := filepath.Join(dir, e.Name())
		if e.IsDir() && unix.Lstat(path, &st) == nil && st.Dev == device {
			bare = append(bare, path)
		}
	}
	return bare
}

// makeCgroup creates the directories of a cgroup without processes. On v1 it creates a directory
// with one system call, and copies the cpuset from a parent that has one; the cgroup library first
// checks every directory, and reads the cpusets of all ancestors. In all other cases the library
// creates the rest of the cgroup.
func makeCgroup(m cgroups.Manager, r *cgroups.Resources) error {
	if cgroup.Unified() || r.SkipDevices || r.CpuRtRuntime != 0 || r.CpuRtPeriod != 0 || r.CpusetCpus != "" || r.CpusetMems != "" {
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

// limit sets all limits of a new cgroup.
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

// allowDevices writes the device rules of a new v1 cgroup and reports whether it did. It supports
// only the rules of kubelets: a list of allowed devices, and all others denied. It leaves
// everything else to the cgroup library, also a list that does not read back as written. The
// library opens devices.allow again for each of a dozen rules, and reads the list before and after
// them.
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
			return false, nil // for example, the parent denies it: the library returns the reason
		}
	}
	have, err := cgroups.ReadFile(dir, "devices.list")
	if err != nil {
		return false, err
	}
	return slices.Equal(slices.Sorted(strings.Lines(have)), slices.Sorted(strings.Lines(strings.Join(wanted, "\n")+"\n"))), nil
}

// allowList returns the rules for devices.allow, one for each device; false if the rules are not a
// list of allowed devices.
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
