package server

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/pod"
)

// ownAnswers returns the service with handlers of ours for the methods whose answers encode themselves.
func ownAnswers(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	out := *desc
	out.Methods = slices.Clone(desc.Methods)
	for i := range out.Methods {
		switch m := &out.Methods[i]; m.MethodName {
		case "ExecSync":
			m.Handler = handler[runtime.ExecSyncRequest]((*runtimeService).execSync)
		case "ListPodSandbox":
			m.Handler = handler[runtime.ListPodSandboxRequest]((*runtimeService).listPodSandbox)
		case "ListContainers":
			m.Handler = handler[runtime.ListContainersRequest]((*runtimeService).listContainers)
		case "ListPodSandboxMetrics":
			m.Handler = handler[runtime.ListPodSandboxMetricsRequest]((*runtimeService).listPodSandboxMetrics)
		}
	}
	return &out
}

// handler makes a method of the service one that gRPC calls.
func handler[Q any](method func(s *runtimeService, ctx context.Context, req any) (any, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		req := new(Q)
		if err := decode(req); err != nil {
			return nil, err
		}
		name, _ := grpc.Method(ctx)
		call := func(ctx context.Context, req any) (any, error) { return method(srv.(*runtimeService), ctx, req) }
		return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: name}, call)
	}
}

func (s *runtimeService) execSync(ctx context.Context, in any) (any, error) {
	req := in.(*runtime.ExecSyncRequest)
	out, err := s.Pods.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), seconds(req.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return (*execAnswer)(out), nil
}

// execAnswer is an ExecSyncResponse that is sent from the memory in which the output was collected, up to 32 MiB, which
// counts as in use until it is sent.
type execAnswer pod.Output

// encode returns the message on the wire. The memory is given back as the transport frees the buffers.
func (a *execAnswer) encode() mem.BufferSlice {
	var out mem.BufferSlice
	field := func(number protowire.Number, pieces []*pod.Piece) {
		size := 0
		for _, p := range pieces {
			size += len(p.Bytes)
		}
		if size == 0 {
			return
		}
		out = append(out, mem.SliceBuffer(protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.BytesType),
			uint64(size))))
		for _, p := range pieces {
			out = append(out, mem.NewBuffer(&p.Bytes, piecePool{p}))
		}
	}
	field(1, a.Stdout)
	field(2, a.Stderr)
	if a.Code != 0 {
		code := protowire.AppendTag(nil, 3, protowire.VarintType)
		out = append(out, mem.SliceBuffer(protowire.AppendVarint(code, uint64(int64(a.Code)))))
	}
	return out
}

// piecePool is the pool that a piece's memory goes back to.
type piecePool struct{ piece *pod.Piece }

func (f piecePool) Get(length int) *[]byte { b := make([]byte, length); return &b }
func (f piecePool) Put(*[]byte)            { f.piece.Free() }
