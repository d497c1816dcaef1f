package server

import (
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents streams the events of containers and of sandboxes from now on: a kubelet
// forgets a pod at the event of its sandbox's removal. The stream ends when the client closes it,
// or has missed events.
func (s *runtimeService) GetContainerEvents(_ *runtime.GetEventsRequest,
	stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	events := s.Pods.Events()
	defer events.Close()
	// The header tells the client that its subscription stands: it gets the events of everything that it does next.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		batch, err := events.Next(stream.Context())
		if err != nil {
			return err
		}
		for _, e := range batch {
			if err := stream.Send(eventMessage(e)); err != nil {
				return err
			}
		}
	}
}
