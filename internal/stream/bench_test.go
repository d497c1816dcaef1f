package stream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/moby/spdystream/spdy"
)

const megabyte = 1 << 20

// BenchmarkForward compares the throughput of a forwarded port with that of a plain proxy, in both
// directions. The client does the minimum, so the server is what is measured:
//
//	go test -tags seccomp ./internal/stream -run '^$' -bench Forward -count 5
func BenchmarkForward(b *testing.B) {
	for name, open := range map[string]func(*testing.B, int) forwardedConn{"plain": openPlain, "SPDY": openSPDY} {
		b.Run("from the pod/"+name, func(b *testing.B) {
			port := pod(b, func(c *net.TCPConn) { send(c, b.N) })
			conn := open(b, port)
			b.SetBytes(megabyte)
			b.ResetTimer()
			if n, err := conn.receive(); n != int64(b.N)*megabyte || err != nil {
				b.Fatalf("%d bytes of %d MiB, %v", n, b.N, err)
			}
		})
		b.Run("to the pod/"+name, func(b *testing.B) {
			got := make(chan int64, 1)
			port := pod(b, func(c *net.TCPConn) {
				n, _ := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, megabyte))
				got <- n
			})
			conn := open(b, port)
			b.SetBytes(megabyte)
			b.ResetTimer()
			if err := conn.send(b.N); err != nil {
				b.Fatal(err)
			}
			if n := <-got; n != int64(b.N)*megabyte {
				b.Fatalf("%d bytes of %d MiB", n, b.N)
			}
		})
	}
}

// forwardedConn is the client's end of a forwarded connection.
type forwardedConn struct {
	receive func() (int64, error) // until the end
	send    func(megabytes int) error
}

// send sends that many megabytes and closes the write side.
func send(c *net.TCPConn, megabytes int) error {
	for piece := make([]byte, megabyte); megabytes > 0; megabytes-- {
		if _, err := c.Write(piece); err != nil {
			return err
		}
	}
	return c.CloseWrite()
}

// pod serves a single connection and returns its port.
func pod(b *testing.B, serve func(*net.TCPConn)) int {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			serve(c.(*net.TCPConn))
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// openPlain connects through a proxy of two io.Copy.
func openPlain(b *testing.B, port int) forwardedConn {
	b.Helper()
	through := pod(b, func(client *net.TCPConn) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return
		}
		defer c.Close()
		done := make(chan struct{})
		go func() {
			io.Copy(c, client)
			c.(*net.TCPConn).CloseWrite()
			close(done)
		}()
		io.Copy(client, c)
		client.CloseWrite()
		<-done
	})
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", through))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return forwardedConn{
		receive: func() (int64, error) {
			return io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, megabyte))
		},
		send: func(megabytes int) error { return send(c.(*net.TCPConn), megabytes) },
	}
}

// openSPDY connects through a forwarded port.
func openSPDY(b *testing.B, port int) forwardedConn {
	b.Helper()
	s, err := newServer(serverOptions{Address: "127.0.0.1", MaxStreams: testMaxStreams, Runtime: local{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	address, err := s.PortForward(Pod{ID: "p"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		b.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: "+
		"SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n", u.Path)
	from := bufio.NewReaderSize(c, 64<<10)
	resp, err := http.ReadResponse(from, nil)
	if err != nil {
		b.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusSwitchingProtocols {
		b.Fatal(resp.Status)
	}
	framer, err := spdy.NewFramer(c, from)
	if err != nil {
		b.Fatal(err)
	}
	for id, kind := range []string{1: "error", 3: "data"} {
		if kind == "" {
			continue
		}
		header := http.Header{"Streamtype": {kind}, "Port": {fmt.Sprint(port)}, "Requestid": {"0"}}
		if err := framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(id), Headers: header}); err != nil {
			b.Fatal(err)
		}
	}
	return forwardedConn{
		receive: func() (total int64, err error) {
			for head := make([]byte, 8); ; {
				if _, err := io.ReadFull(from, head); err != nil {
					return total, err
				}
				length := lengthOf(head)
				if _, err := from.Discard(length); err != nil {
					return total, err
				}
				if head[0]&0x80 == 0 && head[3] == 3 {
					if total += int64(length); head[4]&finFlag != 0 {
						return total, nil
					}
				}
			}
		},
		send: func(megabytes int) error {
			frame := make([]byte, 8+pieceMax) // the frame size of common clients, in one write
			frame[3], frame[6], frame[7] = 3, pieceMax>>8, pieceMax&0xff
			for range megabytes * (megabyte / pieceMax) {
				if _, err := c.Write(frame); err != nil {
					return err
				}
			}
			_, err := c.Write([]byte{0, 0, 0, 3, finFlag, 0, 0, 0})
			return err
		},
	}
}
