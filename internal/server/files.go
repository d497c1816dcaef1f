package server

import (
	"context"

	"google.golang.org/grpc"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/internal/pod"
)

// filesService is kuri.v1.Files.
type filesService struct {
	kuriv1.UnimplementedFilesServer
	pods *pod.Pods
}

func (s *filesService) Pack(req *kuriv1.PackRequest, stream grpc.ServerStreamingServer[kuriv1.PackChunk]) error {
	return s.pods.PackFiles(stream.Context(), req.GetContainerId(), req.GetDirectory(), req.GetName(), packStream{stream})
}

// packStream sends each write as a message.
type packStream struct {
	stream grpc.ServerStreamingServer[kuriv1.PackChunk]
}

func (w packStream) Write(p []byte) (int, error) {
	if err := w.stream.Send(&kuriv1.PackChunk{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *filesService) Unpack(stream grpc.ClientStreamingServer[kuriv1.UnpackChunk, kuriv1.UnpackResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	r := &unpackStream{stream: stream, left: first.GetData()}
	if err := s.pods.UnpackFiles(stream.Context(), first.GetContainerId(), first.GetDirectory(), r); err != nil {
		return err
	}
	return stream.SendAndClose(&kuriv1.UnpackResponse{})
}

// unpackStream reads the data of the messages received.
type unpackStream struct {
	stream grpc.ClientStreamingServer[kuriv1.UnpackChunk, kuriv1.UnpackResponse]
	left   []byte
}

func (r *unpackStream) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		chunk, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.left = chunk.GetData()
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func (s *filesService) IsDirectory(ctx context.Context,
	req *kuriv1.IsDirectoryRequest) (*kuriv1.IsDirectoryResponse, error) {
	is, err := s.pods.IsDirectory(ctx, req.GetContainerId(), req.GetPath())
	if err != nil {
		return nil, err
	}
	return &kuriv1.IsDirectoryResponse{Directory: is}, nil
}
