package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// unifiedRoot is where cgroup v2 is mounted when it is alone.
const unifiedRoot = "/sys/fs/cgroup"

// Hierarchies is the set of mounted cgroup hierarchies. It is immutable and safe for concurrent use.
type Hierarchies struct {
	v2    bool
	roots map[string]string // mount points by v1 controller ("name=systemd" too); "" is the unified hierarchy
}

// Open finds the mounted hierarchies.
func Open() (*Hierarchies, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(unifiedRoot, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return &Hierarchies{v2: true, roots: map[string]string{"": unifiedRoot}}, nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	h := &Hierarchies{roots: parseMounts(string(mounts))}
	if len(h.roots) == 0 {
		return nil, fault.New(fault.Precondition, "no cgroup hierarchy is mounted on this node; mount cgroup2 at %s", unifiedRoot)
	}
	return h, nil
}

// parseMounts reads /proc/self/mountinfo: the mount point of each v1 controller, the first where there are several, and
// under "" that of the unified hierarchy.
func parseMounts(mountinfo string) map[string]string {
	roots := make(map[string]string)
	for line := range strings.Lines(mountinfo) {
		// 36 35 98:0 /root /mountpoint options optional… - fstype source superoptions
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		fields, tail := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(tail) < 3 {
			continue
		}
		var controllers []string
		switch tail[0] {
		case "cgroup2":
			controllers = []string{""}
		case "cgroup":
			controllers = strings.Split(tail[2], ",")
		}
		for _, c := range controllers {
			if _, seen := roots[c]; !seen && c != "rw" && c != "ro" {
				roots[c] = fields[4]
			}
		}
	}
	return roots
}

// Unified tells whether cgroup v2 is alone, with all controllers.
func (h *Hierarchies) Unified() bool { return h.v2 }

// Has tells whether containers can be limited by a controller, "memory" or "hugetlb" say.
func (h *Hierarchies) Has(controller string) bool {
	if !h.v2 {
		return h.roots[controller] != ""
	}
	body, err := os.ReadFile(filepath.Join(h.roots[""], "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(body)), controller)
}

// AccountsSwap tells whether the memory controller counts and limits swap.
func (h *Hierarchies) AccountsSwap() bool {
	if !h.v2 {
		_, err := os.Stat(filepath.Join(h.roots["memory"], "memory.memsw.limit_in_bytes"))
		return h.roots["memory"] != "" && err == nil
	}
	// The root cgroup has no such file; any child with the memory controller shows whether the kernel has it. Where there
	// is no such child yet, a kernel with swap is taken to account for it, as it does unless told otherwise at boot.
	if swap, _ := filepath.Glob(filepath.Join(h.roots[""], "*", "memory.swap.max")); len(swap) > 0 {
		return true
	}
	memory, _ := filepath.Glob(filepath.Join(h.roots[""], "*", "memory.current"))
	_, err := os.Stat("/proc/swaps")
	return len(memory) == 0 && err == nil && h.Has("memory")
}

// Main lists the mount points of the hierarchies that limit pods: of v2, or of v1's memory, cpu and pids.
func (h *Hierarchies) Main() []string {
	controllers := []string{"memory", "cpu", "pids"}
	if h.v2 {
		controllers = []string{""}
	}
	var out []string
	for _, c := range controllers {
		if root := h.roots[c]; root != "" && !slices.Contains(out, root) {
			out = append(out, root)
		}
	}
	return out
}

// Roots lists those of Main that have the cgroup dir.
func (h *Hierarchies) Roots(dir string) []string {
	return slices.DeleteFunc(h.Main(), func(root string) bool {
		_, err := os.Stat(filepath.Join(root, dir))
		return err != nil
	})
}

// mounts lists the mount points, each once: controllers can share one.
func (h *Hierarchies) mounts() []string {
	var out []string
	for _, root := range h.roots {
		out = append(out, root)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Remove removes the directory dir, and the empty ones below it, from every hierarchy. What is not there is a success;
// what still holds processes after a quarter of a second is an error of kind Precondition. A slice of systemd is stopped
// first, so that its unit goes too.
func (h *Hierarchies) Remove(dir string) error {
	if dir == "/" {
		return fault.New(fault.Invalid, "the root cgroup cannot be removed")
	}
	if strings.HasSuffix(dir, ".slice") {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := stopSlice(ctx, filepath.Base(dir)); err != nil {
			return err
		}
	}
	var errs []error
	for _, root := range h.mounts() {
		err := removeTree(filepath.Join(root, dir))
		// A process that has just been killed leaves its cgroup a moment later.
		for wait := 10 * time.Millisecond; errors.Is(err, unix.EBUSY) && wait <= 160*time.Millisecond; wait *= 2 {
			time.Sleep(wait)
			err = removeTree(filepath.Join(root, dir))
		}
		if errors.Is(err, unix.EBUSY) {
			err = fault.New(fault.Precondition, "processes are still in the cgroup: %w", err)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// removeTree removes a cgroup and those below it. Only rmdir does: the files in them go by themselves.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if errors.Is(rerr, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
