package oci

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
)

// An id or a cgroup in use is refused.
func TestPrepareRefuses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: making a cgroup takes root")
	}
	e := &Embedded{Libcontainer: Libcontainer{root: filepath.Join(t.TempDir(), "runtime")}}
	r := &cgroups.Resources{}
	rootfs := t.TempDir()
	parent := fmt.Sprintf("/kuri-test-%d", os.Getpid())
	config := func(name string) *configs.Config {
		return &configs.Config{Rootfs: rootfs, Cgroups: &cgroups.Cgroup{Path: filepath.Join(parent, name), Resources: r}}
	}
	for _, id := range []string{"", ".", "..", "a/b", "../a"} {
		if _, _, err := e.prepare(id, config("none")); !errors.Is(err, libcontainer.ErrInvalidID) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	if dir, _, err := e.prepare("a", config("none")); err != nil || dir != filepath.Join(e.root, "a") {
		t.Errorf("%s, %v", dir, err)
	}
	if _, _, err := e.prepare("a", config("none")); !errors.Is(err, libcontainer.ErrExist) {
		t.Errorf("an id in use: %v", err)
	}
	m, err := manager.New(config("used").Cgroups)
	if err != nil {
		t.Fatal(err)
	}
	dirs := maps.Clone(m.GetPaths()) // Destroy empties the original
	t.Cleanup(func() {
		m.Destroy()
		for _, dir := range dirs {
			os.Remove(filepath.Dir(dir))
		}
	})
	if err := m.Apply(-1); err != nil {
		t.Skipf("SKIP: no cgroup can be made here: %v", err)
	}
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sleep.Process.Kill(); sleep.Wait() })
	if err := m.AddPid("", sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.prepare("b", config("used")); err == nil {
		t.Error("a cgroup with a process was taken")
	}
	if _, err := os.Stat(filepath.Join(e.root, "b")); err == nil {
		t.Error("the directory of a refused container was made")
	}
}
