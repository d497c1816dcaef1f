package pod

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// reconnectLimit bounds how long a runtime may be unreachable while a container is followed, as
// during an upgrade.
const reconnectLimit = 30 * time.Second

// StatusThroughRestarts returns a container's status. It retries while the connection to the
// runtime is broken.
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

// The intervals of the polls for a container's exit.
const (
	firstAsk = 10 * time.Millisecond
	lastAsk  = 500 * time.Millisecond
)

// WaitExit waits until a container has exited and returns its status.
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
