package client

import (
	"context"
	"path"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// deadlines sets deadlines for unary calls without one.
func deadlines(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker,
		opts ...grpc.CallOption) error {
		if _, has := ctx.Deadline(); !has {
			if limit := limitOf(path.Base(method), req, timeout); limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			}
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
}

// limitOf returns the limit of a call by the kubelet's rules, 0 for none.
func limitOf(method string, req any, timeout time.Duration) time.Duration {
	if timeout <= 0 {
		return 0
	}
	switch method {
	case "PullImage", "CheckpointContainer":
		return 0
	case "RunPodSandbox":
		return 2 * timeout
	case "StopContainer":
		if r, ok := req.(*runtimeapi.StopContainerRequest); ok {
			return timeout + seconds(r.GetTimeout())
		}
	case "ExecSync":
		if r, ok := req.(*runtimeapi.ExecSyncRequest); ok {
			if r.GetTimeout() <= 0 {
				return 0
			}
			return timeout + seconds(r.GetTimeout())
		}
	}
	return timeout
}

// seconds converts a timeout of the API to a duration, without overflow.
func seconds(n int64) time.Duration {
	const year = 365 * 24 * 60 * 60
	return time.Duration(min(max(n, 0), year)) * time.Second
}
