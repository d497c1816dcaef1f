package creation

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// Paths caches the mount points of the cgroup v1 hierarchies, because finding them takes more
// than a hundred system calls. The cache is dropped when an entry of /sys/fs/cgroup is added or
// removed, or when something is mounted on an entry on which nothing was. The zero value is ready
// for concurrent use.
type Paths struct {
	mu     sync.Mutex // guards the fields below; held over system calls on cgroupfs and tmpfs
	dir    unix.Stat_t
	points map[string]string // by controller, with the cgroup library's names
	bare   []string          // directories on which nothing is mounted; usually there are none
}

// Of returns the directories of a cgroup by controller, or nil if the cgroup library must find them
// itself, as on v2.
func (p *Paths) Of(config *cgroups.Cgroup) (map[string]string, error) {
	if cgroup.Unified() || config.Systemd || !filepath.IsAbs(config.Path) || config.Name != "" || config.Parent != "" {
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var dir unix.Stat_t
	if err := unix.Stat("/sys/fs/cgroup", &dir); err != nil {
		return nil, nil
	}
	if p.points == nil || dir.Dev != p.dir.Dev || dir.Ino != p.dir.Ino || dir.Mtim != p.dir.Mtim || p.covered() {
		// The paths of the root cgroup are the mount points. Without the devices controller this is
		// an error.
		root, err := manager.New(&cgroups.Cgroup{Path: "/", Resources: &cgroups.Resources{}})
		if err != nil {
			return nil, err
		}
		p.dir, p.points, p.bare = dir, root.GetPaths(), bareDirectories("/sys/fs/cgroup", dir.Dev)
	}
	paths := make(map[string]string, len(p.points))
	for name, point := range p.points {
		paths[name] = filepath.Join(point, config.Path)
	}
	return paths, nil
}

// covered reports whether something was mounted on a directory that was bare.
func (p *Paths) covered() bool {
	return slices.ContainsFunc(p.bare, func(path string) bool {
		var st unix.Stat_t
		return unix.Lstat(path, &st) == nil && st.Dev != p.dir.Dev
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

// Dir is the directory of a cgroup in one v1 hierarchy.
type Dir struct {
	Name string // of the hierarchy's mount point, such as "cpu,cpuacct"
	Path string
}

// Hierarchies returns the directories of the cgroup with these paths by controller, one for each v1
// hierarchy in which it has one of its own.
func Hierarchies(paths map[string]string) (dirs []Dir, err error) {
	hierarchies, err := cgroups.GetCgroupMounts(false)
	if err != nil {
		return nil, fmt.Errorf("list the cgroup hierarchies: %w", err)
	}
	for _, h := range hierarchies {
		for _, controller := range h.Subsystems {
			if path := cmp.Or(paths[controller], paths[cgroups.CgroupNamePrefix+controller]); path != "" {
				dirs = append(dirs, Dir{Name: filepath.Base(h.Mountpoint), Path: path})
				break
			}
		}
	}
	return dirs, nil
}
