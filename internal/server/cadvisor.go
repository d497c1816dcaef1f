package server

import (
	"context"
	"maps"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/pod"
)

// cAdvisor, which is part of every kubelet, asks a containerd at a fixed socket for the labels of
// the cgroups that it finds: those with 64 hex digits in their names. It makes three calls of
// containerd's API, and they are answered here, at the socket that the configuration says. Their
// messages are a few fields each, encoded by hand: the numbers are those of containerd's protos
// (services/version/v1, services/containers/v1, services/tasks/v1, types/task).

// cadvisorService answers the calls.
type cadvisorService struct {
	pods    *pod.Pods
	version string
}

// The states of a task.
const (
	taskCreated = 1
	taskRunning = 2
	taskStopped = 3
)

func (s *cadvisorService) register(g *grpc.Server) {
	for service, method := range map[string]struct {
		name   string
		answer func(id string) (wireAnswer, error)
	}{
		"containerd.services.version.v1.Version":       {"Version", s.versionAnswer},
		"containerd.services.containers.v1.Containers": {"Get", s.container},
		"containerd.services.tasks.v1.Tasks":           {"Get", s.task},
	} {
		g.RegisterService(&grpc.ServiceDesc{
			ServiceName: service,
			HandlerType: (*any)(nil),
			Methods: []grpc.MethodDesc{{
				MethodName: method.name,
				Handler: func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
					req := &firstString{}
					if err := decode(req); err != nil {
						return nil, err
					}
					call := func(_ context.Context, req any) (any, error) { return method.answer(req.(*firstString).value) }
					return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + service + "/" + method.name},
						call)
				},
			}},
		}, s)
	}
}

// firstString is a request of which the string in field 1 counts.
type firstString struct{ value string }

func (f *firstString) decode(body []byte) error {
	for len(body) > 0 {
		number, kind, n := protowire.ConsumeField(body)
		if n < 0 {
			return fault.New(fault.Invalid, "decode the request: %w", protowire.ParseError(n))
		}
		if number == 1 && kind == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(body)
			value, _ := protowire.ConsumeBytes(body[tag:n])
			f.value = string(value)
		}
		body = body[n:]
	}
	return nil
}

// wireAnswer is an encoded message.
type wireAnswer []byte

func (w wireAnswer) encode() mem.BufferSlice { return mem.BufferSlice{mem.SliceBuffer(w)} }

func (w wireAnswer) text(number protowire.Number, s string) wireAnswer {
	return protowire.AppendString(protowire.AppendTag(w, number, protowire.BytesType), s)
}

func (w wireAnswer) message(number protowire.Number, inner wireAnswer) wireAnswer {
	return protowire.AppendBytes(protowire.AppendTag(w, number, protowire.BytesType), inner)
}

func (w wireAnswer) number(number protowire.Number, n uint64) wireAnswer {
	return protowire.AppendVarint(protowire.AppendTag(w, number, protowire.VarintType), n)
}

func (s *cadvisorService) versionAnswer(string) (wireAnswer, error) {
	return wireAnswer(nil).text(1, s.version).text(2, "kuri"), nil
}

// find returns a container by its whole id.
func (s *cadvisorService) find(id string) (*pod.Container, error) {
	c, err := s.pods.Container(id)
	if err != nil {
		return nil, err
	}
	if c.Record().ID != id {
		return nil, fault.New(fault.NotFound, "there is no container %q", id)
	}
	return c, nil
}

// ociSpec is the OCI spec that cAdvisor gets. It may read the environment there, which is none of its business.
const ociSpec = `{"ociVersion":"1.2.0","process":{"env":[],"cwd":"/"}}`

// container answers with a GetContainerResponse. cAdvisor asks as soon as it sees the cgroup, which
// is before the container is created, and ignores the container for good if the answer is an error.
func (s *cadvisorService) container(id string) (wireAnswer, error) {
	r := s.pods.Coming(id)
	if r == nil {
		c, err := s.find(id)
		if err != nil {
			return nil, err
		}
		r = c.Record()
	}
	labels := maps.Clone(r.Config.Message().GetLabels())
	if labels == nil {
		labels = make(map[string]string)
	}
	// cAdvisor reads the network of the containers that are of this kind; without pause containers one of the pod's stands
	// for it.
	labels["io.cri-containerd.kind"] = "container"
	if s.standsForPod(r) {
		labels["io.cri-containerd.kind"] = "sandbox"
	}
	out := wireAnswer(nil).text(1, id)
	for k, v := range labels {
		out = out.message(2, wireAnswer(nil).text(1, k).text(2, v))
	}
	out = out.text(3, r.ImageName)
	out = out.message(4, wireAnswer(nil).text(1, "kuri"))
	out = out.message(5, wireAnswer(nil).text(1, "types.containerd.io/opencontainers/runtime-spec/1/Spec").text(2,
		ociSpec))
	return wireAnswer(nil).message(1, out), nil
}

// standsForPod reports whether a container is the one of its pod whose network is read: the oldest
// that runs, or one that is being created where none does.
func (s *cadvisorService) standsForPod(r *pod.ContainerRecord) bool {
	snap, err := s.pods.Snapshot(r.SandboxID)
	if err != nil || snap.Sandbox.NetnsPath == "" {
		return false
	}
	oldest := ""
	for _, c := range snap.Containers { // newest first
		if c.State == pod.Running || c.State == pod.Created {
			oldest = c.ID
		}
	}
	return oldest == r.ID || oldest == ""
}

// task answers with a tasks.GetResponse.
func (s *cadvisorService) task(id string) (wireAnswer, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, err
	}
	r := c.Record()
	out := wireAnswer(nil).text(1, id).text(2, id)
	switch r.State {
	case pod.Running:
		out = out.number(3, uint64(r.Pid)).number(4, taskRunning)
	case pod.Created:
		out = out.number(3, uint64(r.Pid)).number(4, taskCreated)
	case pod.Exited:
		out = out.number(4, taskStopped).number(9, uint64(uint32(r.ExitCode)))
	}
	return wireAnswer(nil).message(1, out), nil
}
