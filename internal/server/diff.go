package server

import (
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/rootfs"
)

// diffBatch is how many changes one message has.
const diffBatch = 256

func (s *archiveService) Diff(req *kuriv1.DiffRequest, stream grpc.ServerStreamingServer[kuriv1.DiffResponse]) error {
	if req.GetImage() == "" {
		return fault.New(fault.Invalid, "image: it is empty, an image's reference or id is needed")
	}
	kinds := map[rootfs.ChangeKind]kuriv1.FileChange_Kind{
		rootfs.Added: kuriv1.FileChange_ADDED, rootfs.Changed: kuriv1.FileChange_CHANGED, rootfs.Deleted: kuriv1.FileChange_DELETED,
	}
	batch := &kuriv1.DiffResponse{}
	send := func() error {
		if len(batch.Changes) == 0 {
			return nil
		}
		full := batch
		batch = &kuriv1.DiffResponse{}
		return stream.Send(full)
	}
	err := s.store.Diff(stream.Context(), req.GetImage(), func(layer digest.Digest, c rootfs.Change) error {
		if batch.Layer != layer.String() || len(batch.Changes) >= diffBatch {
			if err := send(); err != nil {
				return err
			}
			batch.Layer = layer.String()
		}
		batch.Changes = append(batch.Changes, &kuriv1.FileChange{Kind: kinds[c.Kind], Path: []byte(c.Path), Size: c.Size})
		return nil
	})
	if err != nil {
		return err
	}
	return send()
}
