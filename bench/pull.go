package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// shape describes an image that is pulled and not run.
type shape struct {
	name   string
	layers int
	files  int // in each layer
	size   int // bytes in each file
}

// shapes has typical images: one big layer, a few layers, many small ones, and one with many small files.
var shapes = []shape{
	{"1 layer of 200 MiB", 1, 200, 1 << 20},
	{"10 layers of 20 MiB", 10, 320, 64 << 10},
	{"40 layers of 1 MiB", 40, 16, 64 << 10},
	{"20,000 files of 2 KiB", 1, 20_000, 2 << 10},
}

// packing is a compression of a layer.
type packing struct {
	name      string
	mediaType types.MediaType
	writer    func(io.Writer) (io.WriteCloser, error)
}

// packings has both compressions of the OCI image specification, at their default levels.
var packings = []packing{
	{"gzip", types.OCILayer, func(to io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(to), nil }},
	{"zstd", types.OCILayerZStd, func(to io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(to) }},
}

func (p packing) pack(plain []byte) ([]byte, error) {
	var packed bytes.Buffer
	w, err := p.writer(&packed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}

// image returns the name of the shape's image in the registry.
func (s shape) image(p packing) string {
	return fmt.Sprintf("bench/%dx%dx%d:%s", s.layers, s.files, s.size, p.name)
}

// row returns the name of the shape's image in the report.
func (s shape) row(p packing) string { return s.name + ", " + p.name }

// layer returns files that alternate between a little noise and a few words. They compress about as
// well as programs and libraries: to less than half, and without long incompressible parts. The
// content is the same in every run.
func (s shape) layer(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 2048)
	for n := range words {
		words[n] = fmt.Sprintf("%x_", random.Uint64()>>(16+random.UintN(32)))
	}
	var files []file
	for n := range s.files {
		var data []byte
		for len(data) < s.size {
			for range random.UintN(4) {
				data = binary.LittleEndian.AppendUint64(data, random.Uint64())
			}
			for range random.UintN(8) {
				data = append(data, words[random.UintN(uint(len(words)))]...)
			}
		}
		files = append(files, file{fmt.Sprintf("usr/lib/%d/%d/lib%d.so", seed, n/100, n), data[:s.size]})
	}
	return archive(files...)
}

// pullPhase pulls each image with each compression, alternately, into an empty store.
func (b *bench) pullPhase(ctx context.Context) error {
	for round := range b.rounds {
		for _, s := range shapes {
			for _, p := range packings {
				if !b.options.images.MatchString(s.row(p)) {
					continue
				}
				for _, d := range b.runtimes {
					if err := b.pullOnce(ctx, d, s, p, round); err != nil {
						return fmt.Errorf("%s, %s, %s: %w", d.name, s.name, p.name, err)
					}
				}
			}
		}
	}
	return nil
}

func (b *bench) pullOnce(ctx context.Context, d *daemon, s shape, p packing, round int) error {
	// 1. A daemon with an empty store, warmed up by the pull of a small image, on an idle disk.
	if err := d.empty(ctx); err != nil {
		return err
	}
	if err := d.client.pull(ctx, b.images.reference(sleeperImage)); err != nil {
		return err
	}
	disk, err := os.Open(b.dir)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := b.rest(disk); err != nil {
		return err
	}
	// 2. The pull, until its writes are on the disk.
	idle, err := resident(d.cmd.Process.Pid)
	if err != nil {
		return err
	}
	mostMemory, err := peak(d.cmd.Process.Pid)
	if err != nil {
		return err
	}
	before, err := cpu(d.name)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := d.client.pull(ctx, b.images.reference(s.image(p))); err != nil {
		return err
	}
	if err := unix.Syncfs(int(disk.Fd())); err != nil {
		return err
	}
	took := time.Since(begin)
	after, err := cpu(d.name)
	if err != nil {
		return err
	}
	most, err := mostMemory()
	if err != nil {
		return err
	}
	what := s.row(p)
	b.report.add("pull "+what, "s", d.name, round, took.Seconds())
	b.report.add("  … CPU, "+what, "s", d.name, round, float64(after-before)/1e9)
	b.report.add("  … most memory over idle, "+what, "MiB", d.name, round, mebibytes(most-idle))
	return nil
}

// empty restarts the daemon with an empty root directory; its data under /run belongs only to pods. The old
// directory is kept until the end. ext4 without a journal does not reuse an inode for a minute, and after the
// removal of a store the search for a usable one would dominate the measurement.
func (d *daemon) empty(ctx context.Context) error {
	if err := d.stop(true); err != nil {
		return err
	}
	aside, err := os.MkdirTemp(filepath.Dir(d.root), "old-")
	if err != nil {
		return err
	}
	if err := os.Rename(d.root, filepath.Join(aside, "root")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = d.start(ctx)
	return err
}

// rest waits until the disk has written everything, and drops the caches if that is permitted.
func (b *bench) rest(disk *os.File) error {
	if err := unix.Syncfs(int(disk.Fd())); err != nil {
		return err
	}
	if b.caches {
		return nil
	}
	const pagesAndNames = "3"
	err := os.WriteFile("/proc/sys/vm/drop_caches", []byte(pagesAndNames), 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

// resident returns the resident memory of a process in bytes.
func resident(pid int) (int64, error) {
	kib, err := field(filepath.Join("/proc", fmt.Sprint(pid), "status"), "VmRSS:")
	return kib << 10, err
}
