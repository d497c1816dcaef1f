package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/flight"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/quota"
	"github.com/kuri-cri/kuri/internal/spec"
)

// Options configure Pods. All fields but ContainerRoot and Handlers are required.
type Options struct {
	Root, State string
	// ContainerRoot is the directory of the writable layers of new containers; "" puts them beside their records.
	ContainerRoot string
	Keeper        *keeper.Client
	Images        *image.Store
	Layers        *layer.Store
	Network       network.Network
	Node          spec.Node
	Driver        cgroup.Driver
	ScopePrefix   string // of the systemd scopes of containers
	Cgroups       *cgroup.Hierarchies
	ShmSize       int64        // bytes of a pod's /dev/shm
	CDIDirs       []string     // of CDI specifications; a device in two of them comes from the later one
	Ulimits       spec.Ulimits // of containers' processes; an annotation of the pod may lower them
	// Limits of a container's log: bytes before rotation, number of rotated files, bytes a second. 0 for none.
	LogMaxSize      int64
	LogMaxFiles     int
	LogRate         int64
	PidsLimit       int64 // of containers that request none, 0 for no limit
	MaxExecs        int   // maximum of concurrent ExecSyncs; others wait for their turn
	CreateHostPaths bool  // create host paths of mounts that do not exist
	// Whether every user may listen on ports below 1024, and send pings, in pods with their own network namespace.
	UnprivilegedPorts, UnprivilegedPing bool
	// WritableLayer limits the writable layer of each container. A pod's annotations can lower a limit, or set one that
	// is zero.
	WritableLayer spec.WritableLimits

	Handlers map[string]Handler // runtime handlers by name; Open adds the default one, ""
}

// Pods holds all pods and containers of this node. It is safe for concurrent use.
type Pods struct {
	Options
	paths  paths
	bootID string

	view // of the pods and containers

	labels    labels         // of SELinux
	noRelabel sync.Once      // logs once that volumes are not relabelled
	projects  quota.Projects // of writable layers with limits

	// The verbs in flight, by subject.
	runs    flight.Group[identity, *Sandbox]
	stops   flight.Group[string, struct{}]
	removes flight.Group[string, struct{}]
	creates flight.Group[containerIdentity, *Container]
	starts  flight.Group[string, struct{}]
	graces  flight.Group[stopping, struct{}]
	updates flight.Group[updating, struct{}]
	deletes flight.Group[string, struct{}]

	execs   *execTurns
	outputs outputs // of ExecSyncs
	counts  counter // of the disk usage of writable layers
	sampler sampler // of the resource usage of pods
	devices devices
	lists   lists // state between checks of all pods

	// pending is why the pods have not been compared with the keeper's state yet. It is nil once they have.
	pending atomic.Pointer[keeper.Hung]

	closing   chan struct{} // closed when the daemon ends: ends waits, undoes nothing
	followers sync.WaitGroup
	settles   sync.WaitGroup // of recoveries; they start flights
}

// identity is the key of a sandbox request: equal keys mean the same sandbox.
type identity struct {
	namespace, name, uid string
	attempt              uint32
}

// stopping is the key of a stop. Stops with different graces run separately.
type stopping struct {
	container string
	grace     time.Duration
}

// updating is the key of an update. Updates with different changes run separately.
type updating struct {
	container string
	change    string // the message's JSON
}

type containerIdentity struct {
	sandbox, name string
	attempt       uint32
}

func identityOf(m *runtime.PodSandboxMetadata) identity {
	return identity{m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt()}
}

// Open reads the records, brings them in line with the keeper's state, and follows the keeper's events until Close. A
// record that cannot be read is set aside and affects nothing else.
func Open(ctx context.Context, o Options) (*Pods, error) {
	begun := time.Now()
	boot, err := process.BootID()
	if err != nil {
		return nil, err
	}
	p := &Pods{
		Options: o,
		paths:   paths{root: o.Root, state: o.State},
		bootID:  boot,
		view:    newView(),
		execs:   newExecTurns(o.MaxExecs),
		closing: make(chan struct{}),
	}
	p.Handlers = withDefault(o.Handlers)
	for _, dir := range []string{filepath.Join(o.Root, "pods"), filepath.Join(o.State, "pods")} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // creating a pod will report it; running pods can be served
			slog.Error("the directory of the pods cannot be created", "err", err)
		}
	}
	if err := p.prepareWritable(); err != nil {
		slog.Error("the directory of the writable layers cannot be created", "err", err)
	}
	// Read the records first: beside a keeper that hangs, only they can be served.
	todo := p.load()
	var hung *keeper.Hung
	switch p.Node.NoUserNamespaces, err = p.probe(ctx); {
	case errors.As(err, &hung):
		p.Node.NoUserNamespaces = "unknown, the keeper hung when kurid was started; start it anew"
		slog.Error("the keeper hangs; recovery continues when it answers", "err", err)
		p.pending.Store(hung)
		p.followers.Go(func() { p.follow(todo, 0) })
		return p, nil
	case err != nil: // serve even if the disk is full
		slog.Error("the kernel could not be probed; pods with user namespaces are refused until the next start", "err", err)
		p.Node.NoUserNamespaces = "it could not be tried at the start of kurid: " + err.Error()
	}
	seen, settle, err := p.recover(ctx, todo)
	if err != nil {
		return nil, err
	}
	settling, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.followers.Go(func() { <-p.closing; cancel() })
	slog.Info("the pods match the state of the keeper", "pods", len(p.sandboxes), "containers", len(p.containers), "took", time.Since(begun))
	p.settles.Go(func() { settle(settling) })
	p.followers.Go(func() { p.follow(nil, seen) })
	return p, nil
}

