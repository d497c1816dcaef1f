package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
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

// coded gives err its gRPC code. An error of context comes before its kind: who gave up is told so.
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

// forKubelet tells whether the text begins with a word that a kubelet looks for when a pull fails (cri-api, pkg/errors).
// It finds the word only behind the code Unknown, for that is the one whose name its client strips from the text.
func forKubelet(text string) bool {
	return strings.HasPrefix(text, "RegistryUnavailable: ") || strings.HasPrefix(text, "SignatureValidationFailed: ")
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	done := s.telemetry.observe(ctx)
	resp, err := guarded(func() (any, error) { return handler(ctx, req) })
	err = coded(err)
	done(err)
	told(ctx, req, resp, err, start)
	return resp, err
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	done := s.telemetry.observe(ss.Context())
	_, err := guarded(func() (any, error) { return nil, handler(srv, ss) })
	if err == errClosing { // nothing that anyone has to look at
		err = coded(err)
		done(err)
		slog.Debug("ended a stream, for kurid is ending", "method", info.FullMethod, "took", time.Since(start))
		return err
	}
	err = coded(err)
	done(err)
	told(ss.Context(), nil, nil, err, start)
	return err
}

// endless reports whether a method's stream goes on for as long as its client wants.
func endless(method string) bool {
	return strings.HasSuffix(method, "/GetContainerEvents") || strings.HasSuffix(method, "/WatchPull")
}

// errClosing ends endless streams when the daemon ends.
var errClosing = fault.New(fault.Unavailable, "kurid is ending, ask its successor")

// endingStream is a stream whose context ends when the server closes.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *endingStream) Context() context.Context { return s.ctx }

// guarded calls a handler. One that panics costs its own request, not the daemon.
func guarded(handle func() (any, error)) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, status.Error(codes.Internal, fault.Panicked(p).Error())
		}
	}()
	return handle()
}

// told logs what a request came to: aloud what failed here, as a warning what the client, its pod or its registry can mend,
// what has changed something, and the rest for who debugs. Who called, and about what, is said of all that changes something.
func told(ctx context.Context, req, resp any, err error, start time.Time) {
	method, _ := grpc.Method(ctx)
	level := slog.LevelDebug
	attrs := []any{"method", method, "took", time.Since(start)}
	if isChange(method) {
		level = slog.LevelInfo
		attrs = append(append(attrs, subject(req, resp)...), "caller", callerOf(ctx))
	}
	switch status.Code(err) {
	case codes.OK, codes.NotFound, codes.Canceled, codes.Unimplemented:
	case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.DeadlineExceeded, codes.PermissionDenied, codes.Unauthenticated,
		codes.Aborted:
		level = slog.LevelWarn
	default:
		level = slog.LevelError
	}
	if err == nil {
		slog.Log(ctx, level, "answered", attrs...)
		return
	}
	slog.Log(ctx, level, "refused", append(attrs, "code", status.Code(err), "err", status.Convert(err).Message())...)
}
