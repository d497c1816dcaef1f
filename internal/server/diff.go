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
	b := &changeBatches{stream: stream, next: &kuriv1.DiffResponse{}}
	var err error
	if other := req.GetOther(); other != "" {
		err = s.store.Compare(stream.Context(), req.GetImage(), other, func(c rootfs.Change) error { return b.add("", c) })
	} else {
		err = s.store.Diff(stream.Context(), req.GetImage(), b.add)
	}
	if err != nil {
		return err
	}
	return b.send()
}

// changeBatches sends changes, many in one message, each message of one layer.
type changeBatches struct {
	stream grpc.ServerStreamingServer[kuriv1.DiffResponse]
	next   *kuriv1.DiffResponse
}

func (b *changeBatches) add(layer digest.Digest, c rootfs.Change) error {
	if b.next.Layer != layer.String() || len(b.next.Changes) >= diffBatch {
		if err := b.send(); err != nil {
			return err
		}
		b.next.Layer = layer.String()
	}
	b.next.Changes = append(b.next.Changes, &kuriv1.FileChange{Kind: changeKind(c.Kind), Path: []byte(c.Path),
		Size: c.Size, OldSize: c.OldSize})
	return nil
}

// send sends the buffered entries, and begins the next message.
func (b *changeBatches) send() error {
	full := b.next
	b.next = &kuriv1.DiffResponse{}
	if len(full.Changes) == 0 {
		return nil
	}
	return b.stream.Send(full)
}

func changeKind(k rootfs.ChangeKind) kuriv1.FileChange_Kind {
	switch k {
	case rootfs.Added:
		return kuriv1.FileChange_ADDED
	case rootfs.Deleted:
		return kuriv1.FileChange_DELETED
	}
	return kuriv1.FileChange_CHANGED
}
