package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/kuri-cri/kuri/internal/fault"
)

// A daemon that is asked to end fails no call, and delays its successor for none. Only one of the
// two may write records, so each call in flight takes one of three ways:
//
//   - it ends soon, and is answered;
//   - it needs no record (lingers): it goes on in this process to its end, beside the successor;
//   - it is relayed: this process stops waiting and sends the same request to the successor, whose answer the client gets.
//     Every verb is idempotent, so the successor joins the work or finds its result.
//
// The order is Drain, the closing of all that owns records, Released, Wait.

// Limits of a handover.
const (
	goodbyeWait   = 250 * time.Millisecond // without a call from a client that has not yet got GOAWAY
	goodbyeLimit  = 2 * time.Second        // for that
	longWait      = time.Second            // until a call that may take long is relayed
	closeWait     = 10 * time.Second       // until any other is, and a stream is cut
	successorWait = 10 * time.Second       // for a successor that serves
)

// handover is the state of one. It is safe for concurrent use.
type handover struct {
	relayed  context.Context // ends when long calls are relayed
	relay    context.CancelFunc
	cut      context.Context // ends when all calls are relayed, and streams cut
	cutAll   context.CancelFunc
	released chan struct{} // closed when another process may own the records

	mu     sync.Mutex
	owners int           // calls that may use a record
	rest   int           // calls that linger, or are relayed
	closed bool          // no call may use a record any more
	last   time.Time     // when the last call came
	idle   chan struct{} // closed when closed is set and owners is 0

	dial map[string]func() (*grpc.ClientConn, error) // the successor's sockets, by path; constant
}

func newHandover(paths ...string) *handover {
	h := &handover{released: make(chan struct{}), idle: make(chan struct{}),
		dial: make(map[string]func() (*grpc.ClientConn, error))}
	h.relayed, h.relay = context.WithCancel(context.Background())
	h.cut, h.cutAll = context.WithCancel(context.Background())
	for _, path := range paths {
		h.dial[path] = sync.OnceValues(func() (*grpc.ClientConn, error) {
			return grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultCallOptions(grpc.ForceCodecV2(relayCodec{encoding.GetCodecV2("proto")}),
					grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(maxRequest)),
				grpc.WithConnectParams(grpc.ConnectParams{
					Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 2,
						MaxDelay: 200 * time.Millisecond},
					MinConnectTimeout: successorWait,
				}))
		})
	}
	return h
}

// lingers reports whether a method needs no record once it has begun: a session with the keeper alone.
func lingers(method string) bool {
	return strings.HasSuffix(method, "/ExecSync") || strings.HasPrefix(method, "/kuri.v1.Files/")
}

// long reports whether a method may take long and can be relayed early: its flight finishes or
// undoes everything that it writes, and the successor finds the result.
func long(method string) bool {
	return strings.HasSuffix(method, "/PullImage") || strings.HasSuffix(method, "/StopContainer")
}

// enter counts a call in until leave. It returns false when calls may not use records any more.
func (h *handover) enter(method string) (leave func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, false
	}
	h.last = time.Now()
	count := &h.owners
	if lingers(method) {
		count = &h.rest
	}
	*count++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if *count--; h.closed && h.owners == 0 && count == &h.owners {
			close(h.idle)
		}
	}, true
}

// settle stops calls from using records. It returns true when no call uses one any more, false
// after closeWait. The channel closed reports that all connections are closed, so that there are no
// further calls.
func (h *handover) settle(closed <-chan struct{}) bool {
	quick := time.AfterFunc(longWait, h.relay)
	defer quick.Stop()
	h.goodbye(closed)
	h.mu.Lock()
	h.closed = true
	if h.owners == 0 {
		close(h.idle)
	}
	h.mu.Unlock()
	limit := time.NewTimer(closeWait)
	defer limit.Stop()
	select {
	case <-h.idle:
		return true
	case <-limit.C:
	}
	h.cutAll()
	select {
	case <-h.idle:
		return true
	case <-time.After(longWait):
		return false
	}
}

