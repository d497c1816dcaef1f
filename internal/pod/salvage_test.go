package pod

import (
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// heldRunning returns a container as the keeper reports it.
func heldRunning(pod, id string) *api.Container {
	return &api.Container{Id: id, SandboxId: pod, State: api.State_RUNNING}
}

// After a start beside a hung keeper, pods are salvaged while clients list, stop and remove others.
func TestPodsAreSalvagedWhileOthersAreRemoved(t *testing.T) {
	p := loadable(t, t.TempDir(), t.TempDir())
	pods := writeMany(t, p.paths, 41)
	lost, intact, other := pods[:20], pods[20:40], pods[40]
	held := &holdings{sandboxes: make(map[string]*api.Sandbox), containers: make(map[string]*api.Container)}
	for _, id := range lost { // the records of their containers are intact
		must(t, errors.Join(os.Remove(p.paths.podRecord(id)), os.Remove(p.paths.podCopy(id))))
		held.sandboxes[id] = &api.Sandbox{Id: id, Namespaces: map[string]string{"network": "/proc/1/ns/net"}}
	}
	for _, id := range intact {
		c := newID()
		held.containers[c] = heldRunning(id, c)
	}
	todo := p.load()

	salvaged := make(chan struct{})
	var clients sync.WaitGroup
	repeat := func(call func()) {
		clients.Go(func() {
			for {
				select {
				case <-salvaged:
					return
				default:
					call()
				}
			}
		})
	}
	repeat(func() {
		for _, s := range p.allSandboxes() {
			s.list()
		}
	})
	removed := p.sandboxes[other]
	repeat(func() {
		p.forget(removed)
		p.add(removed) // there is always one to remove
	})
	p.salvage(held, todo, p.ids())
	close(salvaged)
	clients.Wait()

	for n, id := range pods[:40] {
		want := 3
		if n >= len(lost) {
			want = 4
		}
		if s, err := p.Sandbox(id); err != nil || len(s.list()) != want {
			t.Errorf("pod %d: %v, %d containers, want %d", n, err, len(s.list()), want)
		}
	}
}

// A pod that is removed between the keeper's answer and the comparison stays removed.
func TestWhatIsRemovedMeanwhileIsNotSalvaged(t *testing.T) {
	p := loadable(t, t.TempDir(), t.TempDir())
	id := writeMany(t, p.paths, 1)[0]
	todo := p.load()
	known := p.ids()
	s := p.sandboxes[id]
	held := &holdings{sandboxes: map[string]*api.Sandbox{id: {Id: id}}, containers: make(map[string]*api.Container)}
	for _, c := range s.list() {
		held.containers[c.Record().ID] = heldRunning(id, c.Record().ID)
		p.forgetContainer(c)
	}
	must(t, p.removeDirs(id))
	p.forget(s)

	p.salvage(held, todo, known)
	if len(p.sandboxes) != 0 || len(p.containers) != 0 || len(todo.exited) != 0 {
		t.Errorf("%d pods and %d containers are back, %v to be deleted", len(p.sandboxes), len(p.containers), todo.exited)
	}
	if dirs := namesIn(p.paths.podDir(id), p.paths.podState(id)); len(dirs) != 0 {
		t.Errorf("written again: %v", dirs)
	}
}
