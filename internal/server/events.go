package server

import (
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/pod"
)

var eventTypes = map[pod.EventType]runtime.ContainerEventType{
	pod.EventCreated: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
	pod.EventStarted: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
	pod.EventStopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	pod.EventDeleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// GetContainerEvents tells what happens from now on, to containers and to sandboxes: a kubelet forgets a pod when it is
// told of its sandbox's removal. It ends when the client has had enough, or has missed events.
func (s *runtimeService) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	events := s.Pods.Events()
	defer events.Close()
	// The client may know now that it is heard: what it does next it will be told of.
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

func eventMessage(e *pod.Event) *runtime.ContainerEventResponse {
	return &runtime.ContainerEventResponse{
		ContainerId:        e.ID,
		ContainerEventType: eventTypes[e.Type],
		CreatedAt:          e.At,
		PodSandboxStatus:   e.Sandbox.Status(),
		ContainersStatuses: statuses(e.Snapshot),
	}
}

// statuses are those of a pod's containers.
func statuses(s *pod.Snapshot) []*runtime.ContainerStatus {
	out := make([]*runtime.ContainerStatus, len(s.Containers))
	for i, r := range s.Containers {
		out[i] = r.Status()
	}
	return out
}
