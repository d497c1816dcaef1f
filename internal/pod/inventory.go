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

// Inventory lists the pods and containers of this node, and the remains of removed ones. Reading it changes nothing.
type Inventory struct {
	Sandboxes  map[string]*SandboxRecord   // by id
	Containers map[string]*ContainerRecord // by id
	Held       map[string]bool             // ids of the keeper's records
	Rests      []Rest
	Damaged    []Damaged

	known map[string]bool
	at    paths
	live  *Pods // nil if kurid is stopped
}

// Rest is a directory of a pod or a container without a readable record.
type Rest struct {
	Dir     string
	ID      string // of the container, or of the pod
	Damaged bool   // it has a record that is damaged or was set aside
}

// Damaged is a record that was set aside.
type Damaged struct {
	Path     string
	ID       string
	Replaced bool // there is a readable record or copy of it
}

// Known reports whether the id is that of a pod or a container which has a record, even a damaged one, or which the
// keeper holds.
func (v *Inventory) Known(id string) bool { return v.known[id] }

// ReadInventory reads the records below root and state. The error names a directory that cannot be read. Its content is
// unknown then, so nothing may be taken for unowned.
func ReadInventory(root, state string) (*Inventory, error) {
	v := &Inventory{
		Sandboxes: map[string]*SandboxRecord{}, Containers: map[string]*ContainerRecord{},
		Held: map[string]bool{}, known: map[string]bool{}, at: paths{root: root, state: state},
	}
	at := v.at
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

// readHeld reads the ids of the keeper's records.
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

// read reads a record or its copy into r, notes a record that was set aside, and reports whether one of them is
// readable. If none is, the existing dirs are remains.
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

// subdirectories returns the names of the directories in dirs, sorted and without duplicates. A missing directory has
// none.
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

// Inventory returns the same as ReadInventory, but the pods and containers in memory take precedence.
func (p *Pods) Inventory() (*Inventory, error) {
	if err := p.compared(); err != nil {
		return nil, err
	}
	v, err := ReadInventory(p.Root, p.State)
	if err != nil {
		return nil, err
	}
	v.live = p
	p.mu.RLock()
	defer p.mu.RUnlock()
	// A record without a pod in memory is one of a pod that is being created or removed.
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

// HeldAlone returns the ids that the keeper holds and no readable record has, sorted.
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

// SandboxIDs returns the ids of the sandboxes, sorted, so that the output is stable.
func (v *Inventory) SandboxIDs() []string { return slices.Sorted(maps.Keys(v.Sandboxes)) }

// ContainerIDs returns the ids of the containers, sorted.
func (v *Inventory) ContainerIDs() []string { return slices.Sorted(maps.Keys(v.Containers)) }

// Name returns the sandbox's name in messages.
func (r *SandboxRecord) Name() string { return r.name() }

// UID returns the pod's uid, as set by the API server or by kuri run.
func (r *SandboxRecord) UID() string { return r.config().GetMetadata().GetUid() }

// Name returns the container's name in messages.
func (r *ContainerRecord) Name() string { return r.name() }

// Missing returns the part of a ready pod that is gone from the kernel. For a pod that became notready for such a loss
// it returns the recorded one. It returns "" if nothing is gone.
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

// OfThisBoot reports whether the pod was created in the current boot.
func (r *SandboxRecord) OfThisBoot() bool {
	boot, err := process.BootID()
	return err == nil && r.BootID == boot
}

// RemoveRest removes the directory of a removed pod or container. It first releases the limits of the writable layers
// in it.
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

// OrphanedWritables returns the writable layers below containerRoot whose records below root are gone.
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

// RemoveWritable removes a writable layer below a container_root.
func RemoveWritable(dir string) error { return removeWritable(dir) }