// compared returns nil if the pods have been compared with the keeper's state. Else the error is of kind Unavailable
// and has the reason.
func (p *Pods) compared() error {
	if hung := p.pending.Load(); hung != nil {
		return fmt.Errorf("kurid was started beside a keeper that hung, and has not seen yet what it holds: %w", hung)
	}
	return nil
}

// probe returns why pods cannot have user namespaces, "" if they can.
func (p *Pods) probe(ctx context.Context) (string, error) {
	probed, err := p.Keeper.Probe(ctx, filepath.Join(p.Root, "pods"), p.ContainerRoot)
	if err != nil {
		return "", fmt.Errorf("probe what the kernel can: %w", err)
	}
	return probed.NoUserNamespaces, nil
}

// Close stops following events and waits for the verbs in flight. Pods keep running.
func (p *Pods) Close() {
	p.runs.Wait()
	p.creates.Wait()
	p.starts.Wait()
	p.updates.Wait()
	p.sampler.stop(p.closing)
	p.followers.Wait() // first: a follower may begin to settle, and settling begins stops and removals
	p.settles.Wait()
	p.graces.Wait()
	p.stops.Wait()
	p.removes.Wait()
	p.deletes.Wait()
	p.sampler.passes.Wait()
	p.counts.close()
	p.lists.close()
}

// newID returns 64 random lower-case hex digits.
func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails, see its documentation
	return hex.EncodeToString(b[:])
}

// find returns the entry of m whose key is id, or else the only entry whose key begins with id, of at least 4
// characters. Error kinds: NotFound, Invalid (more than one begins with it).
func find[T any](m map[string]T, what, id string) (T, error) {
	if v, ok := m[id]; ok {
		return v, nil
	}
	var none, found T
	n := 0
	if len(id) >= 4 {
		for key, v := range m {
			if strings.HasPrefix(key, id) {
				found = v
				n++
			}
		}
	}
	switch n {
	case 0:
		return none, fault.New(fault.NotFound, "there is no %s %q", what, id)
	case 1:
		return found, nil
	}
	return none, fault.New(fault.Invalid, "%q begins the ids of %d %ss; give more digits", id, n, what)
}

// Sandbox returns the sandbox by its id or an unambiguous prefix of it. It first checks whether part of it is gone from
// the kernel. Error kinds: NotFound, Invalid.
func (p *Pods) Sandbox(id string) (*Sandbox, error) {
	p.mu.RLock()
	s, err := find(p.sandboxes, "pod sandbox", id)
	p.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	p.look(s)
	return s, nil
}

// Snapshot returns a pod with its containers, after the same check. Ids and errors are as for Sandbox.
func (p *Pods) Snapshot(id string) (*Snapshot, error) {
	if _, err := p.Sandbox(id); err != nil {
		return nil, err
	}
	return p.snapshotOf(id)
}

// Container returns the container by its id or an unambiguous prefix of it. Error kinds: NotFound, Invalid.
func (p *Pods) Container(id string) (*Container, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return find(p.containers, "container", id)
}

// enterContainer adds a container to its sandbox and makes it visible.
func (p *Pods) enterContainer(c *Container) {
	c.sandbox.mu.Lock()
	defer c.sandbox.mu.Unlock()
	c.sandbox.containers[c.Record().ID] = c
	p.addContainer(c)
}

func (p *Pods) forgetContainer(c *Container) {
	p.hideContainer(c)

	c.sandbox.mu.Lock()
	defer c.sandbox.mu.Unlock()
	delete(c.sandbox.containers, c.Record().ID)
}

// name returns the sandbox's name in messages.
func (r *SandboxRecord) name() string {
	m := r.config().GetMetadata()
	return fmt.Sprintf("pod %s/%s (%.13s)", m.GetNamespace(), m.GetName(), r.ID)
}

// name returns the container's name in messages.
func (r *ContainerRecord) name() string {
	return fmt.Sprintf("container %s (%.13s)", r.config().GetMetadata().GetName(), r.ID)
}

// readyWait is how long the keeper may take to answer before the runtime counts as not ready.
const readyWait = 2 * time.Second

// Ready returns why pods cannot be run now, nil if they can.
func (p *Pods) Ready(ctx context.Context) error {
	return p.Keeper.Ready(ctx, readyWait)
}

// Networked reports whether the sandbox with that id exists and has its own network, or has still to release one.
func (p *Pods) Networked(id string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	s, ok := p.sandboxes[id]
	if !ok {
		return false
	}
	r := s.Record()
	return !s.inOrder() || (r.Network != nil || r.Salvaged) && r.State == Ready
}
