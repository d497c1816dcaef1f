package main

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
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
)

// The images in the registry.
const (
	sleeperImage = "bench/sleeper:1"
	pauseImage   = "bench/pause:1" // containerd's sandbox container; Kuri has none
	bigImage     = "bench/big:1"
)

// What bigImage is made of.
const (
	bigLayers    = 10
	bigLayerSize = 20 << 20 // bytes, before compression
	bigFileSize  = 64 << 10
)

// images is the registry that both runtimes pull from.
type images struct {
	address string // host:port on loopback
	server  *http.Server
}

// serveImages starts the registry with everything in it. big adds bigImage, which takes seconds to make.
func serveImages(sleeper string, big bool) (*images, error) {
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
	if err := i.pushAll(program, big); err != nil {
		i.close()
		return nil, err
	}
	return i, nil
}

func (i *images) close() { i.server.Close() }

// reference is an image's name as a client of the runtimes gives it.
func (i *images) reference(image string) string { return i.address + "/" + image }

func (i *images) pushAll(program []byte, big bool) error {
	for _, image := range []struct{ name, path, user string }{{sleeperImage, "sleeper", ""}, {pauseImage, "pause", "65535:65535"}} {
		config := v1.Config{Entrypoint: []string{"/" + image.path}, User: image.user, Env: []string{"PATH=/"}}
		if err := i.push(image.name, config, archive(file{image.path, program})); err != nil {
			return err
		}
	}
	if !big {
		return nil
	}
	layers := make([][]byte, bigLayers)
	for n := range layers {
		layers[n] = bigLayer(uint64(n))
	}
	return i.push(bigImage, v1.Config{Entrypoint: []string{"/none"}}, layers...)
}

// push makes an image of uncompressed layers, gzips them and sends it to the registry.
func (i *images) push(image string, config v1.Config, archives ...[]byte) error {
	var layers []v1.Layer
	for _, a := range archives {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(a)), nil })
		if err != nil {
			return fmt.Errorf("make image %s: %w", image, err)
		}
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
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

// archive is a tar of executable files, in memory, where writing does not fail.
func archive(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.data)), Typeflag: tar.TypeReg})
		w.Write(f.data)
	}
	w.Close()
	return b.Bytes()
}

// bigLayer is files of which one half is noise and one half words, so that gzip does about what it does
// for programs and their libraries. The same in every run.
func bigLayer(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 2048)
	for n := range words {
		words[n] = fmt.Sprintf("%x_", random.Uint64()>>(16+random.UintN(32)))
	}
	var files []file
	for n := range bigLayerSize / bigFileSize {
		data := make([]byte, 0, bigFileSize)
		for len(data) < bigFileSize/2 {
			data = binary.LittleEndian.AppendUint64(data, random.Uint64())
		}
		for len(data) < bigFileSize {
			data = append(data, words[random.UintN(uint(len(words)))]...)
		}
		files = append(files, file{fmt.Sprintf("usr/lib/%d/%d/lib.so", seed, n), data[:bigFileSize]})
	}
	return archive(files...)
}
