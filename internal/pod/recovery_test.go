package pod

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/keepertest"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/process"
)

// The tests of this file need no root: the pods use the node's network, and the keeper has no processes (keepertest). They
// open real records with [Open], as kurid does, so a change to recovery is checked in seconds.

// host is a node on which one daemon after the other runs.
type host struct {
	t       *testing.T
	paths   paths
	keeper  *keepertest.Keeper
	network *recordedNetwork
	boot    string
	close   func() // ends the daemon
}

func newHost(t *testing.T) *host {
	t.Helper()
	state, err := os.MkdirTemp("", "pod") // t.TempDir may be too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(state) })
	boot, err := process.BootID()
	must(t, err)
	return &host{t: t, paths: paths{root: t.TempDir(), state: state}, keeper: keepertest.Serve(t, state), network: &recordedNetwork{}, boot: boot}
}

// open opens the pods as kurid does at its start, and waits for the work that follows.
func (n *host) open() *Pods {
	n.t.Helper()
	layers, err := layer.Open(n.paths.root)
	must(n.t, err)
	cgroups, err := cgroup.Open()
	must(n.t, err)
	client := keeper.Connect(n.paths.state)
	p, err := Open(n.t.Context(), Options{
		Root: n.paths.root, State: n.paths.state, Keeper: client, Layers: layers, Network: n.network,
		Driver: cgroup.Cgroupfs, Cgroups: cgroups, ScopePrefix: "kuri",
	})
	must(n.t, err)
	n.close = sync.OnceFunc(func() { p.Close(); client.Close(); layers.Close() })
	n.t.Cleanup(n.close)
	p.settles.Wait()
	return p
}

// pod writes the record of a pod on the node's network.
func (n *host) pod(change func(*SandboxRecord)) *SandboxRecord {
	n.t.Helper()
	id := newID()
	r := &SandboxRecord{ID: id, State: Ready, BootID: n.boot, CgroupParent: "/"}
	r.Config.msg = hostPod("web-" + id[:8])
	if change != nil {
		change(r)
	}
	must(n.t, errors.Join(os.MkdirAll(n.paths.podDir(id), 0o700), os.MkdirAll(n.paths.podState(id), 0o700), n.paths.writeSandbox(r)))
	return r
}

// container writes the record of a running container.
func (n *host) container(pod *SandboxRecord, change func(*ContainerRecord)) *ContainerRecord {
	n.t.Helper()
	id := newID()
	r := &ContainerRecord{ID: id, SandboxID: pod.ID, State: Running, CgroupsPath: "/" + id, StopSignal: 15, StartedAt: 1}
	r.Config.msg = &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "c"}, Labels: pod.config().Labels}
	if change != nil {
		change(r)
	}
	must(n.t, errors.Join(os.MkdirAll(n.paths.containerDir(pod.ID, id), 0o700), os.MkdirAll(n.paths.bundle(pod.ID, id), 0o700), n.paths.writeContainer(r)))
	return r
}

// hold makes the keeper hold a pod, and a container if that is not nil.
func (n *host) hold(pod *SandboxRecord, container *api.Container) {
	n.keeper.Hold(&api.Sandbox{Id: pod.ID})
	if container != nil {
		container.SandboxId = pod.ID
		n.keeper.HoldContainer(container)
	}
}

// hostPod returns the configuration of a pod on the node's network.
func hostPod(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		Labels:   map[string]string{"app": name},
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
}

// recordedNetwork attaches nothing and records the calls.
type recordedNetwork struct {
	network.Network

	mu       sync.Mutex
	refused  error    // by Attach
	stuck    error    // by Detach
	detached []string // ids of pods
}

func (n *recordedNetwork) Attach(context.Context, network.Pod) (*network.Result, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &network.Result{}, n.refused
}

func (n *recordedNetwork) Detach(_ context.Context, pod network.Pod, _ *network.Result) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.detached = append(n.detached, pod.ID)
	return n.stuck
}

