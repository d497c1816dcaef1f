package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// BenchmarkUnpack unpacks images from memory into a store below $TMPDIR, four layers at once, and
// syncs: a pull without the network. Each image gets its own store, and all stores are removed at
// the end, because a filesystem creates files slowly where many have just been removed.
func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	root := b.TempDir()
	for _, shape := range []struct {
		name                string
		layers, files, size int
	}{
		{"1x200MiB", 1, 200, 1 << 20},
		{"10x20MiB", 10, 320, 64 << 10},
		{"40x1MiB", 40, 16, 64 << 10},
		{"20000x2KiB", 1, 20_000, 2 << 10},
	} {
		var plain [][]byte
		for l := range shape.layers {
			plain = append(plain, noiseAndWords(b, uint64(l), shape.files, shape.size))
		}
		for _, way := range []struct {
			name string
			pack packer
		}{{"gzip", gzipTo}, {"zstd", zstdTo}} {
			b.Run(shape.name+"/"+way.name, func(b *testing.B) {
				var blobs []Blob
				for _, body := range plain {
					blobs = append(blobs, blobOf(body, pack(b, body, way.pack)))
				}
				var made, took, cpu time.Duration
				for n := 0; b.Loop(); n++ {
					s := openStore(b, filepath.Join(root, shape.name, way.name, fmt.Sprint(b.N, n)))
					began, before := time.Now(), cpuTime(b)
					made += unpackAll(b, s, blobs)
					took += time.Since(began)
					cpu += cpuTime(b) - before
				}
				b.ReportMetric(made.Seconds()*1e3/float64(b.N), "ms-to-sync/image")
				b.ReportMetric(took.Seconds()*1e3/float64(b.N), "ms/image")
				b.ReportMetric(cpu.Seconds()*1e3/float64(b.N), "cpu-ms/image")
			})
		}
	}
}

// unpackAll unpacks the blobs, four at once like package image, and syncs. It returns the time
// before the sync.
func unpackAll(b *testing.B, s *Store, blobs []Blob) time.Duration {
	b.Helper()
	began := time.Now()
	writing, err := s.BeginWrite()
	if err != nil {
		b.Fatal(err)
	}
	defer writing.Close()
	var all errgroup.Group
	all.SetLimit(4)
	for _, blob := range blobs {
		s.Hold([]digest.Digest{blob.DiffID})
		all.Go(func() error { return s.Unpack(b.Context(), blob) })
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
	made := time.Since(began)
	if err := writing.Sync(); err != nil {
		b.Fatal(err)
	}
	return made
}

// noiseAndWords is a layer that compresses about as well as programs do.
func noiseAndWords(b *testing.B, seed uint64, files, size int) []byte {
	b.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 2048)
	for n := range words {
		words[n] = fmt.Sprintf("%x_", random.Uint64()>>(16+random.UintN(32)))
	}
	var body bytes.Buffer
	w := tar.NewWriter(&body)
	for n := range files {
		var data []byte
		for len(data) < size {
			for range random.UintN(4) {
				data = binary.LittleEndian.AppendUint64(data, random.Uint64())
			}
			for range random.UintN(8) {
				data = append(data, words[random.UintN(uint(len(words)))]...)
			}
		}
		hdr := tar.Header{Name: fmt.Sprintf("usr/lib/%d/%d/lib%d.so", seed, n/100, n), Mode: 0o755,
			Typeflag: tar.TypeReg, Size: int64(size), ModTime: then}
		if err := w.WriteHeader(&hdr); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data[:size]); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return body.Bytes()
}
