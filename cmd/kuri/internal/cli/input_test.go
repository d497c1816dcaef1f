package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// Every wait for input ends with the program's context.
func TestInputEndsWithContext(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	c := &CLI{In: r}
	ctx, cancel := context.WithCancelCause(context.Background())
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(c.Input(ctx))
		read <- err
	}()
	if _, err := w.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	cancel(Interrupt{syscall.SIGINT})
	if err := <-read; !errors.As(err, new(Interrupt)) {
		t.Error(err)
	}
	c.In = iotest.OneByteReader(strings.NewReader("all of it"))
	if got, err := io.ReadAll(c.Input(t.Context())); err != nil || string(got) != "all of it" {
		t.Errorf("%q %v", got, err)
	}
}
