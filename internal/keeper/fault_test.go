package keeper

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestKindsCrossTheWire(t *testing.T) {
	for _, w := range wire {
		sent := fmt.Errorf("create x: %w", fault.New(w.kind, "because"))
		got := decodeError(EncodeError(sent))
		if fault.Of(got) != w.kind || got.Error() != sent.Error() {
			t.Errorf("%s: got %q of kind %q", w.kind, got, fault.Of(got))
		}
	}
	if got := decodeError(EncodeError(errors.New("odd"))); fault.Of(got) != "" || got.Error() != "odd" {
		t.Errorf("an error without a kind: %v of kind %q", got, fault.Of(got))
	}
	if EncodeError(nil) != nil || decodeError(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestOurOwnErrorsKeepTheirIdentity(t *testing.T) {
	if err := decodeError(context.Canceled); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := decodeError(fmt.Errorf("call: %w", ttrpc.ErrClosed)); !errors.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	if _, ok := status.FromError(EncodeError(fault.New(fault.Invalid, "x"))); !ok {
		t.Error("not a status")
	}
}

func TestExitRecord(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadExit(dir); !errors.Is(err, fault.NotFound) {
		t.Errorf("no record: %v", err)
	}
	want := Exit{Code: 137, StartedAt: 1, FinishedAt: 2, OOMKilled: true}
	if err := WriteExit(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadExit(dir); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}
