package server

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/registry"
)

// imageService is runtime.v1.ImageService.
type imageService struct {
	runtime.UnimplementedImageServiceServer
	store *image.Store
	pods  *pod.Pods
}

func (s *imageService) PullImage(ctx context.Context,
	req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	handler, err := s.pods.Handler(req.GetImage().GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	a := req.GetAuth()
	img, err := s.store.PullFor(ctx, req.GetImage().GetImage(), handler.Platform, registry.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	})
	if err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: img.ID}, nil
}

func (s *imageService) ImageStatus(_ context.Context,
	req *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	want := req.GetImage().GetImage()
	if err := named("image.image", want); err != nil {
		return nil, err
	}
	img, handler, err := s.find(req.GetImage())
	if err != nil {
		return nil, err
	}
	if img == nil {
		return &runtime.ImageStatusResponse{}, nil // the CRI's way to say that it is not there
	}
	resp := &runtime.ImageStatusResponse{Image: criImage(img, handler)}
	if req.GetVerbose() {
		info, err := json.Marshal(map[string]any{"imageSpec": map[string]any{"config": img.Config}, "layers": img.DiffIDs})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}

func (s *imageService) RemoveImage(_ context.Context,
	req *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	want := req.GetImage().GetImage()
	if err := named("image.image", want); err != nil {
		return nil, err
	}
	handler, err := s.pods.Handler(req.GetImage().GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtime.RemoveImageResponse{}, s.store.RemoveFor(want, handler.Platform)
}

// find returns the image that is meant, nil when it is not there, and the name of the runtime handler that it is told
// with: the one that was asked for, else its own.
func (s *imageService) find(spec *runtime.ImageSpec) (*image.Image, string, error) {
	name := spec.GetRuntimeHandler()
	handler, err := s.pods.Handler(name)
	if err != nil {
		return nil, "", err
	}
	img, err := s.store.GetFor(spec.GetImage(), handler.Platform)
	switch {
	case fault.Of(err) == fault.NotFound:
		return nil, "", nil
	case err != nil:
		return nil, "", err
	case name == "":
		name = s.handlerOf(img)
	}
	return img, name, nil
}

// handlerOf returns the runtime handler that an image is for: the default one, unless it was pulled for another's
// platform alone.
func (s *imageService) handlerOf(img *image.Image) string {
	if len(img.Platforms) == 0 || slices.Contains(img.Platforms, "") {
		return ""
	}
	for _, name := range s.pods.HandlerNames() {
		if slices.Contains(img.Platforms, s.pods.Handlers[name].Platform) {
			return name
		}
	}
	return "" // the handler is configured no more
}

func (s *imageService) ImageFsInfo(ctx context.Context,
	_ *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	u, err := s.store.Usage(ctx)
	if err != nil {
		return nil, err
	}
	writable, err := s.pods.WritableUsage(ctx)
	if err != nil {
		return nil, err
	}
	// Where both are on one filesystem they have the same path, and a kubelet takes it for that.
	resp := &runtime.ImageFsInfoResponse{ImageFilesystems: []*runtime.FilesystemUsage{filesystemUsage(u.Path, u.Bytes,
		u.Inodes)}}
	for _, w := range writable {
		resp.ContainerFilesystems = append(resp.ContainerFilesystems, filesystemUsage(w.Path, w.Bytes, w.Inodes))
	}
	return resp, nil
}

func filesystemUsage(path string, bytes, inodes uint64) *runtime.FilesystemUsage {
	return &runtime.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: path},
		UsedBytes:  &runtime.UInt64Value{Value: bytes},
		InodesUsed: &runtime.UInt64Value{Value: inodes},
	}
}

func criImage(img *image.Image, handler string) *runtime.Image {
	out := &runtime.Image{
		Id:          img.ID,
		RepoTags:    img.References,
		RepoDigests: img.Digests,
		Size:        uint64(img.Size),
		Pinned:      img.Pinned,
		Spec:        &runtime.ImageSpec{Image: img.ID, RuntimeHandler: handler},
	}
	// The image's user is a number or a name, never both: a kubelet checks runAsNonRoot with it.
	user, _, _ := strings.Cut(img.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtime.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}
