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

// Quiet turns off memory sampling until a profile is requested. It must be called first in main.
func Quiet() { runtime.MemProfileRate = 0 }

// sampleEvery is the mean number of bytes between memory samples during a request to a quiet process.
const sampleEvery = 4 << 10

// begin starts a profile, and returns a function that waits for its end and writes it.
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
			runtime.GC() // the heap profile is as of the last collection
			return pprof.Lookup(r.Name).WriteTo(out, r.Debug)
		}, nil
	}
	return func(context.Context) error { return pprof.Lookup(r.Name).WriteTo(out, r.Debug) }, nil
}
