package client

import (
	"context"
	"path"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// deadlines bounds the unary calls that come without a deadline.
func deadlines(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
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

// limitOf returns how long a call may take, 0 for as long as it likes. The rules are the kubelet's.
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

// seconds turns a grace period of the API, in seconds, into a duration that cannot overflow.
func seconds(n int64) time.Duration {
	const year = 365 * 24 * 60 * 60
	return time.Duration(min(max(n, 0), year)) * time.Second
}
