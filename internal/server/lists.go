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

// Each list has two RPCs: List… answers with all of it, Stream… with messages of some. Both take it
// from one view of all pods, before the first message is sent.

// Bounds of one message of a stream. A kubelet takes up to 16 MiB.
const (
	chunkItems = 500
	chunkBytes = 1 << 20 // exceeded by one item
)

// inChunks sends items, each once and in order; size estimates the bytes of one on the wire.
func inChunks[T any](items []T, size func(T) int, send func([]T) error) error {
	begin, bytes := 0, 0
	for i, item := range items {
		bytes += size(item)
		if bytes >= chunkBytes || i+1-begin == chunkItems || i+1 == len(items) {
			if err := send(items[begin : i+1]); err != nil {
				return err
			}
			begin, bytes = i+1, 0
		}
	}
	return nil
}

// metadataItem is an item with labels and annotations, which make up most of its size.
type metadataItem interface {
	GetLabels() map[string]string
	GetAnnotations() map[string]string
}

// sizeOf estimates the bytes of an item on the wire.
func sizeOf(d metadataItem) int {
	size := 512
	for k, v := range d.GetLabels() {
		size += len(k) + len(v) + 8
	}
	for k, v := range d.GetAnnotations() {
		size += len(k) + len(v) + 8
	}
	return size
}

// listAnswer is a message with a list in field 1 and nothing else, as the answers of lists and
// streams are: its items, each encoded already.
type listAnswer [][]byte

func (a listAnswer) encode() mem.BufferSlice {
	size := 0
	for _, item := range a {
		size += protowire.SizeTag(1) + protowire.SizeBytes(len(item))
	}
	out := make([]byte, 0, size)
	for _, item := range a {
		out = protowire.AppendBytes(protowire.AppendTag(out, 1, protowire.BytesType), item)
	}
	return mem.BufferSlice{mem.SliceBuffer(out)}
}

func encodedSize(item []byte) int { return len(item) }

func (s *runtimeService) listPodSandbox(_ context.Context, in any) (any, error) {
	items, err := s.Pods.EncodedSandboxes(in.(*runtime.ListPodSandboxRequest).GetFilter(), sandboxItem)
	return listAnswer(items), err
}

func (s *runtimeService) StreamPodSandboxes(req *runtime.StreamPodSandboxesRequest,
	stream grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]) error {
	items, err := s.Pods.EncodedSandboxes(req.GetFilter(), sandboxItem)
	if err != nil {
		return err
	}
	return inChunks(items, encodedSize, func(some [][]byte) error { return stream.SendMsg(listAnswer(some)) })
}

func containerFilter(f *runtime.ContainerFilter) pod.ContainerFilter {
	return pod.ContainerFilter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), State: f.GetState(),
		Labels: f.GetLabelSelector()}
}

func (s *runtimeService) listContainers(_ context.Context, in any) (any, error) {
	items, err := s.Pods.EncodedContainers(containerFilter(in.(*runtime.ListContainersRequest).GetFilter()), containerItem)
	return listAnswer(items), err
}

func (s *runtimeService) StreamContainers(req *runtime.StreamContainersRequest,
	stream grpc.ServerStreamingServer[runtime.StreamContainersResponse]) error {
	items, err := s.Pods.EncodedContainers(containerFilter(req.GetFilter()), containerItem)
	if err != nil {
		return err
	}
	return inChunks(items, encodedSize, func(some [][]byte) error { return stream.SendMsg(listAnswer(some)) })
}

func (s *runtimeService) containerStats(ctx context.Context,
	f *runtime.ContainerStatsFilter) ([]*runtime.ContainerStats, error) {
	list, err := s.Pods.ListContainers(pod.ContainerFilter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(),
		Labels: f.GetLabelSelector()})
	if err != nil {
		return nil, err
	}
	// One that has exited uses nothing any more, and the peers leave it out.
	list = slices.DeleteFunc(list, func(c *pod.Container) bool { return c.Record().State == pod.Exited })
	used, err := s.Pods.ContainerUsages(ctx, list...)
	return encodeAll(used, containerStats), err
}

func (s *runtimeService) ListContainerStats(ctx context.Context,
	req *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	items, err := s.containerStats(ctx, req.GetFilter())
	return &runtime.ListContainerStatsResponse{Stats: items}, err
}

func (s *runtimeService) StreamContainerStats(req *runtime.StreamContainerStatsRequest,
	stream grpc.ServerStreamingServer[runtime.StreamContainerStatsResponse]) error {
	items, err := s.containerStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return inChunks(items, containerStatsSize, func(some []*runtime.ContainerStats) error {
		return stream.Send(&runtime.StreamContainerStatsResponse{ContainerStats: some})
	})
}

func containerStatsSize(i *runtime.ContainerStats) int { return sizeOf(i.GetAttributes()) }

func (s *runtimeService) sandboxStats(ctx context.Context,
	f *runtime.PodSandboxStatsFilter) ([]*runtime.PodSandboxStats, error) {
	// Those that are being stopped, or wait to be removed, still use something.
	sandboxes, err := s.Pods.Sandboxes(&runtime.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()})
	if err != nil {
		return nil, err
	}
	used, err := s.Pods.SandboxUsages(ctx, sandboxes...)
	return encodeAll(used, sandboxStats), err
}

func (s *runtimeService) ListPodSandboxStats(ctx context.Context,
	req *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	items, err := s.sandboxStats(ctx, req.GetFilter())
	return &runtime.ListPodSandboxStatsResponse{Stats: items}, err
}

func (s *runtimeService) StreamPodSandboxStats(req *runtime.StreamPodSandboxStatsRequest,
	stream grpc.ServerStreamingServer[runtime.StreamPodSandboxStatsResponse]) error {
	items, err := s.sandboxStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	size := func(i *runtime.PodSandboxStats) int {
		size := sizeOf(i.GetAttributes())
		for _, c := range i.GetLinux().GetContainers() {
			size += containerStatsSize(c)
		}
		return size
	}
	return inChunks(items, size, func(some []*runtime.PodSandboxStats) error {
		return stream.Send(&runtime.StreamPodSandboxStatsResponse{PodSandboxStats: some})
	})
}

func (s *imageService) images(f *runtime.ImageFilter) ([]*runtime.Image, error) {
	if f.GetImage().GetImage() != "" {
		img, handler, err := s.find(f.GetImage())
		if img == nil || err != nil {
			return nil, err
		}
		return []*runtime.Image{criImage(img, handler)}, nil
	}
	var items []*runtime.Image
	for _, img := range s.store.List() {
		items = append(items, criImage(img, s.handlerOf(img)))
	}
	return items, nil
}

func (s *imageService) ListImages(_ context.Context,
	req *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	items, err := s.images(req.GetFilter())
	return &runtime.ListImagesResponse{Images: items}, err
}

func (s *imageService) StreamImages(req *runtime.StreamImagesRequest,
	stream grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	items, err := s.images(req.GetFilter())
	if err != nil {
		return err
	}
	size := func(i *runtime.Image) int {
		size := 512
		for _, ref := range slices.Concat(i.GetRepoTags(), i.GetRepoDigests()) {
			size += len(ref)
		}
		return size
	}
	return inChunks(items, size, func(some []*runtime.Image) error {
		return stream.Send(&runtime.StreamImagesResponse{Images: some})
	})
}
