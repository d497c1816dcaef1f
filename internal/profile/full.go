//go:build !lean

package profile

import (
	"context"
	"io"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Quiet keeps this process from sampling its memory until a profile of it is taken. To be called first of all.
func Quiet() { runtime.MemProfileRate = 0 }

// sampleEvery is the mean number of bytes between two samples of memory, while one is taken of a quiet process.
const sampleEvery = 4 << 10

// begin begins to take a profile, and returns what waits for its end and writes it.
func begin(r Request, out io.Writer) (func(context.Context) error, error) {
	wait := func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(r.Seconds) * time.Second):
		}
	}
	switch r.Name {
	case "profile":
		if err := pprof.StartCPUProfile(out); err != nil {
			return nil, fault.As(fault.Unavailable, err)
		}
		return func(ctx context.Context) error { wait(ctx); pprof.StopCPUProfile(); return nil }, nil
	case "heap", "allocs":
		return func(ctx context.Context) error {
			if runtime.MemProfileRate == 0 {
				runtime.MemProfileRate = sampleEvery
				wait(ctx)
				defer Quiet() // the profile is scaled by the rate
			}
			runtime.GC() // what is in use is known as of the last collection
			return pprof.Lookup(r.Name).WriteTo(out, r.Debug)
		}, nil
	}
	return func(context.Context) error { return pprof.Lookup(r.Name).WriteTo(out, r.Debug) }, nil
}
