//go:build lean

package profile

import (
	"context"
	"io"
	"runtime"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Quiet does nothing: a program that does not link Go's profiles samples no memory.
func Quiet() {}

// stacksMax bounds the dump of all stacks, in bytes.
const stacksMax = 64 << 20

// begin supports only stacks as text. For others it returns an error of kind Unimplemented that says how to get them.
func begin(r Request, out io.Writer) (func(context.Context) error, error) {
	if r.Name != "goroutine" || r.Debug != 2 {
		return nil, fault.New(fault.Unimplemented,
			"this program is built without profiles, to save memory, and has only stacks; "+
				"make kuri-keeper LEAN= builds a keeper with profiles: install it and restart kurid, which replaces the keeper under running pods")
	}
	return func(context.Context) error {
		for size := 64 << 10; ; size *= 2 {
			text := make([]byte, size)
			if n := runtime.Stack(text, true); n < size || size >= stacksMax {
				_, err := out.Write(text[:n])
				return err
			}
		}
	}, nil
}
