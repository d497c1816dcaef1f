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

// stacksMax bounds the text of all stacks, in bytes.
const stacksMax = 64 << 20

// begin has the stacks alone, as text. An error of kind Unimplemented says how to have the others.
func begin(r Request, out io.Writer) (func(context.Context) error, error) {
	if r.Name != "goroutine" || r.Debug != 2 {
		return nil, fault.New(fault.Unimplemented, "this program is built without profiles, which would take memory on every node, and tells its stacks alone; "+
			"make kuri-keeper LEAN= builds a keeper with them: put it in the place of this one and restart kurid, which changes keepers with everything running")
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
