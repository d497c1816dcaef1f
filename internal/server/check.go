package server

import (
	"bufio"
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/registry"
)

func (s *archiveService) Check(req *kuriv1.CheckRequest, stream grpc.ServerStreamingServer[kuriv1.Finding]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	tell := func(f image.Finding) {
		msg := &kuriv1.Finding{
			ImageId: f.Image, References: f.References, Layer: f.Layer.String(), Problem: f.Problem.Error(),
			Repaired: f.Repaired,
		}
		if f.RepairErr != nil {
			msg.RepairError = f.RepairErr.Error()
		}
		if err := stream.Send(msg); err != nil {
			cancel(err)
		}
	}
	if req.GetRepair() {
		return s.store.Repair(ctx, authsOf(req), tell)
	}
	return s.store.Check(ctx, tell)
}

// authsOf is what a request has for the registries: of several that fit a repository the longest, else the one for all.
func authsOf(req *kuriv1.CheckRequest) image.Auths {
	return func(ref registry.Reference) registry.Auth {
		found, length := registry.Auth{Username: req.GetUsername(), Password: req.GetPassword()}, 0
		for _, a := range req.GetAuths() {
			if at := a.GetRegistry(); len(at) > length && (ref.Repository == at || strings.HasPrefix(ref.Repository, at+"/")) {
				found, length = registry.Auth{
					Username: a.GetUsername(), Password: a.GetPassword(), IdentityToken: a.GetIdentityToken(),
					RegistryToken: a.GetRegistryToken(),
				}, len(at)
			}
		}
		return found
	}
}

func (s *archiveService) Prune(_ context.Context, req *kuriv1.PruneRequest) (*kuriv1.PruneResponse, error) {
	inUse, err := s.usedImages()
	if err != nil {
		return nil, err
	}
	used := func(id string) bool {
		return inUse(id) || len(req.GetOnly()) > 0 && !slices.Contains(req.GetOnly(), id)
	}
	resp := &kuriv1.PruneResponse{}
	list, bytes := s.store.Unused(used)
	if req.GetRemove() {
		if list, bytes, err = s.store.Prune(used); err != nil {
			return nil, err
		}
	}
	resp.Bytes = bytes
	for _, img := range list {
		resp.Images = append(resp.Images, &kuriv1.PrunedImage{Id: img.ID, References: img.References, Size: img.Size})
	}
	return resp, nil
}

func (s *archiveService) Tag(_ context.Context, req *kuriv1.TagRequest) (*kuriv1.TagResponse, error) {
	if req.GetImage() == "" {
		return nil, fault.New(fault.Invalid, "image: it is empty, an image's reference or id is needed")
	}
	given, err := s.store.Tag(req.GetImage(), req.GetNames())
	if err != nil {
		return nil, err
	}
	return &kuriv1.TagResponse{Names: given}, nil
}

func (s *archiveService) Untag(_ context.Context, req *kuriv1.UntagRequest) (*kuriv1.UntagResponse, error) {
	if req.GetImage() == "" {
		return nil, fault.New(fault.Invalid, "image: it is empty, an image's reference or id is needed")
	}
	removed, left, err := s.store.Untag(req.GetImage(), req.GetNames())
	if err != nil {
		return nil, err
	}
	return &kuriv1.UntagResponse{Names: removed, Left: left}, nil
}

func (s *archiveService) Describe(_ context.Context, req *kuriv1.DescribeRequest) (*kuriv1.ImageDescription, error) {
	if req.GetImage() == "" {
		return nil, fault.New(fault.Invalid, "image: it is empty, an image's reference or id is needed")
	}
	d, err := s.store.Describe(req.GetImage())
	if err != nil {
		return nil, err
	}
	used, err := s.usedImages()
	if err != nil {
		return nil, err
	}
	resp := &kuriv1.ImageDescription{
		Id: d.ID, References: d.References, Digests: d.Digests, Pinned: d.Pinned, InUse: used(d.ID),
		PulledAt: d.PulledAt, Size: d.Size, Config: d.Config, Manifest: d.Manifest,
	}
	for _, l := range d.Layers {
		resp.Layers = append(resp.Layers, &kuriv1.ImageLayer{
			DiffId: l.DiffID.String(), Digest: l.Digest.String(), Packed: l.Packed, Bytes: l.Bytes,
		})
	}
	return resp, nil
}

// usedImages returns a function that reports whether a container was made of an image, or mounts it.
func (s *archiveService) usedImages() (func(id string) bool, error) {
	containers, err := s.pods.ListContainers(pod.ContainerFilter{})
	if err != nil {
		return nil, err
	}
	used, mounted := make(map[string]bool), make(map[string]bool)
	for _, c := range containers {
		used[c.Record().ImageID] = true
		for _, ref := range c.Record().VolumeRefs { // a digest reference, or an id
			mounted[ref] = true
		}
	}
	for _, img := range s.store.List() {
		if mounted[img.ID] || slices.ContainsFunc(img.Digests, func(ref string) bool { return mounted[ref] }) {
			used[img.ID] = true
		}
	}
	return func(id string) bool { return used[id] }, nil
}

func (s *archiveService) Save(req *kuriv1.SaveRequest, stream grpc.ServerStreamingServer[kuriv1.SaveChunk]) error {
	if len(req.GetImages()) == 0 {
		return fault.New(fault.Invalid, "images: it is empty, at least one image's reference or id is needed")
	}
	out := bufio.NewWriterSize(chunkWriter{stream}, 256<<10)
	if err := s.store.Save(stream.Context(), out, req.GetImages()...); err != nil {
		return err
	}
	return out.Flush()
}

// chunkWriter sends each write as a message.
type chunkWriter struct {
	stream grpc.ServerStreamingServer[kuriv1.SaveChunk]
}

func (w chunkWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		part := p[done:min(done+256<<10, len(p))]
		if err := w.stream.Send(&kuriv1.SaveChunk{Data: part}); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}