func TestRecovery(t *testing.T) {
	const pod, container = "POD", "CONTAINER" // in calls, in place of the ids
	running := func(id string) *api.Container { return &api.Container{Id: id, State: api.State_RUNNING, StartedAt: 5} }
	exit := func(code int32) func(id string) *api.Container {
		return func(id string) *api.Container {
			return &api.Container{Id: id, State: api.State_EXITED, StartedAt: 5, Exit: &api.Exit{Code: code, FinishedAt: 6}}
		}
	}
	for _, c := range []struct {
		name string

		// What the last daemon and the keeper have left.
		pod       func(*SandboxRecord)                 // nil: a ready pod of this boot
		container func(*ContainerRecord)               // nil: a running one
		exit      *keeper.Exit                         // the exit record in the bundle
		podHeld   bool                                 // by the keeper
		held      func(id string) *api.Container       // nil: the keeper does not hold the container
		spoil     func(n *host, pod, container string) // changes the files before the start

		// What the next one makes of it. A state is "" if nothing is left.
		podState, containerState State
		reason                   string // of the container
		message                  string // a part of the container's message, or of why the pod is not ready
		calls                    []string
	}{
		{name: "nothing has changed", podHeld: true, held: running, podState: Ready, containerState: Running},

		// The container's state.
		{name: "it has exited, and the keeper still has it", podHeld: true, held: exit(3),
			podState: Ready, containerState: Exited, reason: "Error", calls: []string{"delete " + container}},
		{name: "it has exited, and its exit record is left", podHeld: true, exit: &keeper.Exit{Code: 0, FinishedAt: 6},
			podState: Ready, containerState: Exited, reason: "Completed"},
		{name: "it was killed for its memory limit", podHeld: true, exit: &keeper.Exit{Code: 137, FinishedAt: 6, OOMKilled: true},
			podState: Ready, containerState: Exited, reason: "OOMKilled"},
		{name: "nobody saw its end", podHeld: true,
			podState: Ready, containerState: Exited, reason: "ContainerStatusUnknown", message: "nobody saw how"},
		{name: "its start was not recorded", container: func(r *ContainerRecord) { r.State = Created }, podHeld: true, held: running,
			podState: Ready, containerState: Running},
		{name: "it waits for its start", container: func(r *ContainerRecord) { r.State = Created }, podHeld: true,
			held:     func(id string) *api.Container { return &api.Container{Id: id, State: api.State_CREATED} },
			podState: Ready, containerState: Created},
		{name: "it cannot be started, which the keeper does not know", podHeld: true,
			container: func(r *ContainerRecord) { r.State, r.StartFailure = Created, "no such program" }, podState: Ready, containerState: Created},
		{name: "the keeper has lost its stdin", podHeld: true,
			held: func(id string) *api.Container {
				return &api.Container{Id: id, State: api.State_RUNNING, Note: "its stdin is closed"}
			},
			podState: Ready, containerState: Running, message: "its stdin is closed"},
		{name: "it had exited already", container: func(r *ContainerRecord) { r.State, r.Reason = Exited, "Completed" }, podHeld: true,
			podState: Ready, containerState: Exited, reason: "Completed"},

		// Interrupted work.
		{name: "the container's creation was interrupted", container: func(r *ContainerRecord) { r.State = Creating }, podHeld: true, held: running,
			podState: Ready, calls: []string{"delete " + container}},
		{name: "the container's removal was interrupted after its record", podHeld: true,
			spoil: func(n *host, pod, container string) {
				must(n.t, errors.Join(os.Remove(n.paths.containerCopy(pod, container)), os.Remove(n.paths.containerRecord(pod, container))))
			},
			podState: Ready, calls: []string{"delete " + container}},
		{name: "the pod's creation was interrupted", pod: func(r *SandboxRecord) { r.State = Creating }, podHeld: true, held: exit(0),
			calls: []string{"delete " + container, "remove " + pod}},
		{name: "the pod's stop was interrupted", pod: func(r *SandboxRecord) { r.State = NotReady }, podHeld: true, held: running,
			podState: NotReady, containerState: Exited, reason: "Error",
			calls: []string{"signal 9 " + container, "delete " + container, "remove " + pod}},
		{name: "the pod's removal was interrupted after its record", podHeld: false,
			spoil: func(n *host, pod, _ string) {
				must(n.t, errors.Join(os.Remove(n.paths.podCopy(pod)), os.Remove(n.paths.podRecord(pod))))
			}},

		// What a pod has lost.
		{name: "the node was started anew", pod: func(r *SandboxRecord) { r.BootID = "another" },
			podState: NotReady, containerState: Exited, reason: "ContainerStatusUnknown", message: "the node was started anew",
			calls: []string{"delete " + container, "remove " + pod}},
		{name: "the keeper has lost everything", podState: NotReady, containerState: Exited, reason: "ContainerStatusUnknown",
			message: "the keeper that held its namespaces has ended", calls: []string{"delete " + container, "remove " + pod}},
		{name: "its cgroup was removed", pod: func(r *SandboxRecord) { r.CgroupParent = "/kuri-" + r.ID }, podHeld: true, held: running,
			podState: NotReady, containerState: Running, message: "its cgroup is gone"},
		{name: "its network namespace was removed", pod: func(r *SandboxRecord) { r.NetnsPath = netnsPath(r.ID) }, podHeld: true, held: running,
			podState: NotReady, containerState: Running, message: "its network namespace is gone"},

		// Lost and damaged records.
		{name: "the records are damaged, and have copies", podHeld: true, held: running,
			spoil: func(n *host, pod, container string) {
				for _, path := range []string{n.paths.podRecord(pod), n.paths.containerRecord(pod, container)} {
					must(n.t, os.WriteFile(path, []byte("{"), 0o600))
				}
			},
			podState: Ready, containerState: Running},
		{name: "the root directory is lost", podHeld: true, held: running,
			spoil:    func(n *host, pod, _ string) { must(n.t, os.RemoveAll(n.paths.podDir(pod))) },
			podState: Ready, containerState: Running},
		{name: "all records are lost", podHeld: true, held: running,
			spoil: func(n *host, pod, container string) {
				bundle := `{"ociVersion": "1.2.0", "annotations": {"io.kubernetes.cri.sandbox-name": "web"}, "linux": {"cgroupsPath": "/` + container + `"}}`
				must(n.t, errors.Join(os.RemoveAll(n.paths.podDir(pod)), os.Remove(n.paths.podCopy(pod)), os.Remove(n.paths.containerCopy(pod, container)),
					os.WriteFile(n.paths.bundle(pod, container)+"/config.json", []byte(bundle), 0o600)))
			},
			podState: Ready, containerState: Running, reason: "RecordDamaged", message: "could not be read"},
		{name: "all records of an exited container are lost", podHeld: true, held: exit(1),
			spoil: func(n *host, pod, container string) {
				must(n.t, errors.Join(os.RemoveAll(n.paths.containerDir(pod, container)), os.RemoveAll(n.paths.bundle(pod, container))))
			},
			podState: Ready, calls: []string{"delete " + container}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newHost(t)
			box := n.pod(c.pod)
			r := n.container(box, c.container)
			if c.exit != nil {
				must(t, keeper.WriteExit(n.paths.bundle(box.ID, r.ID), *c.exit))
			}
			if c.podHeld {
				n.keeper.Hold(&api.Sandbox{Id: box.ID})
			}
			if c.held != nil {
				held := c.held(r.ID)
				held.SandboxId = box.ID
				n.keeper.HoldContainer(held)
			}
			if c.spoil != nil {
				c.spoil(n, box.ID, r.ID)
			}
			for range 2 { // the second start finds nothing to do, and the same states
				n.check(n.open(), box.ID, r.ID, c.podState, c.containerState, c.reason, c.message)
				n.close()
			}
			if got := compact(n.keeper.Calls(), box.ID, r.ID); !slices.Equal(got, c.calls) {
				t.Errorf("the keeper was asked for %q, want %q", got, c.calls)
			}
		})
	}
}

