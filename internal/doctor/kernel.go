package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/namespace"
)

// strayNetwork finds addresses, links and rules of pods that are gone, and pods that have lost a part
// of their network.
func strayNetwork(s *scene) ([]Finding, error) {
	if s.Network == nil {
		return nil, nil
	}
	strays, err := s.Network.Audit(s.pods.Known, s.pods.Attachments())
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, x := range strays {
		found = append(found, Finding{Subject: x.Kind + " " + x.Subject, Problem: x.Problem,
			Advice: x.Advice, fix: x.Fix})
	}
	return found, nil
}

// strayNetns finds pinned network namespaces of pods that are gone.
func strayNetns(s *scene) ([]Finding, error) {
	pins, err := filepath.Glob(namespace.Pin("*"))
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, path := range pins {
		id := strings.TrimPrefix(path, namespace.Pin(""))
		if !s.unowned(id) {
			continue
		}
		f := Finding{Subject: path, Problem: "it is the network namespace of a pod that is gone"}
		if pids := s.netns[netnsLink(path)]; len(pids) > 0 {
			f.Advice = "end " + describe(pids) + ", which is in it, and ask again"
		} else {
			f.fix = func(context.Context) error { return s.unpinUnused(id, path) }
		}
		found = append(found, f)
	}
	return found, nil
}

func (s *scene) unpinUnused(id, path string) error {
	_, byNetns, _, err := processes(s.State)
	if err != nil {
		return err
	}
	if pids := byNetns[netnsLink(path)]; len(pids) > 0 {
		return fault.New(fault.Precondition, "%s is in it", describe(pids))
	}
	if err := s.stillUnused(id); err != nil {
		return err
	}
	return namespace.Unpin(path)
}

// netnsLink returns the content of /proc/PID/ns/net for processes in the namespace at path, or ""
// if there is no namespace.
func netnsLink(path string) string {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(path, &st) != nil {
		return ""
	}
	return fmt.Sprintf("net:[%d]", st.Ino)
}

// strayMounts finds mounts below Kuri's directories for pods or containers that are gone.
func strayMounts(s *scene) ([]Finding, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	tops := []string{filepath.Join(s.State, "mounts"), filepath.Join(s.State, "pods"), filepath.Join(s.Root, "pods")}
	if s.ContainerRoot != "" {
		tops = append(tops, filepath.Join(s.ContainerRoot, "containers"))
	}
	var found []Finding
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		for _, top := range tops {
			id := idOf(point, top)
			if id == "" || !s.unowned(id) {
				continue
			}
			found = append(found, Finding{
				Subject: point, Problem: "it is mounted on the node for a pod or a container that is gone",
				fix: func(context.Context) error {
					if err := s.stillUnused(id); err != nil {
						return err
					}
					return unix.Unmount(point, unix.UMOUNT_NOFOLLOW) // fails if it is in use
				},
			})
		}
	}
	// Unmount in reverse order.
	for i, j := 0, len(found)-1; i < j; i, j = i+1, j-1 {
		found[i], found[j] = found[j], found[i]
	}
	return found, nil
}

// idOf returns the id of the container or pod to which path, below top, belongs.
func idOf(path, top string) string {
	id, ok := within(path, top)
	if !ok || !isID(id) {
		return ""
	}
	if c, ok := within(path, filepath.Join(top, id, "containers")); ok {
		return c
	}
	return id
}

// unescape decodes a path in mountinfo (proc_pid_mountinfo(5)).
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// strayMountPoints finds mount points of root filesystems and records of the OCI runtime whose
// containers are gone.
func strayMountPoints(s *scene) ([]Finding, error) {
	var found []Finding
	mounts := filepath.Join(s.State, "mounts")
	for _, top := range []string{mounts, filepath.Join(mounts, ".oci")} {
		entries, err := os.ReadDir(top)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			id, dir := e.Name(), filepath.Join(top, e.Name())
			if !s.unowned(id) {
				continue
			}
			f := Finding{Subject: dir, Problem: "it is what is left in the keeper's directory of a container or a " +
				"pod that is gone"}
			if pids := s.runs[id]; len(pids) > 0 {
				f.Advice = "end " + describe(pids) + ", which runs, and ask again"
			} else {
				f.fix = func(context.Context) error { return errors.Join(s.stillUnused(id), removeSmall(dir)) }
			}
			found = append(found, f)
		}
	}
	return found, nil
}

// removeSmall removes a directory of the keeper, which contains only empty directories and the OCI
// runtime's record. It fails if something is mounted below.
func removeSmall(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
			return nil
		}
		return os.Remove(path)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = os.Remove(dirs[i])
	}
	return err
}