// goodbye returns when all connections are closed, or no call has come over them for goodbyeWait.
func (h *handover) goodbye(closed <-chan struct{}) {
	begun := time.Now()
	for limit := begun.Add(goodbyeLimit); time.Now().Before(limit); {
		h.mu.Lock()
		since := h.last
		h.mu.Unlock()
		if since.Before(begun) {
			since = begun
		}
		rest := time.Until(since.Add(goodbyeWait))
		if rest <= 0 {
			return
		}
		select {
		case <-closed:
			return
		case <-time.After(rest):
		}
	}
}

// lingering returns how many calls are still to be answered.
func (h *handover) lingering() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rest
}

// unary answers a request here, or has the successor do it.
func (h *handover) unary(path string) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		leave, ok := h.enter(info.FullMethod)
		if !ok {
			return h.ask(ctx, path, info.FullMethod, req)
		}
		if lingers(info.FullMethod) {
			defer leave()
			return handler(ctx, req)
		}
		own, cancel := context.WithCancelCause(ctx)
		end := h.cut
		if long(info.FullMethod) {
			end = h.relayed
		}
		stop := context.AfterFunc(end, func() { cancel(errClosing) })
		resp, err := guarded(func() (any, error) { return handler(own, req) })
		stop()
		moved := err != nil && errors.Is(context.Cause(own), errClosing)
		cancel(nil)
		leave()
		if moved {
			return h.ask(ctx, path, info.FullMethod, req)
		}
		return resp, err
	}
}

// ask makes a request of the successor, once there is one.
func (h *handover) ask(ctx context.Context, path, method string, req any) (any, error) {
	h.mu.Lock()
	h.rest++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.rest--
		h.mu.Unlock()
	}()
	select {
	case <-h.released:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	conn, err := h.dial[path]()
	if err != nil {
		return nil, fmt.Errorf("ask the next kurid: %w", err)
	}
	if err := serving(ctx, conn); err != nil {
		return nil, err
	}
	slog.Info("the next kurid is asked what this one has no time for", "method", method)
	resp := &relayedAnswer{}
	return resp, conn.Invoke(ctx, method, req, resp)
}

// serving returns when the connection's other side serves, or after successorWait.
func serving(ctx context.Context, conn *grpc.ClientConn) error {
	limited, cancel := context.WithTimeout(ctx, successorWait)
	defer cancel()
	for {
		conn.Connect()
		state := conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		if !conn.WaitForStateChange(limited, state) {
			break
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fault.New(fault.Unavailable, "kurid has ended, and no other serves within %s; start it and ask again",
		successorWait)
}

// handoverStream ends a stream that takes longer than closeWait, or has come too late; endless ones end at once.
func (s *Server) handoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo,
	handler grpc.StreamHandler) error {
	leave, ok := s.handover.enter(info.FullMethod)
	if !ok {
		return errClosing
	}
	defer leave()
	if lingers(info.FullMethod) {
		return handler(srv, ss)
	}
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	end := s.handover.cut
	if endless(info.FullMethod) {
		end = s.closing
	}
	defer context.AfterFunc(end, func() { cancel(errClosing) })()
	err := handler(srv, &endingStream{ss, ctx})
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errClosing) {
		return errClosing
	}
	return err
}

// relayedAnswer is a successor's answer, as it came.
type relayedAnswer struct{ data mem.BufferSlice }

func (a *relayedAnswer) encode() mem.BufferSlice { return a.data }

// relayCodec is gRPC's, and leaves answers as they come.
type relayCodec struct{ encoding.CodecV2 }

func (relayCodec) Unmarshal(data mem.BufferSlice, v any) error {
	data.Ref() // for whoever sends it on
	v.(*relayedAnswer).data = data
	return nil
}
