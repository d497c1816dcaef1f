package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/test/harness"
)

// run runs a command, which must succeed, and returns its output.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return string(out)
}

func exists(path string) func() bool {
	return func() bool {
		_, err := os.Lstat(path)
		return err == nil
	}
}

// pinNetns creates a network namespace and pins it at path.
func pinNetns(t *testing.T, path string) {
	t.Helper()
	harness.Write(t, filepath.Dir(path), filepath.Base(path), "")
	run(t, "unshare", "--net="+path, "true")
}

func unpinNetns(t *testing.T, path string) {
	t.Helper()
	run(t, "umount", "-l", path)
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
}

func mkdirAll(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// makeCgroups creates a cgroup in each hierarchy that limits pods.
func makeCgroups(t *testing.T, name string) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if root != "/sys/fs/cgroup" && exists(root+"/cgroup.procs")() ||
			root == "/sys/fs/cgroup" && exists(root+"/cgroup.controllers")() {
			mkdirAll(t, filepath.Join(root, name))
		}
	}
}

// leave moves a process into the root cgroup of a hierarchy, or into a cgroup below it if the root
// refuses processes.
func leave(t *testing.T, root string, pid int) {
	t.Helper()
	if os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644) == nil {
		return
	}
	other := filepath.Join(root, "elsewhere")
	mkdirAll(t, other)
	harness.Write(t, other, "cgroup.procs", strconv.Itoa(pid))
	t.Cleanup(func() {
		harness.Eventually(t, 10*time.Second, "the other cgroup is empty", func() error { return os.Remove(other) })
	})
}

// cgroupsNamed returns the directories of a cgroup.
func cgroupsNamed(name string) []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + name)
	return append(v1, v2...)
}

// cgroupsOf returns the directories of the cgroups of a process, except the roots.
func cgroupsOf(t *testing.T, pid int) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[2] != "/" {
			dirs = append(dirs, cgroupsNamed(strings.TrimPrefix(f[2], "/"))...)
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}
