package internal_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCgroupVersions keeps the knowledge of what the versions of cgroups do differently in
// internal/cgroup. Files that both versions have, limits by their file names
// (linux.resources.unified) and files of systemd's scopes are no such knowledge.
func TestCgroupVersions(t *testing.T) {
	known := []string{
		"IsCgroup2UnifiedMode", "IsCgroup2HybridMode", "CGROUP2_SUPER_MAGIC", "/sys/fs/cgroup/unified", `"tasks"`,
		"cgroup.procs",
		"freezer.state", "cgroup.freeze", "cgroup.kill", "cgroup.events", "cgroup.controllers", "memory.events",
		"memory.oom_control",
		"memory.limit_in_bytes", "memory.memsw", `"memory.max"`, "cpu.shares", "cpu.cfs_", `"cpu.weight"`, `"cpu.max"`,
		"devices.allow", "devices.deny", "devices.list", `"blkio"`, `"cpuset"`, "GetCgroupMounts", "GetOwnCgroupPath",
	}
	for _, top := range []string{".", "../cmd/kurid", "../cmd/kuri-keeper"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case path == "cgroup":
				return filepath.SkipDir
			case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			number := 0
			for line := range strings.Lines(string(body)) {
				number++
				code, _, _ := strings.Cut(line, " //")
				for _, word := range known {
					if strings.Contains(code, word) && !strings.HasPrefix(strings.TrimSpace(code), "//") {
						t.Errorf("%s:%d knows a version of cgroups by %s: ask internal/cgroup", path, number, word)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
