package pod

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/record"
)

// writablePods returns Pods with a container_root and without a keeper.
func writablePods(t *testing.T) *Pods {
	t.Helper()
	p := &Pods{Options: Options{Root: t.TempDir(), State: t.TempDir(), ContainerRoot: t.TempDir()}}
	p.paths = paths{root: p.Root, state: p.State}
	if err := p.prepareWritable(); err != nil {
		t.Fatal(err)
	}
	return p
}

// container creates the directories of a container as Create does, with a file in the writable layer.
func (p *Pods) container(t *testing.T) *ContainerRecord {
	t.Helper()
	r := &ContainerRecord{ID: newID(), SandboxID: newID(), ContainerRoot: p.ContainerRoot, State: Exited,
		Config: message[*runtime.ContainerConfig]{&runtime.ContainerConfig{}}}
	s := &SandboxRecord{ID: r.SandboxID, Config: message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{}}}
	if err := p.writeBundle(s, r, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.paths.upper(r), "file"), []byte("written"), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

// left returns the names below the container_root.
func (p *Pods) left(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.ContainerRoot, "containers"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestTheSweepTakesWhatLostItsContainerAndNothingElse(t *testing.T) {
	p := writablePods(t)
	whole, damaged, lost := p.container(t), p.container(t), p.container(t)
	if err := record.SetAside(p.paths.containerRecord(damaged.SandboxID, damaged.ID)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(p.paths.podDir(lost.SandboxID)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(p.ContainerRoot, "containers")
	half, full, foreign := newID(), newID(), newID() // created and not claimed; not Kuri's; of a daemon with another root
	for _, sub := range []string{half, full + "/upper", foreign + "/upper", "storage", "cache/x"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(t.TempDir(), "pods/a/containers", foreign),
		filepath.Join(dir, foreign, owner)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{whole.ID, damaged.ID, full, foreign, "storage", "cache", "file"}
	slices.Sort(want)
	for range 2 {
		if err := p.sweepWritable(); err != nil {
			t.Fatal(err)
		}
		if got := p.left(t); !slices.Equal(got, want) {
			t.Errorf("left: %v\nwant: %v", got, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(p.paths.upper(whole), "file")); err != nil || string(b) != "written" {
		t.Errorf("%q, %v", b, err)
	}
}

// The record has the path of a writable layer until the layer is gone, even if the configuration changes.
func TestAWritableLayerIsRemovedBeforeItsRecord(t *testing.T) {
	p := writablePods(t)
	root := p.ContainerRoot
	r := p.container(t)
	p.ContainerRoot = "" // as after a restart with the key removed
	if got := p.recordOf(r.SandboxID, r.ID); p.paths.upper(got) != filepath.Join(root, "containers", r.ID, "upper") {
		t.Fatalf("the writable layer is looked for in %s", p.paths.upper(got))
	}

	// If the layer cannot be removed, the record stays.
	link := filepath.Join(root, "containers", r.ID, owner)
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	away := root + "-away"
	if err := os.Rename(root, away); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.removeContainerDirs(r); err == nil {
		t.Error("a layer that cannot be reached counts as removed")
	}
	if _, err := os.Stat(p.paths.containerRecord(r.SandboxID, r.ID)); err != nil {
		t.Errorf("the record went before the layer: %v", err)
	}
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, root); err != nil {
		t.Fatal(err)
	}

	// A removal that was interrupted between the layer and the record is repeated.
	if err := removeWritable(p.paths.writable(r)); err != nil {
		t.Fatal(err)
	}
	if u := measure(p.paths.upper(r)); u.at.IsZero() || u.bytes != 0 {
		t.Errorf("a layer that is gone takes %d bytes", u.bytes)
	}
	for range 2 {
		if err := p.removeContainerDirs(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(p.paths.containerDir(r.SandboxID, r.ID)); !os.IsNotExist(err) {
		t.Errorf("the container's directory is left: %v", err)
	}
	p.ContainerRoot = root
	if left := p.left(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
