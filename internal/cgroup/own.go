package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The cgroups of Kuri's own processes, which the OCI runtime does not manage.

// MakeEverywhere creates the cgroup name below the root of each hierarchy, unless it exists, and
// returns the directories.
func MakeEverywhere(name string) ([]string, error) {
	hierarchies, err := mounted()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hierarchies {
		dir := filepath.Join(h.path, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if h.cpuset {
			if err := copyCpuset(h.path, dir); err != nil {
				return nil, err
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// ProcsEverywhere returns the processes in the cgroups dirs below the root of each hierarchy, but
// not those in cgroups below them. It skips unreadable files and duplicates.
func ProcsEverywhere(dirs ...string) (pids []int) {
	hierarchies, err := mounted()
	if err != nil {
		return nil
	}
	for _, h := range hierarchies {
		for _, dir := range dirs {
			body, err := os.ReadFile(filepath.Join(h.path, dir, "cgroup.procs"))
			if err != nil {
				continue
			}
			for field := range strings.FieldsSeq(string(body)) {
				if pid, err := strconv.Atoi(field); err == nil && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// hierarchy is a mounted hierarchy.
type hierarchy struct {
	path   string
	cpuset bool // a v1 hierarchy with the cpuset controller, whose new cgroups have no CPUs
}

// mounted returns the mounted hierarchies of v1, v2 or both, without duplicates and those hidden
// under another mount.
func mounted() ([]hierarchy, error) { return mountedIn("/proc/self/mountinfo") }

// mountedIn implements mounted for a file like /proc/self/mountinfo.
func mountedIn(mountinfo string) ([]hierarchy, error) {
	body, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	var mounts []hierarchy
	seen := make(map[string]bool)
	for line := range strings.Lines(string(body)) { // an overlay with many lower layers has a long one
		// 36 35 98:0 /root /mountpoint options optional… - fstype source superoptions, see proc_pid_mountinfo(5)
		left, right, ok := strings.Cut(line, " - ")
		fields, fs := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(fs) < 3 || (fs[0] != "cgroup" && fs[0] != "cgroup2") || fields[3] != "/" ||
			seen[fields[2]] {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fields[4], &st) != nil || fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)) != fields[2] {
			continue // hidden under another mount
		}
		seen[fields[2]] = true
		v1cpuset := fs[0] == "cgroup" && strings.Contains(","+fs[2]+",", ",cpuset,")
		mounts = append(mounts, hierarchy{path: fields[4], cpuset: v1cpuset})
	}
	if len(mounts) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted on this machine")
	}
	return mounts, nil
}

func copyCpuset(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), have, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Join moves a process into the cgroups of another one. It ignores hierarchies that are not at
// their usual mount points.
func Join(pid, other int) error {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", other))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(body)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // ID:controllers:path, see cgroups(7)
		if len(fields) < 3 {
			continue
		}
		root := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(fields[1], "name="))
		if fields[1] == "" && unix.Access("/sys/fs/cgroup/unified", unix.F_OK) == nil {
			root = "/sys/fs/cgroup/unified"
		}
		err := os.WriteFile(filepath.Join(root, fields[2], "cgroup.procs"), []byte(fmt.Sprint(pid)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("move process %d to where process %d is: %w", pid, other, err)
		}
	}
	return nil
}

// Memberships returns the cgroups of a process whose path contains part, as lines of
// /proc/PID/cgroup. It returns only those in hierarchies that every container and every pod's init
// enters. (On v1 they enter one after the other.) It returns none for a process that has ended.
func Memberships(pid int, part string) []string {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil
	}
	lines := strings.Split(string(body), "\n")
	unified := strings.HasPrefix(lines[0], "0::")
	return slices.DeleteFunc(lines, func(line string) bool {
		fields := strings.SplitN(line, ":", 3) // ID:controllers:path, see cgroups(7)
		if len(fields) < 3 || !strings.Contains(fields[2], part) {
			return true
		}
		return !unified && !slices.ContainsFunc([]string{"cpuset", "memory", "cpu", "pids", "freezer"}, func(c string) bool {
			return slices.Contains(strings.Split(fields[1], ","), c)
		})
	})
}

// MountOptions returns the options of the node's cgroup v2 filesystem, not of single mounts. It
// returns none if they cannot be read, or if the node has several hierarchies.
func MountOptions() []string { return mountOptions("/proc/self/mountinfo") }

// mountOptions implements [MountOptions] for a file like /proc/self/mountinfo.
func mountOptions(mountinfo string) (out []string) {
	body, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(body)) {
		mount, super, ok := strings.Cut(line, " - ")
		fields, how := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 5 || fields[4] != "/sys/fs/cgroup" || len(how) < 3 || how[0] != "cgroup2" {
			continue
		}
		out = nil // a later mount hides an earlier one at the same place
		for o := range strings.SplitSeq(how[2], ",") {
			if slices.Contains([]string{"nsdelegate", "favordynmods", "memory_localevents", "memory_recursiveprot",
				"memory_hugetlb_accounting", "pids_localevents"}, o) {
				out = append(out, o)
			}
		}
	}
	return out
}
