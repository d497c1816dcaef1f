package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Pids lists the processes that are in the cgroup dir, or in one below it, in any hierarchy. A cgroup that is gone has none.
func (h *Hierarchies) Pids(dir string) ([]int, error) {
	var pids []int
	for _, root := range h.mounts() {
		top := filepath.Join(root, dir)
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil // it is gone, or is going
			}
			if err != nil || !d.IsDir() {
				return err
			}
			body, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) { // a threaded one
				return err
			}
			for _, field := range strings.Fields(string(body)) {
				if pid, err := strconv.Atoi(field); err == nil {
					pids = append(pids, pid)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list the processes of cgroup %s: %w", dir, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Frozen reports whether the cgroup dir, or one above it, is frozen: its processes do not run.
func (h *Hierarchies) Frozen(dir string) bool {
	if h.v2 {
		events, err := os.ReadFile(filepath.Join(h.roots[""], dir, "cgroup.events"))
		return err == nil && strings.Contains(string(events), "frozen 1")
	}
	state, err := os.ReadFile(filepath.Join(h.roots["freezer"], dir, "freezer.state"))
	return err == nil && strings.TrimSpace(string(state)) != "THAWED"
}
