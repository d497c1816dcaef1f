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
	"github.com/kuri-cri/kuri/internal/step"
)

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler) (any, error) {
	done := s.telemetry.observe(ctx)
	ctx, op := s.operations.Begin(ctx, methodOf(info.FullMethod), s.subjectOf(req), step.Caller(callerOf(ctx)))
	resp, err := guarded(func() (any, error) { return handler(ctx, req) })
	err = coded(err)
	done(err)
	op.Know(s.subjectOf(resp))
	s.logOperation(ctx, op.Answer(err), append(detailsOf(req), detailsOf(resp)...))
	return resp, err
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	done := s.telemetry.observe(ss.Context())
	ctx, op := s.operations.Begin(ss.Context(), methodOf(info.FullMethod), step.Subject{},
		step.Caller(callerOf(ss.Context())))
	_, err := guarded(func() (any, error) { return nil, handler(srv, &endingStream{ss, ctx}) })
	if errors.Is(err, errClosing) { // nothing that anyone has to look at
		err = coded(err)
		done(err)
		slog.Debug("ended a stream, for kurid is ending", "method", info.FullMethod, "took", op.Answer(nil).Took)
		return err
	}
	err = coded(err)
	done(err)
	s.logOperation(ctx, op.Answer(err), nil)
	return err
}

// methodOf returns the method of a full one, without its service.
func methodOf(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

// logOperation logs the outcome of a request. The level is error for a failure of Kuri's own;
// warning for one that the client, its pod or its registry can mend, and for a slow request, with
// its slowest step; info for a change; debug for the rest. Changes are logged with the caller, the
// subject and the duration of each step.
func (s *Server) logOperation(ctx context.Context, r step.Report, details []any) {
	method, _ := grpc.Method(ctx)
	level := slog.LevelDebug
	attrs := append([]any{"method", method, "took", r.Took}, subjectAttrs(r.Subject)...)
	attrs = append(append(attrs, details...), stepAttrs(r)...)
	if isChange(method) {
		level = slog.LevelInfo
		attrs = append(attrs, "caller", caller(r.Caller))
	}
	switch status.Code(r.Err) {
	case codes.OK, codes.NotFound, codes.Canceled, codes.Unimplemented:
	case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.DeadlineExceeded,
		codes.PermissionDenied, codes.Unauthenticated,
		codes.Aborted:
		level = slog.LevelWarn
	default:
		level = slog.LevelError
	}
	if limit, slow := s.slow(r); slow {
		level = max(level, slog.LevelWarn)
		attrs = append(attrs, "slower_than", limit)
		if most := r.Slowest(); most.Name != "" {
			attrs = append(attrs, "slowest", most.Name)
			if part := step.Longest(most.Parts); part.Name != "" {
				attrs = append(attrs, "slowest_part", part.Name, slog.Group("parts", times(most.Parts)...))
			}
		}
	}
	if r.Err == nil {
		slog.Log(ctx, level, "answered", attrs...)
		return
	}
	slog.Log(ctx, level, "refused", append(attrs, "code", status.Code(r.Err), "err", status.Convert(r.Err).Message())...)
}

// slow reports whether an operation took longer than its method is to take, and how long that is.
// The grace of a stop does not count.
func (s *Server) slow(r step.Report) (limit time.Duration, slow bool) {
	took := r.Took
	for _, one := range r.Steps {
		if one.Name == step.Grace {
			took -= one.Took
		}
	}
	limit = s.slowAfter[r.Kind]
	return limit, limit > 0 && took > limit
}

// ended takes note of an operation of which nothing goes on any more. The log hears of one that its
// caller had given up.
func (s *Server) ended(ctx context.Context, r step.Report) {
	s.telemetry.steps(r)
	s.remember(r)
	if full, ok := grpc.Method(ctx); ok && s.trace != nil {
		s.trace(ctx, full, r)
	}
	if !r.Began.Add(r.Took + givenUp).Before(time.Now()) {
		return
	}
	attrs := append([]any{"method", r.Kind, "took", time.Since(r.Began), "answered_after", r.Took},
		subjectAttrs(r.Subject)...)
	slog.Log(ctx, slog.LevelInfo, "ended what its caller has given up", append(attrs, stepAttrs(r)...)...)
}

// givenUp is how much longer than its answer an operation goes on that its caller has not waited for.
const givenUp = 100 * time.Millisecond

// subjectAttrs are the log attributes of a subject.
func subjectAttrs(s step.Subject) (attrs []any) {
	for _, a := range [][2]string{
		{"namespace", s.Namespace}, {"pod", s.Pod}, {"pod_id", s.PodID}, {"container", s.Container}, {"container_id",
			s.ContainerID}, {"image", s.Image},
	} {
		if a[1] != "" {
			attrs = append(attrs, a[0], a[1])
		}
	}
	return attrs
}

// stepAttrs are the times of an operation's steps, as a group; empty if there are no steps.
func stepAttrs(r step.Report) []any {
	steps := times(r.Totals())
	if steps == nil {
		return nil
	}
	return []any{slog.Group("steps", steps...)}
}

// times are attributes: how long each step took.
func times(steps []step.Step) (attrs []any) {
	for _, one := range steps {
		attrs = append(attrs, slog.Duration(one.Name, one.Took.Round(time.Microsecond)))
	}
	return attrs
}

// endless reports whether a method's stream goes on for as long as its client wants.
func endless(method string) bool {
	return strings.HasSuffix(method, "/GetContainerEvents") || strings.HasSuffix(method, "/WatchPull")
}

// errClosing ends endless streams when the daemon ends.
var errClosing = fault.New(fault.Unavailable, "kurid is ending, ask its successor")

// endingStream is a stream whose context is another one, which ends when the server closes, or carries an operation.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *endingStream) Context() context.Context { return s.ctx }
