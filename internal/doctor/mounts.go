package doctor

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/pod"
)

// lostMounts finds running containers in which the root filesystem, a volume or the mask of a path was
// unmounted. Only the node's root can do that, unless the container may mount and unmount by itself:
// such a container is left out. So is one in a user namespace, where these mounts are locked. Nothing
// is mounted again: what the container has meanwhile written would be hidden.
func lostMounts(s *scene) ([]Finding, error) {
	var found []Finding
	for _, id := range s.pods.ContainerIDs() {
		r := s.pods.Containers[id]
		if r.State != pod.Running || r.Pid <= 0 || mayMount(r.Pid) {
			continue
		}
		lost := unmounted(r)
		if len(lost) == 0 {
			continue
		}
		found = append(found, Finding{
			Subject: r.Name(),
			Problem: "it runs without a part of what was mounted in it: " + strings.Join(lost, ", "),
			Advice:  fmt.Sprintf("kuri rm -f id:%.13s removes it; a kubelet makes another by itself", id),
		})
	}
	return found, nil
}

// mayMount reports whether processes of a container may mount and unmount, or whether that is
// unknown. pid is its first process.
func mayMount(pid int) bool {
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return true
	}
	in, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil || in != own {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(status), "\nCapBnd:\t")
	caps, err := strconv.ParseUint(strings.TrimSpace(rest[:min(16, len(rest))]), 16, 64)
	return err != nil || caps&(1<<unix.CAP_SYS_ADMIN) != 0
}

// unmounted describes what is not mounted any more in a running container.
func unmounted(r *pod.ContainerRecord) (lost []string) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", r.Pid))
	if err != nil {
		return nil // it has ended
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, unescape(fields[4]))
		}
	}
	if !slices.Contains(points, "/") {
		return []string{"its root filesystem"}
	}
	cfg := r.Config.Message()
	for _, m := range cfg.GetMounts() {
		if at := path.Clean("/" + m.GetContainerPath()); !slices.Contains(points, at) && !mountedAt(r.Pid, at) {
			lost = append(lost, "the volume at "+at)
		}
	}
	for _, masked := range cfg.GetLinux().GetSecurityContext().GetMaskedPaths() {
		at := path.Clean("/" + masked)
		if kernels(at) && fileExists(at) && !slices.Contains(points, at) && !mountedAt(r.Pid, at) {
			lost = append(lost, "the mask of "+at)
		}
	}
	return lost
}

// kernels reports whether a path is in /proc or /sys: it exists in a container if it does here.
func kernels(at string) bool {
	_, proc := within(at, "/proc")
	_, sys := within(at, "/sys")
	return proc || sys
}

// mountedAt reports whether something is mounted in a container at a path that may have symbolic
// links, or whether that is unknown.
func mountedAt(pid int, at string) bool {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, filepath.Clean(at),
		&unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return err != unix.ENOENT
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	return err != nil || st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 ||
		st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
