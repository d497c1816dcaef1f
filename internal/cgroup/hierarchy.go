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

// unifiedRoot is the mount point of cgroup v2 on a node without v1.
const unifiedRoot = "/sys/fs/cgroup"

// Hierarchies is the set of mounted cgroup hierarchies. It is immutable and safe for concurrent
// use.
type Hierarchies struct{ layout layout }

// layout abstracts the differences between v1 and v2 in the node's hierarchies. [Open] chooses it
// once.
type layout interface {
	unified() bool
	// main returns the mount points of the hierarchies that limit pods.
	main() []string
	// mounts returns the mount points of all hierarchies without duplicates: controllers can share
	// one.
	mounts() []string
	has(controller string) bool
	accountsSwap() bool
	// paths returns the directories of a cgroup by controller, as OCI runtimes record them.
	paths(dir string) map[string]string
	// read reads the usage of the cgroup dir into r.s, and into r.detail unless that is nil.
	read(r *reader, dir string)
}

// Open finds the mounted hierarchies.
func Open() (*Hierarchies, error) {
	if Unified() {
		return &Hierarchies{layoutV2{unifiedRoot}}, nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	roots := parseMounts(string(mounts))
	if len(roots) == 0 {
		return nil, fault.New(fault.Precondition, "no cgroup hierarchy is mounted on this node; mount cgroup2 at %s",
			unifiedRoot)
	}
	return &Hierarchies{layoutV1{roots}}, nil
}

// Unified reports whether the node has one hierarchy with all controllers. It asks the kernel; see
// also [Hierarchies.Unified].
func Unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(unifiedRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// parseMounts parses /proc/self/mountinfo. It returns the mount point of each v1 controller, the
// first if there are several, and that of the unified hierarchy under "".
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

// Unified reports whether there is one hierarchy with all controllers: cgroup v2 alone.
func (h *Hierarchies) Unified() bool { return h.layout.unified() }

// Has reports whether a controller such as "memory" or "hugetlb" can limit containers.
func (h *Hierarchies) Has(controller string) bool { return h.layout.has(controller) }

// AccountsSwap reports whether the memory controller counts and limits swap.
func (h *Hierarchies) AccountsSwap() bool { return h.layout.accountsSwap() }

// Group returns the cgroup dir, which need not exist.
func (h *Hierarchies) Group(dir string) Group { return Of(h.layout.paths(dir)) }

// Main returns the mount points of the hierarchies that limit pods: the one with all controllers,
// or those of memory, cpu and pids.
func (h *Hierarchies) Main() []string { return h.layout.main() }

// Roots returns those of Main in which the cgroup dir exists.
func (h *Hierarchies) Roots(dir string) []string {
	return slices.DeleteFunc(h.Main(), func(root string) bool {
		_, err := os.Stat(filepath.Join(root, dir))
		return err != nil
	})
}

// Remove removes the directory dir and empty ones below it from every hierarchy. It does nothing if
// they do not exist. The error is of kind Precondition if there are processes after a quarter of a
// second. A systemd slice is stopped first, to remove its unit too.
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
	for _, root := range h.layout.mounts() {
		err := removeTree(filepath.Join(root, dir))
		// A killed process leaves its cgroup a moment later.
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

// removeTree removes a cgroup and those below it. Only rmdir works: the files in them cannot be
// removed.
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
