package server_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// While the keeper hangs, each call soon ends with an error that says so. Calls succeed again when
// the keeper continues.
func TestAKeeperThatHangs(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "sleep 1000")
	n.exec(j, "true")
	info, err := n.Info(t.Context())
	n.must(err)
	pid := int(info.Pid)
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })

	within := func(what string, limit time.Duration, call func(ctx context.Context) error) {
		t.Helper()
		start := time.Now()
		err := call(t.Context())
		if took := time.Since(start); took > limit {
			t.Errorf("%s took %s", what, took)
		}
		if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "is stopped") ||
			!strings.Contains(err.Error(), "kill -CONT") {
			t.Errorf("%s: %v", what, err)
		}
	}
	waiting := make(chan error, 1)
	n.must(syscall.Kill(pid, syscall.SIGSTOP))
	go func() { // Events reports that some may be missing
		_, err := n.Events(t.Context(), info.LastEvent, 3*time.Second)
		waiting <- err
	}()
	next := n.job(box, "true")
	create := func(ctx context.Context) error { _, err := n.Create(ctx, next.CreateRequest); return err }
	exec := func(ctx context.Context) error {
		_, err := n.Exec(ctx, j.Id, []string{"true"}, false, keeper.Streams{})
		return err
	}
	within("a first call", 8*time.Second, create)
	within("the state", 3*time.Second/2, func(ctx context.Context) error { return n.Ready(ctx, 2*time.Second) })
	within("a second call", 5*time.Second, create)
	within("an exec", 5*time.Second, exec)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := create(ctx); err == nil {
		t.Error("a call of a caller without time succeeds")
	}

	// A kurid that starts in the meantime starts no other keeper.
	start := time.Now()
	other, err := keeper.Start(t.Context(), keeper.Options{Program: program, StateDir: n.state})
	n.must(err)
	defer other.Close()
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("a start took %s", took)
	}
	within("the state, for another", 3*time.Second/2,
		func(ctx context.Context) error { return other.Ready(ctx, 2*time.Second) })

	n.must(syscall.Kill(pid, syscall.SIGCONT))
	n.must(n.Ready(t.Context(), 10*time.Second))
	wantKind(t, <-waiting, fault.Unavailable)
	n.must(create(t.Context()))
	n.must(exec(t.Context()))
	n.must(other.Ready(t.Context(), 10*time.Second))
}