// check compares the pods of a daemon with what they should be.
func (n *host) check(p *Pods, pod, container string, podState, containerState State, reason, message string) {
	n.t.Helper()
	said := ""
	if s, err := p.Sandbox(pod); podState == "" {
		if !errors.Is(err, fault.NotFound) {
			n.t.Errorf("the pod is there, %v", err)
		}
		for _, dir := range []string{n.paths.podDir(pod), n.paths.podState(pod)} {
			if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
				n.t.Errorf("%s is left", dir)
			}
		}
	} else if err != nil {
		n.t.Errorf("the pod: %v", err)
	} else if s.Record().State != podState {
		n.t.Errorf("the pod is %s (%s), want %s", s.Record().State, s.Record().Gone, podState)
	} else {
		said = s.Record().Gone
	}
	if c, err := p.Container(container); containerState == "" {
		if !errors.Is(err, fault.NotFound) {
			n.t.Errorf("the container is there, %v", err)
		}
		if _, err := os.Lstat(n.paths.containerDir(pod, container)); !errors.Is(err, os.ErrNotExist) {
			n.t.Error("the container's directory is left")
		}
	} else if err != nil {
		n.t.Errorf("the container: %v", err)
	} else {
		r := c.Record()
		if r.State != containerState || r.Reason != reason {
			n.t.Errorf("the container is %s, %q (%s), want %s, %q", r.State, r.Reason, r.Message, containerState, reason)
		}
		said += r.Message
	}
	if !strings.Contains(said, message) {
		n.t.Errorf("the reason %q does not have %q", said, message)
	}
}

