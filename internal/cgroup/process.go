package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Pids returns the processes of the cgroup dir and all cgroups below it, in any hierarchy. A
// removed cgroup has none.
func (h *Hierarchies) Pids(dir string) ([]int, error) {
	var pids []int
	for _, root := range h.layout.mounts() {
		if err := processes(filepath.Join(root, dir), &pids); err != nil {
			return nil, fmt.Errorf("list the processes of cgroup %s: %w", dir, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// processes appends the processes of the cgroup dir, an absolute path, and those below it to pids.
// A removed cgroup has none.
func processes(dir string, pids *[]int) error {
	body, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if Gone(err) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // removed, or threaded: then the parent lists its processes
	}
	if err != nil {
		return err
	}
	for field := range bytes.FieldsSeq(body) {
		pid := 0
		for _, c := range field {
			pid = pid*10 + int(c-'0')
		}
		*pids = append(*pids, pid)
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Nlink <= 2 {
		return nil // it has no children
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !Gone(err) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := processes(filepath.Join(dir, e.Name()), pids); err != nil {
				return err
			}
		}
	}
	return nil
}
