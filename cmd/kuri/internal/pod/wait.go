package pod

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// reconnectLimit is how long a runtime may be unreachable, as during a restart or an upgrade, while a container is followed.
const reconnectLimit = 30 * time.Second

// StatusThroughRestarts asks for a container's status, and asks again while the connection to the runtime is broken.
func StatusThroughRestarts(ctx context.Context, rt *client.Runtime, id string) (*runtimeapi.ContainerStatus, error) {
	for begun := time.Now(); ; {
		st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err == nil || !cli.ConnectionLost(err) || time.Since(begun) > reconnectLimit {
			return st.GetStatus(), err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lastAsk):
		}
	}
}

// How often a container is asked for while its end is waited for.
const (
	firstAsk = 10 * time.Millisecond
	lastAsk  = 500 * time.Millisecond
)

// WaitExit waits for the end of a container and returns its status then.
func WaitExit(ctx context.Context, rt *client.Runtime, id string) (*runtimeapi.ContainerStatus, error) {
	for pause := firstAsk; ; pause = min(2*pause, lastAsk) {
		st, err := StatusThroughRestarts(ctx, rt, id)
		if err != nil {
			return nil, err
		}
		switch st.GetState() {
		case runtimeapi.ContainerState_CONTAINER_EXITED:
			return st, nil
		case runtimeapi.ContainerState_CONTAINER_UNKNOWN:
			return nil, fmt.Errorf("the runtime does not know its state: %s", st.GetMessage())
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}