// compact returns the calls without repetitions, with POD and CONTAINER in place of the ids.
func compact(calls []string, pod, container string) []string {
	var out []string
	for _, call := range calls {
		call = strings.NewReplacer(pod, "POD", container, "CONTAINER").Replace(call)
		if !slices.Contains(out, call) {
			out = append(out, call)
		}
	}
	return out
}

// An exit is recorded before the keeper may forget it, and is told to readers of events once.
func TestExitsThatTheKeeperTells(t *testing.T) {
	n := newHost(t)
	box := n.pod(nil)
	r := n.container(box, nil)
	n.hold(box, &api.Container{Id: r.ID, State: api.State_RUNNING, StartedAt: 5})
	p := n.open()
	events := p.Events()
	defer events.Close()

	n.keeper.Exit(r.ID, 7)
	got, err := events.Next(t.Context())
	must(t, err)
	if len(got) != 1 || got[0].Type != EventStopped || got[0].ID != r.ID || got[0].Containers[0].ExitCode != 7 {
		t.Fatalf("%+v", got[0])
	}
	for end := time.Now().Add(10 * time.Second); !slices.Contains(n.keeper.Calls(), "delete "+r.ID); {
		if time.Now().After(end) {
			t.Fatal("the keeper still holds the container")
		}
		time.Sleep(time.Millisecond)
	}
	read := &ContainerRecord{}
	if _, err := readRecord(n.paths.containerRecord(box.ID, r.ID), n.paths.containerCopy(box.ID, r.ID), containerFormat, read); err != nil || read.State != Exited {
		t.Errorf("the record says %s, %v", read.State, err)
	}

	n.keeper.Lose(box.ID, "its init has ended")
	got, err = events.Next(t.Context())
	must(t, err)
	if len(got) != 1 || got[0].Type != EventStopped || got[0].ID != box.ID || got[0].Sandbox.Gone != "its init has ended" {
		t.Errorf("%+v", got[0])
	}
	if _, err := p.Create(t.Context(), box.ID, &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "late"}}); !errors.Is(err, fault.Precondition) ||
		!strings.Contains(err.Error(), "its init has ended") {
		t.Errorf("a container in a pod that is not ready: %v", err)
	}
}

// The life of a pod, and the same requests again.
func TestRunStopRemove(t *testing.T) {
	n := newHost(t)
	p := n.open()
	s, err := p.Run(t.Context(), hostPod("web"), "")
	must(t, err)
	id := s.Record().ID
	if again, err := p.Run(t.Context(), hostPod("web"), ""); err != nil || again != s {
		t.Errorf("the same request again: %v, %v", again, err)
	}
	other := hostPod("web")
	other.Labels["app"] = "shop"
	if _, err := p.Run(t.Context(), other, ""); !errors.Is(err, fault.Exists) {
		t.Errorf("another configuration: %v", err)
	}
	if _, err := p.Run(t.Context(), hostPod("else"), "gvisor"); !errors.Is(err, fault.NotFound) {
		t.Errorf("an unknown handler: %v", err)
	}
	for range 2 {
		must(t, p.Stop(t.Context(), id))
	}
	if s.Record().State != NotReady {
		t.Errorf("after its stop the pod is %s", s.Record().State)
	}
	for range 2 {
		must(t, p.Remove(t.Context(), id))
	}
	n.empty()
}

