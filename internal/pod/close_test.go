package pod

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// A recovery that a hung keeper has delayed ends while the daemon closes. Close waits for the work
// that it starts, and for the stop that this work starts: after Close another daemon owns the records.
func TestCloseWaitsForALateRecovery(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := loadable(t, dir, dir)
		stopped := false
		p.followers.Go(func() {
			<-p.closing
			time.Sleep(time.Second)
			p.settles.Go(func() {
				time.Sleep(time.Second)
				p.stops.Do(t.Context(), "pod", func(context.Context) (struct{}, error) {
					time.Sleep(time.Second)
					stopped = true
					return struct{}{}, nil
				})
			})
		})
		p.Close()
		if !stopped {
			t.Error("Close has returned before the stop has ended")
		}
	})
}

// A pod is stopped and removed between the keeper's answer and its adoption: the adoption restores
// neither its files nor its namespaces.
func TestAdoptionAfterAStop(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	p := loadable(t, root, state)
	meta := &runtime.PodSandboxMetadata{Name: "stopped", Namespace: "default", Uid: "uid"}
	newSandbox := func() *Sandbox {
		r := &SandboxRecord{ID: newID(), State: Ready, BootID: p.bootID}
		r.Config = message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{Metadata: meta}}
		for _, dir := range []string{p.paths.podDir(r.ID), p.paths.podState(r.ID)} {
			must(t, os.MkdirAll(dir, 0o700))
		}
		s := &Sandbox{paths: p.paths, view: &p.view, containers: make(map[string]*Container)}
		s.namespaces.Store(new(map[string]string))
		s.rec.Store(r)
		p.add(s)
		return s
	}
	held := func(s *Sandbox) *api.Sandbox {
		return &api.Sandbox{Id: s.Record().ID, Namespaces: map[string]string{"ipc": "/proc/1/fd/5"}}
	}

	s := newSandbox()
	p.adopt(s, held(s))
	if _, err := os.Stat(p.paths.podFile(s.Record().ID, "hostname")); err != nil || len(*s.namespaces.Load()) != 1 {
		t.Errorf("a ready pod was not adopted: %v, %v", err, *s.namespaces.Load())
	}

	s = newSandbox()
	must(t, s.become(NotReady, nil))
	p.adopt(s, held(s))
	if paths := *s.namespaces.Load(); len(paths) > 0 {
		t.Errorf("a stopped pod has the namespaces %v", paths)
	}

	// The stop and the removal come at any moment of the adoption.
	for range 300 {
		s = newSandbox()
		begun, adopted := make(chan struct{}), make(chan struct{})
		go func() {
			close(begun)
			p.adopt(s, held(s))
			close(adopted)
		}()
		<-begun
		must(t, s.become(NotReady, nil))
		s.creates.Wait()
		must(t, p.removeDirs(s.Record().ID))
		<-adopted
		if left, _ := filepath.Glob(filepath.Join(state, "pods", s.Record().ID)); len(left) > 0 {
			t.Fatalf("the removed pod has left %v", left)
		}
	}
}
