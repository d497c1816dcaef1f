package keeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
)

// wire maps each kind of error to its code in the protocol.
var wire = [...]struct {
	kind fault.Kind
	code codes.Code
}{
	{fault.NotFound, codes.NotFound},
	{fault.Exists, codes.AlreadyExists},
	{fault.Invalid, codes.InvalidArgument},
	{fault.Precondition, codes.FailedPrecondition},
	{fault.Unavailable, codes.Unavailable},
	{fault.Exhausted, codes.ResourceExhausted},
	{fault.Unimplemented, codes.Unimplemented},
	{fault.PermissionDenied, codes.PermissionDenied},
	{fault.Unauthenticated, codes.Unauthenticated},
	{fault.Deadline, codes.DeadlineExceeded},
	{fault.Incomplete, codes.Aborted},
	{fault.Corrupt, codes.DataLoss},
	{fault.Unstartable, codes.OutOfRange}, // a code that no other kind uses
}

// EncodeError converts err to the form in which the keeper sends it, a gRPC status with the code of
// its kind. nil stays nil.
func EncodeError(err error) error {
	if err == nil {
		return nil
	}
	code := codes.Unknown
	// An errno about the node (out of descriptors, a full disk) takes precedence over the kind.
	kind := fault.OfErrno(err)
	if kind == "" {
		kind = fault.Of(err)
	}
	for _, w := range wire {
		if w.kind == kind {
			code = w.code
		}
	}
	return status.Error(code, err.Error()+fault.Hint(err))
}

// decodeError is the inverse of EncodeError. A context error of the call itself is returned
// unchanged; a lost connection is of kind Unavailable.
func decodeError(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, ttrpc.ErrClosed):
		return fault.New(fault.Unavailable, "the connection to the keeper was lost: %w", err)
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, w := range wire {
		if w.code == st.Code() {
			return fault.New(w.kind, "%s", st.Message())
		}
	}
	return fmt.Errorf("%s", st.Message())
}