// A pod whose network cannot be attached leaves nothing behind.
func TestRunIsUndone(t *testing.T) {
	n := newHost(t)
	p := n.open()
	n.network.refused = fault.New(fault.Exhausted, "no address is left")
	cfg := hostPod("web")
	cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_POD
	if _, err := p.Run(t.Context(), cfg, ""); !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "attach the network") {
		t.Errorf("%v", err)
	}
	n.empty()
	if len(n.network.detached) != 1 {
		t.Errorf("%d detached", len(n.network.detached))
	}
	if all := p.allSandboxes(); len(all) != 0 {
		t.Errorf("%d pods are listed", len(all))
	}
}

// empty checks that nothing is left of any pod.
func (n *host) empty() {
	n.t.Helper()
	if dirs := namesIn(n.paths.root+"/pods", n.paths.state+"/pods"); len(dirs) != 0 {
		n.t.Errorf("directories are left: %v", dirs)
	}
	if boxes, containers := n.keeper.Held(); len(boxes)+len(containers) != 0 {
		n.t.Errorf("the keeper still holds %v %v", boxes, containers)
	}
}

func TestListFilters(t *testing.T) {
	n := newHost(t)
	var boxes []*SandboxRecord
	var all []*ContainerRecord
	for i := range 3 {
		box := n.pod(func(r *SandboxRecord) { r.CreatedAt = int64(i + 1) })
		c := n.container(box, func(r *ContainerRecord) { r.CreatedAt = int64(i + 1) })
		held := &api.Container{Id: c.ID, State: api.State_RUNNING}
		if i == 2 {
			held.State, held.Exit = api.State_EXITED, &api.Exit{}
		}
		n.hold(box, held)
		boxes, all = append(boxes, box), append(all, c)
	}
	p := n.open()
	must(t, p.Stop(t.Context(), boxes[0].ID))
	state := func(s runtime.ContainerState) *runtime.ContainerStateValue {
		return &runtime.ContainerStateValue{State: s}
	}
	for _, c := range []struct {
		filter ContainerFilter
		want   []int // newest first
	}{
		{ContainerFilter{}, []int{2, 1, 0}},
		{ContainerFilter{ID: all[1].ID}, []int{1}},
		{ContainerFilter{ID: all[1].ID[:12]}, []int{1}},
		{ContainerFilter{ID: "0000"}, nil},
		{ContainerFilter{SandboxID: boxes[2].ID[:12]}, []int{2}},
		{ContainerFilter{SandboxID: boxes[2].ID, ID: all[1].ID}, nil},
		{ContainerFilter{State: state(runtime.ContainerState_CONTAINER_RUNNING)}, []int{1}},
		{ContainerFilter{State: state(runtime.ContainerState_CONTAINER_EXITED)}, []int{2, 0}},
		{ContainerFilter{Labels: boxes[1].config().Labels}, []int{1}},
		{ContainerFilter{Labels: map[string]string{"app": "none"}}, nil},
	} {
		list, err := p.ListContainers(c.filter)
		must(t, err)
		var got []int
		for _, l := range list {
			got = append(got, slices.IndexFunc(all, func(r *ContainerRecord) bool { return r.ID == l.Record().ID }))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.filter, got, c.want)
		}
	}
	for _, c := range []struct {
		filter *runtime.PodSandboxFilter
		want   []int
	}{
		{nil, []int{2, 1, 0}},
		{&runtime.PodSandboxFilter{Id: boxes[1].ID[:12]}, []int{1}},
		{&runtime.PodSandboxFilter{Id: "0000"}, nil},
		{&runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}}, []int{0}},
		{&runtime.PodSandboxFilter{LabelSelector: boxes[2].config().Labels}, []int{2}},
		{&runtime.PodSandboxFilter{Id: boxes[1].ID, LabelSelector: boxes[2].config().Labels}, nil},
	} {
		list, err := p.Sandboxes(c.filter)
		must(t, err)
		var got []int
		for _, s := range list {
			got = append(got, slices.IndexFunc(boxes, func(r *SandboxRecord) bool { return r.ID == s.Record().ID }))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.filter, got, c.want)
		}
	}
}
