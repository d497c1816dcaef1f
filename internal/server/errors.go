package server

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
)

var codeOf = map[fault.Kind]codes.Code{
	fault.NotFound:         codes.NotFound,
	fault.Exists:           codes.AlreadyExists,
	fault.Unstartable:      codes.InvalidArgument,
	fault.Invalid:          codes.InvalidArgument,
	fault.Precondition:     codes.FailedPrecondition,
	fault.Unavailable:      codes.Unavailable,
	fault.Exhausted:        codes.ResourceExhausted,
	fault.Unimplemented:    codes.Unimplemented,
	fault.PermissionDenied: codes.PermissionDenied,
	fault.Unauthenticated:  codes.Unauthenticated,
	fault.Deadline:         codes.DeadlineExceeded,
	fault.Incomplete:       codes.Aborted,
	fault.Corrupt:          codes.DataLoss,
}

// coded gives err its gRPC code. A context error takes precedence over the kind, so the caller sees
// that its own deadline expired.
func coded(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	switch {
	case forKubelet(err.Error()):
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	default:
		kind := fault.Of(err)
		if kind == "" {
			kind = fault.OfErrno(err)
		}
		if c, ok := codeOf[kind]; ok {
			code = c
		}
	}
	return status.Error(code, err.Error()+fault.Hint(err))
}

// forKubelet reports whether the text begins with a word that a kubelet looks for when a pull fails
// (cri-api, pkg/errors). It finds the word only behind the code Unknown, for that is the one whose
// name its client strips from the text.
func forKubelet(text string) bool {
	return strings.HasPrefix(text, "RegistryUnavailable: ") || strings.HasPrefix(text, "SignatureValidationFailed: ")
}

// guarded calls a handler. One that panics costs its own request, not the daemon.
func guarded(handle func() (any, error)) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, status.Error(codes.Internal, fault.Panicked(p).Error())
		}
	}()
	return handle()
}
