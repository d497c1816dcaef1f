package quota

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// What has project quotas is not to be had everywhere; test/e2e makes such a filesystem where the kernel can
// (TestWritableLayerQuota).
func TestAFilesystemWithoutProjects(t *testing.T) {
	if err := Check("/proc"); !errors.Is(err, fault.Unimplemented) {
		t.Errorf("/proc can be limited: %v", err)
	}
	dir := t.TempDir()
	if absent, err := Check(filepath.Join(dir, "absent/below")), Check(dir); (absent == nil) != (err == nil) ||
		errors.Is(absent, os.ErrNotExist) {
		t.Errorf("a directory that is still to be made: %v; its parent: %v", absent, err)
	}
	var p Projects
	if n, err := p.Limit(Limits{Bytes: 1 << 20}, "/proc"); err == nil {
		t.Errorf("/proc is project %d", n)
	}
	if _, limited, err := Used("/proc"); limited || err != nil {
		t.Errorf("/proc is limited: %v, %v", limited, err)
	}
	for _, dir := range []string{"/proc", filepath.Join(t.TempDir(), "absent")} {
		if err := Release(dir); err != nil {
			t.Errorf("release %s: %v", dir, err)
		}
	}
}

// A project that somebody else has given a directory is not ours to touch.
func TestOnlyOurProjectsCount(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for project, want := range map[uint32]bool{1: false, 1048577: false, first: true, first + count - 1: true,
		first + count: false} {
		err := setProject(f, project)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) ||
			errors.Is(err, unix.EPERM) {
			t.Skipf("SKIP: the filesystem of the temporary directory has no projects: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := ours(f); ok != want || got != project {
			t.Errorf("project %d: read as %d, ours: %v", project, got, ok)
		}
	}
}
