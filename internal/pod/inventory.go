package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/quota"
	"github.com/kuri-cri/kuri/internal/record"
)

// Inventory lists the pods and containers of this node, and the remains of those that are gone. Taking one changes nothing.
type Inventory struct {
	Sandboxes  map[string]*SandboxRecord   // by id
	Containers map[string]*ContainerRecord // by id
	Held       map[string]bool             // ids of the keeper's records
	Rests      []Rest
	Damaged    []Damaged

	known map[string]bool
}

// Rest is a directory of a pod or a container that has no record which can be read.
type Rest struct {
	Dir     string
	ID      string // of the container, or of the pod
	Damaged bool   // it has a record, which was set aside
}

// Damaged is a record that was set aside.
type Damaged struct {
	Path     string
	ID       string
	Replaced bool // a record that can be read is in its place
}

// Known reports whether a pod or a container of that id has a record, be it a damaged one, or is held by the keeper.
func (v *Inventory) Known(id string) bool { return v.known[id] }

// ReadInventory reads the records below root and state. The error says which directory cannot be read: what is in it is not
// known then, and nothing must be taken for unowned.
func ReadInventory(root, state string) (*Inventory, error) {
	v := &Inventory{
		Sandboxes: map[string]*SandboxRecord{}, Containers: map[string]*ContainerRecord{},
		Held: map[string]bool{}, known: map[string]bool{},
	}
	at := paths{root: root, state: state}
	if err := v.readHeld(state); err != nil {
		return nil, err
	}
	pods, err := subdirectories(filepath.Join(root, "pods"), filepath.Join(state, "pods"))
	if err != nil {
		return nil, err
	}
	for _, id := range pods {
		r := &SandboxRecord{}
		if v.read(id, at.podRecord(id), at.podCopy(id), sandboxFormat, r, at.podDir(id), at.podState(id)) {
			v.Sandboxes[id] = r
		}
		containers, err := subdirectories(filepath.Join(at.podDir(id), "containers"), filepath.Join(at.podState(id), "containers"))
		if err != nil {
			return nil, err
		}
		for _, c := range containers {
			r := &ContainerRecord{}
			if v.read(c, at.containerRecord(id, c), at.containerCopy(id, c), containerFormat, r, at.containerDir(id, c), at.bundle(id, c)) {
				v.Containers[c] = r
			}
		}
	}
	return v, nil
}

// readHeld reads which pods and containers the keeper has records of.
func (v *Inventory) readHeld(state string) error {
	for _, kind := range []string{"sandboxes", "containers"} {
		entries, err := os.ReadDir(filepath.Join(state, "keeper", kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read the keeper's records: %w", err)
		}
		for _, e := range entries {
			if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && !strings.HasPrefix(id, ".") {
				v.Held[id], v.known[id] = true, true
			}
		}
	}
	return nil
}

// read reads a record or its copy into r, notes what is set aside, and reports whether there is one that can be read. Dirs
// are remains when there is none.
func (v *Inventory) read(id, path, copyPath string, format int, r any, dirs ...string) bool {
	_, err := os.Lstat(path + ".damaged")
	aside := err == nil
	readable := record.Read(path, format, r) == nil || record.Read(copyPath, format, r) == nil
	if aside {
		v.Damaged = append(v.Damaged, Damaged{path + ".damaged", id, readable})
	}
	if readable || recorded(path, copyPath) {
		v.known[id] = true
	}
	if readable {
		return true
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); err == nil {
			v.Rests = append(v.Rests, Rest{dir, id, recorded(path, copyPath)})
		}
	}
	return false
}

// subdirectories returns the names of the directories in dirs, once each. A directory that is not there has none.
func subdirectories(dirs ...string) ([]string, error) {
	var names []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read records: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Inventory is ReadInventory with what this daemon has in memory, which counts where the two differ.
func (p *Pods) Inventory() (*Inventory, error) {
	if err := p.compared(); err != nil {
		return nil, err
	}
	v, err := ReadInventory(p.Root, p.State)
	if err != nil {
		return nil, err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	// A record without a pod in memory is one that is being made, or that is being removed.
	for id, s := range p.sandboxes {
		v.Sandboxes[id], v.known[id] = s.Record(), true
	}
	for id, c := range p.containers {
		v.Containers[id], v.known[id] = c.Record(), true
	}
	v.Rests = slices.DeleteFunc(v.Rests, func(r Rest) bool {
		return p.sandboxes[r.ID] != nil || p.containers[r.ID] != nil
	})
	return v, nil
}

// HeldAlone lists what the keeper holds and no record tells of.
func (v *Inventory) HeldAlone() []string {
	var ids []string
	for id := range v.Held {
		if v.Sandboxes[id] == nil && v.Containers[id] == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// SandboxIDs and ContainerIDs are in order, so that two looks say the same.
func (v *Inventory) SandboxIDs() []string { return slices.Sorted(maps.Keys(v.Sandboxes)) }

// ContainerIDs returns the ids of the containers, sorted.
func (v *Inventory) ContainerIDs() []string { return slices.Sorted(maps.Keys(v.Containers)) }

// Name is how messages call the sandbox.
func (r *SandboxRecord) Name() string { return r.name() }

// UID is the pod's uid, as the API server, or kuri run, gave it.
func (r *SandboxRecord) UID() string { return r.config().GetMetadata().GetUid() }

// Name is how messages call the container.
func (r *ContainerRecord) Name() string { return r.name() }

// Missing says what of a ready pod the kernel has no more, "" when all is there.
func (r *SandboxRecord) Missing(driver cgroup.Driver, groups *cgroup.Hierarchies) string {
	switch {
	case r.Gone != "" && r.State == NotReady:
		return r.Gone
	case r.State != Ready:
		return ""
	}
	if why := missingNetns(r.NetnsPath); why != "" {
		return why
	}
	look := &Pods{Options: Options{Driver: driver, Cgroups: groups}}
	return look.missingCgroup(&Sandbox{}, r, lacksFile)
}

// OfThisBoot reports whether the pod was made since the machine was started.
func (r *SandboxRecord) OfThisBoot() bool {
	boot, err := process.BootID()
	return err == nil && r.BootID == boot
}

// RemoveRest removes the directory of a pod or a container that is gone, and the limits of the writable layers in it first.
func RemoveRest(dir string) error {
	uppers, err := filepath.Glob(filepath.Join(dir, "containers", "*", "upper"))
	if err != nil {
		return err
	}
	for _, upper := range append(uppers, filepath.Join(dir, "upper")) {
		if err := quota.Release(upper); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// OrphanedWritables lists the writable layers below containerRoot that belong to records below root which are gone.
func OrphanedWritables(root, containerRoot string) ([]string, error) {
	if containerRoot == "" {
		return nil, nil
	}
	dir := filepath.Join(containerRoot, "containers")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for writable layers: %w", err)
	}
	var orphans []string
	look := &Pods{Options: Options{Root: root}}
	for _, e := range entries {
		layer := filepath.Join(dir, e.Name())
		if orphan, err := look.isOrphan(layer); err != nil {
			return nil, err
		} else if orphan {
			orphans = append(orphans, layer)
		}
	}
	return orphans, nil
}

// RemoveWritable removes a writable layer that lies below a container_root.
func RemoveWritable(dir string) error { return removeWritable(dir) }
