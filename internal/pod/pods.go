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

// Options are what pods are made with. All fields but ContainerRoot and Handlers are needed.
type Options struct {
	Root, State string
	// ContainerRoot is the directory below which the writable layers of new containers lie, "" for beside their records.
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
	CDIDirs       []string     // of CDI specifications; of two that have a device the later directory's counts
	Ulimits       spec.Ulimits // of containers' processes; an annotation of the pod may lower them
	// Limits of a container's log: bytes before it is rotated, rotated files that are kept, bytes a second. 0 for none.
	LogMaxSize      int64
	LogMaxFiles     int
	LogRate         int64
	PidsLimit       int64 // of containers that ask for none, 0 for no limit
	MaxExecs        int   // ExecSyncs at once; more wait for their turn
	CreateHostPaths bool  // host paths of mounts that do not exist are made
	// In pods with a network of their own, every user may listen on ports below 1024, and send pings.
	UnprivilegedPorts, UnprivilegedPing bool
	// WritableLayer limits what each container writes; a pod's annotations can lower it, or set it where it is zero.
	WritableLayer spec.WritableLimits

	Handlers map[string]Handler // runtime handlers by name; the default one, "", comes by itself
}

// Pods is all pods and containers of this node. It is safe for concurrent use.
type Pods struct {
	Options
	paths  paths
	bootID string

	view // of the pods and containers

	labels    labels         // of SELinux
	noRelabel sync.Once      // the log says that volumes are not relabelled
	projects  quota.Projects // of writable layers that are limited

	// The verbs in flight, by what they work on.
	runs    flight.Group[identity, *Sandbox]
	stops   flight.Group[string, struct{}]
	removes flight.Group[string, struct{}]
	creates flight.Group[containerIdentity, *Container]
	starts  flight.Group[string, struct{}]
	graces  flight.Group[stopping, struct{}]
	updates flight.Group[updating, struct{}]

	execs   *execTurns
	outputs outputs // of ExecSyncs
	counts  counter // of what writable layers take
	sampler sampler // of what pods use
	devices devices
	lists   lists // what looks at every pod keep

	// pending says why the pods were not compared with what the keeper holds yet, nil when they were.
	pending atomic.Pointer[keeper.Hung]

	closing   chan struct{} // closed when the daemon ends: waiting stops, what is done stays done
	followers sync.WaitGroup
	settles   sync.WaitGroup // of recoveries; they start flights
}

// identity is what makes two requests for a sandbox the same one.
type identity struct {
	namespace, name, uid string
	attempt              uint32
}

// stopping is a stop with its grace: one with another grace counts for itself.
type stopping struct {
	container string
	grace     time.Duration
}

// updating is an update with what it asks for: one that asks for something else counts for itself.
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

// Open reads the records, brings them in line with what the keeper holds, and starts to follow the keeper's events
// until Close. A record that cannot be read is set aside and costs only itself.
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
		if err := os.MkdirAll(dir, 0o711); err != nil { // a pod will say so; what runs can be served
			slog.Error("the directory of the pods cannot be made", "err", err)
		}
	}
	if err := p.prepareWritable(); err != nil {
		slog.Error("the directory of the writable layers cannot be made", "err", err)
	}
	// The records come first: beside a keeper that hangs they are what can be served.
	todo := p.load()
	var hung *keeper.Hung
	switch p.Node.NoUserNamespaces, err = p.probe(ctx); {
	case errors.As(err, &hung):
		p.Node.NoUserNamespaces = "unknown, the keeper hung when kurid was started; start it anew"
		slog.Error("the keeper hangs: what it holds is looked at when it goes on", "err", err)
		p.pending.Store(hung)
		p.followers.Go(func() { p.follow(todo, 0) })
		return p, nil
	case err != nil: // a full disk is no reason to serve nobody
		slog.Error("what the kernel can is not known: pods with user namespaces are refused until the next start", "err", err)
		p.Node.NoUserNamespaces = "it could not be tried at the start of kurid: " + err.Error()
	}
	seen, settle, err := p.recover(ctx, todo)
	if err != nil {
		return nil, err
	}
	settling, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.followers.Go(func() { <-p.closing; cancel() })
	slog.Info("pods are as the keeper has them", "pods", len(p.sandboxes), "containers", len(p.containers), "took", time.Since(begun))
	p.settles.Go(func() { settle(settling) })
	p.followers.Go(func() { p.follow(nil, seen) })
	return p, nil
}

// compared returns nil when the pods are as the keeper has them, or else why they may not be, of kind Unavailable.
func (p *Pods) compared() error {
	if hung := p.pending.Load(); hung != nil {
		return fmt.Errorf("kurid was started beside a keeper that hung, and has not seen yet what it holds: %w", hung)
	}
	return nil
}

// probe returns why pods cannot have user namespaces, "" when they can.
func (p *Pods) probe(ctx context.Context) (string, error) {
	probed, err := p.Keeper.Probe(ctx, filepath.Join(p.Root, "pods"), p.ContainerRoot)
	if err != nil {
		return "", fmt.Errorf("probe what the kernel can: %w", err)
	}
	return probed.NoUserNamespaces, nil
}

// Close stops following events and waits for the verbs in flight. Pods go on running.
func (p *Pods) Close() {
	p.runs.Wait()
	p.creates.Wait()
	p.starts.Wait()
	p.updates.Wait()
	p.sampler.stop(p.closing)
	p.settles.Wait()
	p.graces.Wait()
	p.stops.Wait()
	p.removes.Wait()
	p.followers.Wait()
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

// find returns the entry of m whose key is id or begins with it, when there is just one such.
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

// Sandbox returns the sandbox, as the kernel has it, by its id or the unambiguous beginning of one. Error kinds: NotFound,
// Invalid.
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

// Snapshot returns a pod with its containers, as the kernel has it. Ids and errors are as for Sandbox.
func (p *Pods) Snapshot(id string) (*Snapshot, error) {
	if _, err := p.Sandbox(id); err != nil {
		return nil, err
	}
	return p.snapshotOf(id)
}

// Container returns the container by its id or the unambiguous beginning of one. Error kinds: NotFound, Invalid.
func (p *Pods) Container(id string) (*Container, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return find(p.containers, "container", id)
}

func (p *Pods) forgetContainer(c *Container) {
	p.hideContainer(c)

	c.sandbox.mu.Lock()
	defer c.sandbox.mu.Unlock()
	delete(c.sandbox.containers, c.Record().ID)
}

// name is how messages call a sandbox.
func (r *SandboxRecord) name() string {
	m := r.config().GetMetadata()
	return fmt.Sprintf("pod %s/%s (%.13s)", m.GetNamespace(), m.GetName(), r.ID)
}

// name is how messages call a container.
func (r *ContainerRecord) name() string {
	return fmt.Sprintf("container %s (%.13s)", r.config().GetMetadata().GetName(), r.ID)
}

// readyWait is how long the keeper may take to answer before the runtime does not count as ready.
const readyWait = 2 * time.Second

// Ready tells why pods cannot be run now, nil when they can.
func (p *Pods) Ready(ctx context.Context) error {
	return p.Keeper.Ready(ctx, readyWait)
}

// Networked reports whether the sandbox of that id is there and has a network of its own, or has still to give it back.
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
