package pod

import (
	"sync"
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Sandbox is a pod on this node. Its record may be read at any time without a lock.
type Sandbox struct {
	paths paths
	view  *view
	rec   atomic.Pointer[SandboxRecord] // stored by publish
	shown []*Container                  // those that others see, oldest first; guarded by view.mu
	item  encoded[SandboxRecord]
	// namespaces are the paths by which containers join the pod's namespaces, by OCI type. They are the keeper's and
	// change with it.
	namespaces atomic.Pointer[map[string]string]
	cpu        rate // see stats.go
	// hadCgroup says that a container of it was made, and so the cgroup above.
	hadCgroup atomic.Bool
	settling  atomic.Pointer[settling] // nil when an earlier daemon has left nothing to do; stored by recover

	mu         sync.Mutex
	containers map[string]*Container // by id, those being created too
	creates    sync.WaitGroup        // containers being created; no Add once the state is not Ready
}

// Record returns the sandbox as it is now.
func (s *Sandbox) Record() *SandboxRecord { return s.rec.Load() }

func (r *SandboxRecord) config() *runtime.PodSandboxConfig { return r.Config.msg }

// sandboxEdges are the allowed changes of a sandbox's state; a state may always be kept while other fields change.
var sandboxEdges = map[State][]State{
	Creating: {Ready, NotReady},
	Ready:    {NotReady},
}

var containerEdges = map[State][]State{
	Creating: {Created},
	Created:  {Running, Exited},
	Running:  {Exited},
}

func allowed(edges map[State][]State, from, to State) bool {
	if from == to {
		return true
	}
	for _, s := range edges[from] {
		if s == to {
			return true
		}
	}
	return false
}

// become makes the one transition: it checks the edge, lets change fill in the rest, writes the record and publishes it.
// The error is of kind Precondition when the edge is not there. An end happens even when it cannot be recorded, for the disk
// may be full: the error says so, and the next daemon finds it out by itself.
func (s *Sandbox) become(next State, change func(*SandboxRecord)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.becomeLocked(next, change)
}

func (s *Sandbox) becomeLocked(next State, change func(*SandboxRecord)) error {
	r := *s.rec.Load()
	if !allowed(sandboxEdges, r.State, next) {
		return fault.New(fault.Precondition, "pod %s is %s and cannot become %s", r.ID, r.State, next)
	}
	if r.State == next && change == nil {
		return nil // and who stops a pod while another removes it does not write a record anew
	}
	r.State = next
	if change != nil {
		change(&r)
	}
	err := s.paths.writeSandbox(&r)
	r.configJSON = nil
	if err == nil || next == NotReady {
		s.publish(&r)
	}
	return err
}

// list returns the sandbox's containers, those being created too, in no order.
func (s *Sandbox) list() []*Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Container, 0, len(s.containers))
	for _, c := range s.containers {
		out = append(out, c)
	}
	return out
}

// Container is a container on this node. Its record may be read at any time without a lock.
type Container struct {
	paths   paths
	sandbox *Sandbox
	rec     atomic.Pointer[ContainerRecord] // stored by publish
	item    encoded[ContainerRecord]
	release func() // gives the layers back
	usage   usage  // of the writable layer, see stats.go
	cpu     rate   // see stats.go

	unheld   atomic.Bool   // it lives, and the keeper does not know it
	updating chan struct{} // holds a token while an update of the resources is under way

	mu     sync.Mutex
	exited chan struct{} // closed when the state is Exited
}

func newContainer(p paths, s *Sandbox, r *ContainerRecord) *Container {
	c := &Container{paths: p, sandbox: s, release: func() {}, updating: make(chan struct{}, 1), exited: make(chan struct{})}
	c.rec.Store(r)
	if r.State == Exited {
		close(c.exited)
	}
	return c
}

// Record returns the container as it is now.
func (c *Container) Record() *ContainerRecord { return c.rec.Load() }

func (r *ContainerRecord) config() *runtime.ContainerConfig { return r.Config.msg }

// become makes the one transition, as Sandbox.become does.
func (c *Container) become(next State, change func(*ContainerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.becomeLocked(next, change)
}

// amend changes the record of a container that has not exited; else the error is of kind Precondition.
func (c *Container) amend(change func(*ContainerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.rec.Load().State
	if state == Exited {
		return fault.New(fault.Precondition, "it has exited meanwhile")
	}
	return c.becomeLocked(state, change)
}

func (c *Container) becomeLocked(next State, change func(*ContainerRecord)) error {
	r := *c.rec.Load()
	if !allowed(containerEdges, r.State, next) {
		return fault.New(fault.Precondition, "container %s is %s and cannot become %s", r.ID, r.State, next)
	}
	if r.State == Exited {
		return nil // told twice, and the second time perhaps when its record has been removed
	}
	r.State = next
	if change != nil {
		change(&r)
	}
	err := c.paths.writeContainer(&r)
	if next != Created {
		r.configJSON = nil
	}
	if err == nil || next == Exited || next == Running {
		c.publish(&r)
	}
	if next == Exited {
		close(c.exited)
	}
	return err
}
