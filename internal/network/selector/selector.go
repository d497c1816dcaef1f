package selector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/bridge"
	"github.com/kuri-cri/kuri/internal/network/cni"
)

// Choice says which network new pods get.
type Choice string

// The choices.
const (
	// CNI while its configuration directory has a configuration, else the bridge; in a cluster CNI
	Auto    Choice = "auto"
	OnlyCNI Choice = "cni"     // CNI; without a configuration no pod is attached
	BuiltIn Choice = "builtin" // the bridge, whatever is configured for CNI
)

// Selector is the network of the daemon. It sends each pod to its network, and retries failed
// detachments in the background (retryLater).
type Selector struct {
	cni     *cni.Network
	bridge  *bridge.Network
	choice  Choice
	cluster atomic.Bool // a pod of an API server was refused, see awaitCNI

	life    context.Context // of the background work; the one context that is kept, for Close ends it
	end     context.CancelFunc
	workers sync.WaitGroup

	mu       sync.Mutex               // guards the fields below; never held over a call
	busy     map[string]chan struct{} // pods that are being detached or checked; closed when that is done
	retries  map[string]*retry        // the retry queue of detachments, by pod ID
	retrying bool                     // whether the queue's worker runs
	wake     chan struct{}            // has room for one: the queue has a new entry
	closed   bool
}

// New joins the two networks; Close closes the bridge.
func New(cni *cni.Network, bridge *bridge.Network, choice Choice) *Selector {
	s := &Selector{cni: cni, bridge: bridge, choice: choice, busy: map[string]chan struct{}{},
		retries: map[string]*retry{}, wake: make(chan struct{}, 1)}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// of returns the network for the pod. A handler with a directory of CNI configurations has its pods
// attached by CNI, whatever is chosen for the others: a pod that is to be kept apart must not get
// the common network while that directory is empty.
func (s *Selector) of(pod network.Pod) (network.Network, error) {
	if pod.CNIConfDir != "" {
		return s.cni, nil
	}
	n, err := s.current()
	if err == nil && s.choice == Auto && n == network.Network(s.bridge) && pod.Annotations[configSource] == sourceAPI {
		s.cluster.Store(true)
		return nil, fmt.Errorf("attach pod %s: %w", pod.Label(), s.awaitCNI())
	}
	return n, err
}

// A kubelet annotates each pod with the place that it has it from
// (k8s.io/kubernetes/pkg/kubelet/types): "api", "file" or "http".
const (
	configSource = "kubernetes.io/config.source"
	sourceAPI    = "api"
)

// awaitCNI is the error for a node of a cluster whose network plugin is not installed yet. The
// addresses of the built-in network are this node's own: a pod that got one before the plugin came
// would run, look healthy, and be out of reach of the other nodes for as long as it lives. From the
// first such pod on the node's network is not ready, so that a kubelet reports it and the scheduler
// sends no more.
func (s *Selector) awaitCNI() error {
	return fault.New(fault.Precondition,
		"no CNI configuration (*.conflist, *.conf, *.json) in %s, and the API server's pods do not get the built-in network, which other nodes cannot reach; install the cluster's network plugin, or set network.use = \"builtin\" in a cluster of one node", s.cni.ConfDir())
}

// current returns the network for a new pod whose handler has no CNI directory of its own.
func (s *Selector) current() (network.Network, error) {
	switch s.choice {
	case OnlyCNI:
		return s.cni, nil
	case BuiltIn:
		return s.bridge, nil
	}
	configured, err := s.cni.Configured()
	if err != nil {
		return nil, err
	}
	if configured {
		return s.cni, nil
	}
	return s.bridge, nil
}

// Attach implements [network.Network].
func (s *Selector) Attach(ctx context.Context, pod network.Pod) (*network.Result, error) {
	n, err := s.of(pod)
	if err != nil {
		return nil, err
	}
	return n.Attach(ctx, pod)
}

// Detach implements [network.Network]. When it fails, it is tried again in the background until it
// succeeds or the daemon ends (the next one goes on); the error says that the network is still
// there now.
func (s *Selector) Detach(ctx context.Context, pod network.Pod, result *network.Result) error {
	leave, err := s.enter(ctx, pod.ID)
	if err != nil {
		return err
	}
	err = s.detach(ctx, pod, result)
	leave()
	if err != nil {
		s.retryLater(pod, result, firstRetry)
		return fmt.Errorf("%w (it is tried again in the background)", err)
	}
	s.dropRetry(pod.ID)
	return nil
}

// detach calls the network that attached the pod, or both if that is not known: each has a record of its attachments.
func (s *Selector) detach(ctx context.Context, pod network.Pod, result *network.Result) error {
	switch {
	case result == nil:
		return errors.Join(s.bridge.Detach(ctx, pod, nil), s.cni.Detach(ctx, pod, nil))
	case result.By == network.ByCNI:
		return s.cni.Detach(ctx, pod, result)
	default:
		return s.bridge.Detach(ctx, pod, result)
	}
}

// Ready implements [network.Network].
func (s *Selector) Ready(ctx context.Context) error {
	n, err := s.current()
	if err != nil {
		return err
	}
	if n == network.Network(s.bridge) && s.cluster.Load() {
		return s.awaitCNI()
	}
	return n.Ready(ctx)
}

// Notice implements [network.Network].
func (s *Selector) Notice() string {
	n, err := s.current()
	if err != nil {
		return ""
	}
	return n.Notice()
}

// Reclaim detaches the pods of an earlier process for which keep returns false. Call it once,
// before the first Attach. The bridge is done when it returns; CNI plugins, which may take minutes,
// run in the background.
func (s *Selector) Reclaim(ctx context.Context, keep func(podID string) bool) error {
	err := s.bridge.Reclaim(ctx, keep)
	attached, errCNI := s.cni.Attached()
	var kept []string
	for _, id := range attached {
		if keep(id) {
			kept = append(kept, id)
		} else {
			s.retryLater(network.Pod{ID: id}, &network.Result{By: network.ByCNI}, 0)
		}
	}
	s.work(func() { s.maintain(kept) })
	return errors.Join(err, errCNI)
}

// SetPodCIDR passes the node's pod CIDR on: to the bridge, and to CNI plugins that ask for ranges.
func (s *Selector) SetPodCIDR(ranges []netip.Prefix) error {
	if err := s.bridge.SetPodCIDR(ranges); err != nil {
		return err
	}
	failpoint.At("set pod CIDR: bridge told")
	if err := s.cni.SetPodCIDR(ranges); err != nil {
		return err
	}
	failpoint.At("set pod CIDR: CNI told")
	return nil
}

// Close ends background work and waits for it. Pods keep their network.
func (s *Selector) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	s.workers.Wait()
	return s.bridge.Close()
}

// work runs fn in the background, unless Close has begun.
func (s *Selector) work(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.workers.Go(fn)
	}
}

// enter makes the caller the only one that works on the pod's network until leave is called.
func (s *Selector) enter(ctx context.Context, podID string) (leave func(), err error) {
	for {
		s.mu.Lock()
		other, busy := s.busy[podID]
		if !busy {
			mine := make(chan struct{})
			s.busy[podID] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, podID)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "the network of pod %s is being detached or checked already: %w", podID,
				ctx.Err())
		}
	}
}
