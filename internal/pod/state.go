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
	shown []*Container                  // the visible ones, oldest first; guarded by view.mu
	item  encodedCache[SandboxRecord]
	// namespaces are the paths by which containers join the pod's namespaces, by OCI type. They belong to the keeper
	// and change with each new keeper.
	namespaces atomic.Pointer[map[string]string]
	cpu        rate // see stats.go
	// hadCgroup is true once a container of the sandbox was created, and with it the cgroup above.
	hadCgroup atomic.Bool
	settling  atomic.Pointer[settling] // nil if an earlier daemon left no incomplete work; stored by recover
	stopped   atomic.Bool              // this daemon has stopped it completely, which is final

	mu         sync.Mutex
	containers map[string]*Container // by id; not those in state Creating
	creates    sync.WaitGroup        // creations in flight; no Add once the state is not Ready
}

// Record returns the current record of the sandbox.
func (s *Sandbox) Record() *SandboxRecord { return s.rec.Load() }

func (r *SandboxRecord) config() *runtime.PodSandboxConfig { return r.Config.msg }

// sandboxEdges are the allowed state transitions of a sandbox. Other fields may change without a transition.
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

// become is the only state transition. It checks the edge, lets change set the other fields, writes the record and
// publishes it. The error is of kind Precondition if the edge does not exist. An end is published even if it cannot be
// recorded, because the disk may be full: the error reports that, and the next daemon finds the end out by itself.
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
		return nil // and a stop does not write the record again while the pod is being removed
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

// list returns the sandbox's containers in no order, without those in state Creating.
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
	item    encodedCache[ContainerRecord]
	release func() // releases the layers
	usage   usage  // of the writable layer, see stats.go
	cpu     rate   // see stats.go

	unheld   atomic.Bool   // it runs, and the keeper does not know it
	deleted  atomic.Bool   // this daemon has had the keeper delete it, which is final
	updating chan struct{} // holds a token during an update of the resources

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

// Record returns the current record of the container.
func (c *Container) Record() *ContainerRecord { return c.rec.Load() }

func (r *ContainerRecord) config() *runtime.ContainerConfig { return r.Config.msg }

// become is the only state transition, as Sandbox.become is. A start, too, is published even if it cannot be recorded.
func (c *Container) become(next State, change func(*ContainerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.becomeLocked(next, change)
}

// amend changes the record of a container that has not exited. Else the error is of kind Precondition.
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
		return nil // reported twice, the second time perhaps after its record was removed
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
