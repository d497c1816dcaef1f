// Package keepertest has a keeper without processes, for tests of the keeper's clients that need
// neither root nor a kernel that can do everything. It speaks the keeper's protocol over a real
// socket and keeps its pods and containers in memory.
//
// It is no substitute for the stories in test/e2e: it creates no namespace and runs no program.
package keepertest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// Keeper is a keeper in memory. It is safe for concurrent use.
type Keeper struct {
	api.KeeperService // nil: a verb that is not implemented here panics, which ttrpc reports as an error

	mu         sync.Mutex // guards all below
	sandboxes  map[string]*api.Sandbox
	containers map[string]*api.Container
	events     []*api.Event
	more       chan struct{} // closed and replaced with each event
	calls      []string

	closed chan struct{}
}

// Serve returns a keeper that serves the state directory until the test ends.
func Serve(t testing.TB, stateDir string) *Keeper {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(stateDir, "keeper.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{
		sandboxes: make(map[string]*api.Sandbox), containers: make(map[string]*api.Container),
		more: make(chan struct{}), closed: make(chan struct{}),
	}
	api.RegisterKeeperService(srv, k)
	var served sync.WaitGroup
	served.Go(func() { _ = srv.Serve(context.Background(), l) })
	t.Cleanup(func() {
		close(k.closed)
		srv.Close()
		served.Wait()
	})
	return k
}

// Hold makes the keeper hold pods, as if an earlier daemon had created them.
func (k *Keeper) Hold(sandboxes ...*api.Sandbox) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range sandboxes {
		k.sandboxes[s.Id] = s
	}
}

// HoldContainer makes the keeper hold containers, as if an earlier daemon had created them.
func (k *Keeper) HoldContainer(containers ...*api.Container) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range containers {
		k.containers[c.Id] = c
	}
}

// Exit ends a container with an exit code and tells it as an event.
func (k *Keeper) Exit(id string, code int32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.containers[id]
	c.State, c.Exit = api.State_EXITED, &api.Exit{Code: code, FinishedAt: time.Now().UnixNano()}
	k.tell(&api.Event{Container: proto.CloneOf(c)})
}

// Lose tells that a pod's init has ended, for the reason why.
func (k *Keeper) Lose(id, why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.sandboxes[id]
	s.Gone = why
	k.tell(&api.Event{Sandbox: proto.CloneOf(s)})
}

// tell logs an event. The caller holds mu.
func (k *Keeper) tell(e *api.Event) {
	e.Seq = uint64(len(k.events)) + 1
	k.events = append(k.events, e)
	close(k.more)
	k.more = make(chan struct{})
}

// Calls returns the calls that have changed something, in their order: "delete ID", "remove ID", "signal N ID", …
func (k *Keeper) Calls() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.calls)
}

// Held returns the ids of the pods and the containers that the keeper holds, sorted.
func (k *Keeper) Held() (sandboxes, containers []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.sandboxes)), slices.Sorted(maps.Keys(k.containers))
}

// The rest is the keeper's protocol, see keeper.proto.

func (k *Keeper) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return &api.InfoResponse{Protocol: keeper.Protocol, Version: "test", LastEvent: uint64(len(k.events))}, nil
}

func (k *Keeper) Probe(context.Context, *api.ProbeRequest) (*api.ProbeResponse, error) {
	return &api.ProbeResponse{}, nil
}

func (k *Keeper) List(context.Context, *api.ListRequest) (*api.ListResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := &api.ListResponse{}
	for _, s := range k.sandboxes {
		list.Sandboxes = append(list.Sandboxes, proto.CloneOf(s))
	}
	for _, c := range k.containers {
		list.Containers = append(list.Containers, proto.CloneOf(c))
	}
	return list, nil
}

func (k *Keeper) CreateSandbox(_ context.Context, req *api.CreateSandboxRequest) (*api.Sandbox, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "create "+req.Id)
	if k.sandboxes[req.Id] == nil {
		k.sandboxes[req.Id] = &api.Sandbox{Id: req.Id, Namespaces: map[string]string{"ipc": "/proc/self/ns/ipc"}}
	}
	return proto.CloneOf(k.sandboxes[req.Id]), nil
}

func (k *Keeper) RemoveSandbox(_ context.Context, req *api.RemoveSandboxRequest) (*api.RemoveSandboxResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "remove "+req.Id)
	for _, c := range k.containers {
		if c.SandboxId == req.Id {
			return nil, status.Errorf(codes.FailedPrecondition, "pod %s has container %s", req.Id, c.Id)
		}
	}
	delete(k.sandboxes, req.Id)
	return &api.RemoveSandboxResponse{}, nil
}

func (k *Keeper) Start(_ context.Context, req *api.StartRequest) (*api.Container, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "start "+req.Id)
	c := k.containers[req.Id]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "there is no container %s", req.Id)
	}
	c.State, c.StartedAt = api.State_RUNNING, time.Now().UnixNano()
	return proto.CloneOf(c), nil
}

// Signal ends the container if the signal is SIGKILL.
func (k *Keeper) Signal(_ context.Context, req *api.SignalRequest) (*api.SignalResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, fmt.Sprintf("signal %d %s", req.Signal, req.Id))
	c := k.containers[req.Id]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "there is no container %s", req.Id)
	}
	if req.Signal == 9 && c.State != api.State_EXITED {
		c.State, c.Exit = api.State_EXITED, &api.Exit{Code: 137, FinishedAt: time.Now().UnixNano()}
		k.tell(&api.Event{Container: proto.CloneOf(c)})
	}
	return &api.SignalResponse{}, nil
}

func (k *Keeper) Delete(_ context.Context, req *api.DeleteRequest) (*api.DeleteResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "delete "+req.Id)
	delete(k.containers, req.Id)
	return &api.DeleteResponse{}, nil
}

func (k *Keeper) Events(ctx context.Context, req *api.EventsRequest) (*api.EventsResponse, error) {
	timeout := time.After(time.Duration(req.WaitMs) * time.Millisecond)
	for {
		k.mu.Lock()
		events, more := k.events[req.After:], k.more
		k.mu.Unlock()
		if len(events) > 0 {
			return &api.EventsResponse{Events: events}, nil
		}
		select {
		case <-more:
		case <-timeout:
			return &api.EventsResponse{}, nil
		case <-k.closed:
			return &api.EventsResponse{}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
