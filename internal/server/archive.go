package server

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/pod"
)

// archiveService is kuri.v1.Images: operations on images that the CRI lacks.
type archiveService struct {
	kuriv1.UnimplementedImagesServer
	store *image.Store
	pods  *pod.Pods
}

func (s *archiveService) Load(stream grpc.ClientStreamingServer[kuriv1.LoadChunk, kuriv1.LoadResponse]) error {
	r := &chunks{stream: stream}
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	r.left = first.GetData()
	loaded, err := s.store.Load(stream.Context(), r, first.GetName())
	if err != nil {
		return err
	}
	resp := &kuriv1.LoadResponse{}
	for _, img := range loaded {
		l := &kuriv1.LoadedImage{Id: img.ID, References: img.References}
		if other := img.MadeFor(); other != "" {
			l.Warnings = append(l.Warnings,
				fmt.Sprintf("the image says that it is made for %s, which this node is not: it may not run", other))
		}
		resp.Images = append(resp.Images, l)
	}
	return stream.SendAndClose(resp)
}

// chunks reads an archive from the stream that brings it.
type chunks struct {
	stream grpc.ClientStreamingServer[kuriv1.LoadChunk, kuriv1.LoadResponse]
	left   []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.left) == 0 {
		chunk, err := c.stream.Recv()
		if err != nil {
			return 0, err
		}
		c.left = chunk.GetData()
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

func (s *archiveService) WatchPull(req *kuriv1.WatchPullRequest,
	stream grpc.ServerStreamingServer[kuriv1.PullProgress]) error {
	handler, err := s.pods.Handler(req.GetRuntimeHandler())
	if err != nil {
		return err
	}
	progress, err := s.store.WatchPull(stream.Context(), req.GetImage(), handler.Platform)
	if err != nil {
		return err
	}
	for now := range progress {
		if err := stream.Send(pullProgress(now)); err != nil {
			return err
		}
	}
	return stream.Context().Err()
}

func pullProgress(now image.Progress) *kuriv1.PullProgress {
	p := &kuriv1.PullProgress{
		Image: now.Image, Done: now.Done, ImageId: now.ID,
		Phase:     pullPhases[now.Phase],
		Timestamp: now.At.UnixNano(), StartedAt: now.Started.UnixNano(),
	}
	if now.Err != nil {
		p.Error = now.Err.Error()
	}
	for _, l := range now.Layers {
		p.Layers = append(p.Layers, &kuriv1.LayerProgress{
			Digest: l.Digest, Size: l.Size, Fetched: l.Fetched, Done: l.Done, Phase: layerPhases[l.Phase],
		})
	}
	return p
}

// The names of the phases in the protocol.
var (
	pullPhases = [...]kuriv1.PullPhase{
		image.Resolving: kuriv1.PullPhase_PULL_PHASE_RESOLVING,
		image.Fetching:  kuriv1.PullPhase_PULL_PHASE_LAYERS,
		image.Storing:   kuriv1.PullPhase_PULL_PHASE_STORING,
		image.Ended:     kuriv1.PullPhase_PULL_PHASE_ENDED,
	}
	layerPhases = [...]kuriv1.LayerPhase{
		image.LayerWaiting:   kuriv1.LayerPhase_LAYER_PHASE_WAITING,
		image.LayerFetching:  kuriv1.LayerPhase_LAYER_PHASE_FETCHING,
		image.LayerUnpacking: kuriv1.LayerPhase_LAYER_PHASE_UNPACKING,
		image.LayerReady:     kuriv1.LayerPhase_LAYER_PHASE_READY,
		image.LayerPresent:   kuriv1.LayerPhase_LAYER_PHASE_PRESENT,
	}
)
