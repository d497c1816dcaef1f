package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/pod"
)

// damagedRecords finds records that were set aside. They can be removed if there is a new record or
// the pod is gone.
func damagedRecords(s *scene) ([]Finding, error) {
	var found []Finding
	for _, d := range s.pods.Damaged {
		f := Finding{Subject: d.Path, Problem: "a record could not be read and was set aside; there is a good one in " +
			"its place"}
		if d.Replaced {
			f.fix = func(context.Context) error { return remove(d.Path) }
			found = append(found, f)
		}
	}
	for _, dir := range []string{"network/leases", "keeper/sandboxes", "keeper/containers"} {
		paths, err := filepath.Glob(filepath.Join(s.State, dir, "*.damaged"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			id := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".damaged"), ".json")
			f := Finding{Subject: path, Problem: "a record could not be read and was set aside; it is of a pod or a " +
				"container that is gone"}
			switch {
			case fileExists(strings.TrimSuffix(path, ".damaged")):
				f.Problem = "a record could not be read and was set aside; there is a good one in its place"
			case !s.unowned(id) || len(s.runs[id]) > 0:
				f.Problem = "a record could not be read and was set aside"
				f.Advice = fmt.Sprintf("remove what it is of, id:%.13s, and the record goes with it or by kuri "+
					"doctor --fix", id)
				found = append(found, f)
				continue
			}
			f.fix = func(context.Context) error { return remove(path) }
			found = append(found, f)
		}
	}
	return found, nil
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// restsOfPods finds directories of pods and containers without a readable record.
func restsOfPods(s *scene) ([]Finding, error) {
	var found []Finding
	for _, r := range s.pods.Rests {
		f := Finding{Subject: r.Dir, Problem: "it is what is left of a pod or a container without a record"}
		if r.Damaged {
			f.Problem = "the record of this pod or container cannot be read, and nobody serves it"
		}
		switch pids := s.runs[r.ID]; {
		case len(pids) > 0:
			f.Advice = describe(pids) + " of it runs: restart kurid, which takes it in as unknown"
		case s.pods.Held[r.ID]:
			f.Advice = "the keeper holds it: restart kurid, which takes it in as unknown"
		case !isID(r.ID):
			f.Advice = "it has no name that Kuri gives: look at it, and remove it by hand"
		default:
			f.fix = func(context.Context) error {
				if err := s.stillUnused(r.ID); err != nil {
					return err
				}
				return pod.RemoveRest(r.Dir)
			}
		}
		found = append(found, f)
	}
	return found, nil
}

// strayWritables finds writable layers below container_root whose containers are gone.
func strayWritables(s *scene) ([]Finding, error) {
	dirs, err := pod.OrphanedWritables(s.Root, s.ContainerRoot)
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, dir := range dirs {
		id := filepath.Base(dir)
		if !s.unowned(id) || len(s.runs[id]) > 0 {
			continue
		}
		found = append(found, Finding{
			Subject: dir, Problem: "it is the writable layer of a container that is gone",
			fix: func(context.Context) error {
				if err := s.stillUnused(id); err != nil {
					return err
				}
				return pod.RemoveWritable(dir)
			},
		})
	}
	return found, nil
}

// layers finds unused layers and incomplete layers.
func layers(s *scene) ([]Finding, error) {
	dirs, err := layer.Directories(s.Root)
	if err != nil {
		return nil, err
	}
	idle, err := s.idleLayers()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, d := range dirs {
		f := Finding{Subject: d.Path}
		unused := idle != nil && idle(d.ID)
		switch {
		case d.Aside:
			f.Problem, f.Advice = "a layer could not be read and was set aside, for a container may run on it",
				"remove the containers that run on it, and restart kurid: it removes it then"
		case d.Problem != nil && unused:
			f.Problem = "no image and no container has this layer, and it is not whole: " + d.Problem.Error()
			f.fix = func(context.Context) error { return s.discard(d) }
		case d.Problem != nil:
			f.Problem, f.Advice = d.Problem.Error(),
				"kuri check --images --repair fetches it again; containers that run on it have to be removed first"
		case unused:
			f.Problem = fmt.Sprintf("no image and no container has this layer (%d KiB): a pull failed or was killed",
				d.Bytes>>10)
			f.fix = func(context.Context) error { return s.discard(d) }
		default:
			continue
		}
		found = append(found, f)
	}
	return found, nil
}

// idleLayers returns a function that reports whether a layer is unused. It is nil if that cannot be
// decided.
func (s *scene) idleLayers() (func(digest.Digest) bool, error) {
	if s.Layers != nil {
		return s.Layers.Idle, nil
	}
	images, err := image.ReadStored(s.Root)
	if err != nil {
		return nil, err
	}
	used := map[digest.Digest]bool{}
	for _, i := range images {
		if i.Problem != nil || i.Aside {
			return nil, nil // its layers are not known
		}
		for _, id := range i.Layers {
			used[id] = true
		}
	}
	if s.unknownRuns() {
		return nil, nil
	}
	for _, r := range s.pods.Containers {
		if r.Salvaged {
			return nil, nil
		}
		for _, id := range r.Layers {
			used[id] = true
		}
	}
	return func(id digest.Digest) bool { return !used[id] }, nil
}

func (s *scene) discard(d layer.Directory) error {
	if s.Layers == nil {
		return os.RemoveAll(d.Path)
	}
	s.Layers.Discard(d.ID)
	if s.Layers.Has(d.ID) {
		return fault.New(fault.Precondition, "somebody uses it now")
	}
	if s.Layers.Idle(d.ID) { // the store did not know it
		return os.RemoveAll(d.Path)
	}
	return nil
}

// brokenImages finds images with unreadable records or missing layers, and containers that use
// those layers.
func brokenImages(s *scene) ([]Finding, error) {
	images, err := image.ReadStored(s.Root)
	if err != nil {
		return nil, err
	}
	dirs, err := layer.Directories(s.Root)
	if err != nil {
		return nil, err
	}
	there := map[digest.Digest]bool{}
	for _, d := range dirs {
		there[d.ID] = true // an incomplete layer has already been reported
	}
	const advice = "kuri check --images --repair fetches what is missing; or pull it again by its name"
	var found []Finding
	for _, i := range images {
		name := i.Record
		if len(i.Names) > 0 {
			name = strings.Join(i.Names, ", ")
		}
		switch {
		case i.Aside:
			found = append(found, Finding{Subject: name,
				Problem: "the record of an image could not be read and was set aside", Advice: advice})
		case i.Problem != nil:
			found = append(found, Finding{Subject: name, Problem: "the image cannot be read: " + i.Problem.Error(),
				Advice: advice})
		}
		for _, id := range i.Layers {
			if !there[id] {
				found = append(found, Finding{Subject: name,
					Problem: fmt.Sprintf("layer %s of the image is missing", id), Advice: advice})
			}
		}
	}
	for _, id := range s.pods.ContainerIDs() {
		r := s.pods.Containers[id]
		for _, l := range r.Layers {
			if !there[l] && r.State != pod.Exited {
				found = append(found, Finding{Subject: r.Name(),
					Problem: fmt.Sprintf("layer %s below it is missing: its files are not whole", l), Advice: advice +
						"; then remove the container"})
			}
		}
	}
	return found, nil
}
