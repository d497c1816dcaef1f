package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// message is one of gRPC with so many bytes.
func message(size int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), make([]byte, size)...)
}

// What is half-sent is counted, however it is cut, and is given back when it is whole, given up or answered.
func TestHalfSentMessagesAreCounted(t *testing.T) {
	type step struct {
		write func(f *http2.Framer)
		own   int64
	}
	headers := func(stream uint32, end bool) func(*http2.Framer) {
		return func(f *http2.Framer) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte("of no interest"), EndHeaders: true,
				EndStream: end})
		}
	}
	data := func(stream uint32, end bool, payload []byte) func(*http2.Framer) {
		return func(f *http2.Framer) { f.WriteData(stream, end, payload) }
	}
	padded := func(stream uint32, payload []byte, pad int) func(*http2.Framer) {
		return func(f *http2.Framer) { f.WriteDataPadded(stream, false, payload, make([]byte, pad)) }
	}
	one := message(1000)
	steps := []step{
		{func(f *http2.Framer) { f.WriteSettings() }, 0},
		{headers(1, false), 0},
		{data(1, false, one[:3]), 0},
		{data(1, false, one[3:105]), 100},
		{headers(3, false), 100},
		{padded(3, one[:205], 50), 300},
		{padded(3, nil, 0), 300},
		{data(1, false, nil), 300},
		{data(1, false, one[105:]), 200},                       // whole
		{data(1, false, append(message(0), one[:55]...)), 250}, // the next ones of the same stream
		{data(1, true, one[55:]), 200},
		{headers(5, true), 200},
		{data(7, false, one), 200}, // a stream that does not exist
		{func(f *http2.Framer) { f.WritePing(false, [8]byte{1}) }, 200},
		{func(f *http2.Framer) { f.WriteRSTStream(3, http2.ErrCodeCancel) }, 0},
		{headers(9, false), 0},
		{padded(9, one[:15], 255), 10},
		{headers(9, true), 0}, // trailers
		{headers(11, false), 0},
		{data(11, false, []byte{0, 0xff, 0xff, 0xff, 0xff, 1, 2}), 2}, // longer than can be
	}
	for _, size := range []int{1, 2, 7, 1000, 1 << 20} {
		all := &partial{limit: maxPartial}
		c := all.watch(nil).(*partialConn)
		c.in.feed([]byte(http2.ClientPreface), c)
		for i, s := range steps {
			var wire bytes.Buffer
			s.write(http2.NewFramer(&wire, nil))
			for p := wire.Bytes(); len(p) > 0; p = p[min(size, len(p)):] {
				c.in.feed(p[:min(size, len(p))], c)
			}
			if c.own != s.own || all.total.Load() != s.own {
				t.Fatalf("in pieces of %d, step %d: %d bytes, of all %d, want %d", size, i, c.own, all.total.Load(), s.own)
			}
		}
		// The answer to a request that is not whole is the end of it.
		var wire bytes.Buffer
		headers(11, false)(http2.NewFramer(&wire, nil))
		c.out.feed(wire.Bytes(), ends{c})
		if c.own != 2 {
			t.Errorf("an answer's beginning: %d bytes", c.own)
		}
		wire.Reset()
		headers(11, true)(http2.NewFramer(&wire, nil))
		c.out.feed(wire.Bytes(), ends{c})
		if c.own != 0 || len(c.open) != 0 {
			t.Errorf("an answer: %d bytes, %d streams", c.own, len(c.open))
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 8, 0, 0, 0, 1, 9, 0, 0, 5, 1, 0, 0, 0, 0, 1}, 3)
	f.Fuzz(func(t *testing.T, wire []byte, size int) {
		all := &partial{limit: maxPartial}
		c := all.watch(nil).(*partialConn)
		c.in.skip = 0
		size = max(size, 1)
		for p := wire; len(p) > 0; p = p[min(size, len(p)):] {
			c.in.feed(p[:min(size, len(p))], c)
		}
		if c.own < 0 || c.own > int64(len(wire)) || all.total.Load() != c.own {
			t.Errorf("%d bytes of %d are counted as %d, of all %d", c.own, len(wire), c.own, all.total.Load())
		}
	})
}

// A client with many requests that are never whole loses its connection before they fill the
// memory. Another one, with a request that is whole, and one that has little of one, keep theirs.
func TestHalfSentMessagesAreBounded(t *testing.T) {
	const limit, size, streams = 4 << 20, 1 << 20, 12
	all := &partial{limit: limit}
	g := grpc.NewServer(grpc.Creds(peerCredentials{all}),
		grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
			if err := ss.RecvMsg(&emptypb.Empty{}); err != nil {
				return err
			}
			return ss.SendMsg(&emptypb.Empty{})
		}))
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go g.Serve(l)
	t.Cleanup(g.Stop)

	ctx, cancel := context.WithCancel(t.Context())
	client := func() *http.Transport { // of one connection: a request that comes after its end fails, too
		var dialled atomic.Bool
		tr := &http.Transport{Protocols: new(http.Protocols), MaxConnsPerHost: 1,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				if dialled.Swap(true) {
					return nil, net.ErrClosed
				}
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}}
		tr.Protocols.SetUnencryptedHTTP2(true)
		t.Cleanup(tr.CloseIdleConnections)
		return tr
	}
	send := func(tr *http.Transport, bytesOf []byte) error {
		body, in := io.Pipe() // which does not end
		go in.Write(bytesOf)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://kuri/a.B/C", body)
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/grpc")
		resp, err := tr.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	waitFor := func(what string, ok func() bool) {
		t.Helper()
		for began := time.Now(); !ok(); time.Sleep(time.Millisecond) {
			if time.Since(began) > 30*time.Second {
				t.Fatalf("not yet: %s; %d bytes are held", what, all.total.Load())
			}
		}
	}

	var littleFailed atomic.Bool
	go func() {
		if send(client(), message(size)[:20_000]) != nil && ctx.Err() == nil {
			littleFailed.Store(true)
		}
	}()
	waitFor("little is held", func() bool { return all.total.Load() == 20_000-5 })
	greedy, failed := client(), make(chan error, streams)
	for range streams {
		go func() { failed <- send(greedy, message(size)[:size-100]) }()
	}
	var most int64
	for began, ended := time.Now(), 0; ended < streams; {
		select {
		case err := <-failed:
			if ended++; err == nil {
				t.Fatal("a request that was not whole was answered")
			}
		default:
			if time.Since(began) > 30*time.Second {
				t.Fatalf("of %d requests %d have ended; %d bytes are held", streams, ended, all.total.Load())
			}
			most = max(most, all.total.Load())
			time.Sleep(100 * time.Microsecond)
		}
	}
	if most > limit+size {
		t.Errorf("%d bytes were held, the limit is %d", most, limit)
	}
	waitFor("what was held is given back", func() bool { return all.total.Load() == 20_000-5 })
	conn := dial(t, path)
	if err := conn.Invoke(t.Context(), "/a.B/C", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		t.Errorf("another client: %v", err)
	}
	if littleFailed.Load() {
		t.Error("a client that had sent little was cut off")
	}
	cancel()
	waitFor("nothing is held", func() bool { return all.total.Load() == 0 })
}
