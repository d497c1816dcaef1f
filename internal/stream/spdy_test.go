package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/iotest"

	"github.com/moby/spdystream/spdy"
)

// encode returns the bytes of frames.
func encode(t testing.TB, list ...spdy.Frame) []byte {
	t.Helper()
	var buf bytes.Buffer
	f, err := spdy.NewFramer(&buf, &buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, frame := range list {
		if err := f.WriteFrame(frame); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func TestLongFramesAreSplit(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789abcdef"), 7000) // 112000 bytes: three pieces and a remainder
	open := &spdy.SynStreamFrame{StreamId: 1, Headers: http.Header{"Streamtype": {"data"}}}
	raw := encode(t, open, &spdy.DataFrame{StreamId: 1, Data: []byte("short")}, &spdy.DataFrame{StreamId: 1, Data: nil},
		&spdy.DataFrame{StreamId: 3, Data: long, Flags: spdy.DataFlagFin}, &spdy.PingFrame{Id: 7})
	for name, from := range map[string]io.Reader{"whole": bytes.NewReader(raw),
		"byte by byte": iotest.OneByteReader(bytes.NewReader(raw))} {
		f, err := spdy.NewFramer(io.Discard, &frames{from: from})
		if err != nil {
			t.Fatal(err)
		}
		var data [4][]byte
		fins, pings := 0, 0
		for {
			frame, err := f.ReadFrame()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			switch x := frame.(type) {
			case *spdy.SynStreamFrame:
				if x.Headers.Get("streamtype") != "data" {
					t.Errorf("%s: headers %v", name, x.Headers)
				}
			case *spdy.DataFrame:
				if len(x.Data) > pieceMax || fins > 0 {
					t.Errorf("%s: a frame of %d bytes, after %d ends", name, len(x.Data), fins)
				}
				data[x.StreamId] = append(data[x.StreamId], x.Data...)
				if x.Flags&spdy.DataFlagFin != 0 {
					fins++
				}
			case *spdy.PingFrame:
				pings++
			}
		}
		if string(data[1]) != "short" || !bytes.Equal(data[3], long) || fins != 1 || pings != 1 {
			t.Errorf("%s: %q, %d bytes, %d ends, %d pings", name, data[1], len(data[3]), fins, pings)
		}
	}
}

// writes is a connection that records each write to it.
type writes struct {
	net.Conn
	each [][]byte
}

func (w *writes) Write(b []byte) (int, error) {
	w.each = append(w.each, bytes.Clone(b))
	return len(b), nil
}

func TestAFrameIsOneWrite(t *testing.T) {
	w := &writes{}
	f, err := spdy.NewFramer(&frames{Conn: w}, nil)
	if err != nil {
		t.Fatal(err)
	}
	list := []spdy.Frame{
		&spdy.SynReplyFrame{StreamId: 1, Headers: http.Header{}}, &spdy.DataFrame{StreamId: 1, Data: []byte("data")},
		&spdy.DataFrame{StreamId: 1, Flags: spdy.DataFlagFin}, &spdy.PingFrame{Id: 2}, &spdy.GoAwayFrame{},
	}
	for _, frame := range list {
		if err := f.WriteFrame(frame); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.each) != len(list) || !bytes.Equal(bytes.Join(w.each, nil), encode(t, list...)) {
		t.Errorf("%d writes of %d frames: %q", len(w.each), len(list), w.each)
	}
}

// Any input of a client arrives with the same meaning, in pieces of bounded length.
func FuzzFrames(f *testing.F) {
	f.Add(encode(f, &spdy.DataFrame{StreamId: 1, Data: make([]byte, 40000), Flags: spdy.DataFlagFin},
		&spdy.PingFrame{Id: 1}))
	f.Add([]byte{0, 0, 0, 1, 1, 0xff, 0xff, 0xff, 'x'})
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := io.ReadAll(&frames{from: bytes.NewReader(raw)})
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if a, b := payload(raw, 0xffffff), payload(got, pieceMax); !bytes.Equal(a, b) {
			t.Fatalf("%q became %q", a, b)
		}
	})
}

// payload returns the content of frames, independent of how data is split. It returns "too long" if
// a data frame exceeds most.
func payload(raw []byte, most int) (out []byte) {
	for len(raw) >= 8 {
		length := lengthOf(raw)
		control := raw[0]&0x80 != 0
		if control {
			out = append(out, raw[:8]...)
		} else if length > most {
			return []byte("too long")
		}
		n := min(length, len(raw)-8)
		out = append(out, raw[8:8+n]...)
		raw = raw[8+n:]
	}
	return out
}
