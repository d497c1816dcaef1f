package image

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuri-cri/kuri/internal/registry"
)

// BenchmarkPull pulls from a registry on loopback, each time into a new store, and reports the
// content bytes per second.
func BenchmarkPull(b *testing.B) {
	for name, shape := range map[string]struct{ layers, files, size int }{
		"10x20MiB":   {10, 4, 5 << 20},
		"1x200MiB":   {1, 40, 5 << 20},
		"40x1MiB":    {40, 1, 1 << 20},
		"20000small": {1, 20_000, 2 << 10},
	} {
		b.Run(name, func(b *testing.B) {
			h := newHub(b)
			var layers []v1.Layer
			for l := range shape.layers {
				var files []file
				for f := range shape.files {
					files = append(files, file{fmt.Sprintf("d%d/f%d-%d", f%100, l, f),
						halfRandom(shape.size, uint64(l*shape.files+f))})
				}
				layers = append(layers, layerOf(b, files...))
			}
			ref := h.push("bench:1", imageOf(b, "x", layers...))
			b.SetBytes(int64(shape.layers * shape.files * shape.size))
			b.ResetTimer()
			for b.Loop() {
				b.StopTimer()
				s := openStore(b, "")
				runtime.GC()
				b.StartTimer()
				began := time.Now()
				if _, err := s.Pull(b.Context(), ref, registry.Auth{}); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/pull")
			}
		})
	}
}

// halfRandom returns data that compresses to about half its size, as programs do.
func halfRandom(n int, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := r.Uint64()
		for j := range min(4, n-i) {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return string(p)
}
