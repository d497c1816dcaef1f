package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The images that pods run. [shapes] has those that are only pulled.
const (
	sleeperImage = "bench/sleeper:1"
	pauseImage   = "bench/pause:1" // containerd's sandbox container; Kuri has none
)

// images is the registry that both runtimes pull from.
type images struct {
	address string // host:port on loopback
	server  *http.Server
}

// serveImages starts the registry with all images. pulled includes the images that are only pulled,
// which take seconds to build.
func serveImages(sleeper string, pulled bool) (*images, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	i := &images{address: listener.Addr().String(), server: &http.Server{Handler: handler}}
	go i.server.Serve(listener)
	program, err := os.ReadFile(sleeper)
	if err != nil {
		i.close()
		return nil, err
	}
	if err := i.pushAll(program, pulled); err != nil {
		i.close()
		return nil, err
	}
	return i, nil
}

func (i *images) close() { i.server.Close() }

// reference returns the reference of an image for clients of the runtimes.
func (i *images) reference(image string) string { return i.address + "/" + image }

func (i *images) pushAll(program []byte, pulled bool) error {
	for _, image := range []struct{ name, path, user string }{{sleeperImage, "sleeper", ""},
		{pauseImage, "pause", "65535:65535"}} {
		config := v1.Config{Entrypoint: []string{"/" + image.path}, User: image.user, Env: []string{"PATH=/"}}
		if err := i.push(image.name, config, packings[0], archive(file{image.path, program})); err != nil {
			return err
		}
	}
	if !pulled {
		return nil
	}
	for _, s := range shapes {
		layers := make([][]byte, s.layers)
		for n := range layers {
			layers[n] = s.layer(uint64(n))
		}
		for _, p := range packings {
			if err := i.push(s.image(p), v1.Config{Entrypoint: []string{"/none"}}, p, layers...); err != nil {
				return err
			}
		}
	}
	return nil
}

// push builds an image from uncompressed layers, compresses them and pushes it to the registry.
func (i *images) push(image string, config v1.Config, p packing, archives ...[]byte) error {
	var layers []v1.Layer
	for _, a := range archives {
		packed, err := p.pack(a)
		if err != nil {
			return fmt.Errorf("pack a layer of image %s: %w", image, err)
		}
		opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil }
		layer, err := tarball.LayerFromOpener(opener, tarball.WithMediaType(p.mediaType))
		if err != nil {
			return fmt.Errorf("make image %s: %w", image, err)
		}
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		types.OCIConfigJSON), layers...)
	if err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	described, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	described = described.DeepCopy()
	described.OS, described.Architecture, described.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, described); err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	tag, err := name.NewTag(i.reference(image), name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(tag, img); err != nil {
		return fmt.Errorf("push image %s: %w", image, err)
	}
	return nil
}

type file struct {
	name string
	data []byte
}

// archive returns a tar of executable files, with each directory before its contents. Writing to
// memory does not fail.
func archive(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := make(map[string]bool)
	for _, f := range files {
		for at, c := range f.name {
			if dir := f.name[:at] + "/"; c == '/' && !made[dir] {
				made[dir] = true
				w.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir})
			}
		}
		w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.data)), Typeflag: tar.TypeReg})
		w.Write(f.data)
	}
	w.Close()
	return b.Bytes()
}
