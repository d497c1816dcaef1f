package pod

import (
	"errors"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/kuri-cri/kuri/internal/fault"
)

// loadResult is the result of reading the records of a pod.
type loadResult struct {
	id         string
	record     *SandboxRecord // valid only if err is nil
	err        error
	containers []loadedContainer
}

// loadedContainer is the result of reading the record of a container.
type loadedContainer struct {
	id     string
	record *ContainerRecord
	err    error
}

// load reads all records into the maps. Most of the time goes into decoding, so it uses all processors.
func (p *Pods) load() *recovery {
	ids := namesIn(filepath.Join(p.Root, "pods"), filepath.Join(p.State, "pods"))
	read := make([]loadResult, len(ids))
	next := make(chan int)
	var readers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(ids)) {
		readers.Go(func() {
			for n := range next {
				read[n] = p.readPod(ids[n])
			}
		})
	}
	for n := range ids {
		next <- n
	}
	close(next)
	readers.Wait()

	todo := &recovery{}
	for _, f := range read {
		if errors.Is(f.err, fault.NotFound) {
			// A pod's record is written first and removed first, so this is the remainder of an interrupted creation or
			// removal.
			todo.pods = append(todo.pods, f.id)
		}
		if f.err != nil {
			continue
		}
		s := &Sandbox{paths: p.paths, view: &p.view, containers: make(map[string]*Container)}
		s.namespaces.Store(new(map[string]string))
		s.rec.Store(f.record)
		p.add(s)
		p.labels.keep(f.id, f.record.Labels)
		p.addContainers(s, f.containers, todo)
	}
	return todo
}

// readPod reads the records of a pod and its containers.
func (p *Pods) readPod(id string) loadResult {
	f := loadResult{id: id, record: &SandboxRecord{}}
	if _, f.err = readRecord(p.paths.podRecord(id), p.paths.podCopy(id), sandboxFormat, f.record); f.err == nil {
		f.containers = p.readContainers(id)
	}
	return f
}

func (p *Pods) readContainers(pod string) (all []loadedContainer) {
	for _, id := range namesIn(filepath.Join(p.paths.podDir(pod), "containers"), filepath.Join(p.paths.podState(pod), "containers")) {
		f := loadedContainer{id: id, record: &ContainerRecord{}}
		_, f.err = readRecord(p.paths.containerRecord(pod, id), p.paths.containerCopy(pod, id), containerFormat, f.record)
		all = append(all, f)
	}
	return all
}

// addContainers adds a sandbox's containers, and notes in todo those that must be removed.
func (p *Pods) addContainers(s *Sandbox, all []loadedContainer, todo *recovery) {
	for _, f := range all {
		r := f.record
		switch {
		case errors.Is(f.err, fault.NotFound):
			todo.rests = append(todo.rests, p.recordOf(s.Record().ID, f.id))
			continue
		case f.err == nil && r.State == Creating:
			todo.rests = append(todo.rests, r)
			continue
		case f.err != nil:
			continue
		}
		c := newContainer(p.paths, s, r)
		s.noteCgroup(r)
		c.release = p.Layers.Hold(r.Layers)
		if r.Salvaged {
			c.release = p.Layers.Hold(p.Layers.All())
		}
		p.labels.keep(r.ID, r.Labels)
		p.enterContainer(c)
	}
}
