package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/moby/spdystream/spdy"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	terminalExecs = 20        // per round
	transfers     = 4         // per round, in each direction
	forwarded     = 256 << 20 // bytes through one connection
)

// streamsPhase measures a runtime's streaming server: execs on a terminal, by kubectl's own client, and the
// throughput of a forwarded port. For comparison it also reaches the port of the same pod through a plain
// proxy. The pods are on the node's network, where the proxy and the runtimes reach them in the same way.
func (b *bench) streamsPhase(ctx context.Context) error {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	pods, ports, proxies := map[*daemon]pod{}, map[*daemon]int{}, map[*daemon]*proxy{}
	for n, d := range b.runtimes {
		ports[d] = 7001 + n
		request := b.request(d, "streams", true)
		request.filter, request.command = true, []string{"/sleeper", "serve", strconv.Itoa(ports[d])}
		p, _, err := d.client.up(ctx, request)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		pods[d] = p
		if proxies[d], err = startProxy(ports[d]); err != nil {
			return err
		}
		defer proxies[d].close()
	}
	for round := range b.rounds {
		for _, d := range b.runtimes {
			if err := sleep(ctx, turn); err != nil {
				return err
			}
			if err := errors.Join(b.terminals(ctx, d, pods[d], round),
				b.forwards(ctx, d, pods[d], ports[d], proxies[d], round)); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	for d, p := range pods {
		if err := d.client.down(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

// terminals runs a program that exits at once on a terminal, one at a time.
func (b *bench) terminals(ctx context.Context, d *daemon, p pod, round int) error {
	return b.execsMeasured(d, "Exec on a terminal, RuntimeDefault", round, terminalExecs,
		func(record func(time.Duration)) error {
			for range terminalExecs {
				begin := time.Now()
				if err := d.client.onTerminal(ctx, p); err != nil {
					return err
				}
				record(time.Since(begin))
			}
			return nil
		})
}

func (c *client) onTerminal(ctx context.Context, p pod) error {
	resp, err := c.Exec(ctx, &runtime.ExecRequest{ContainerId: p.container, Cmd: []string{"/sleeper", "true"}, Tty: true,
		Stdout: true})
	if err != nil {
		return err
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		return err
	}
	x, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, http.MethodPost, u)
	if err != nil {
		return err
	}
	return x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Tty: true})
}

// forwards sends bytes both ways through a forwarded port and through the proxy.
func (b *bench) forwards(ctx context.Context, d *daemon, p pod, port int, proxy *proxy, round int) error {
	for _, way := range []struct {
		name string
		open func() (*wire, error)
	}{
		{"port-forward", func() (*wire, error) { return d.client.forward(ctx, p, port) }},
		{"a plain proxy to the same pod", func() (*wire, error) { return proxy.dial() }},
	} {
		for _, direction := range []struct {
			name string
			run  func(*wire) error
		}{{"from the pod", (*wire).take}, {"to the pod", (*wire).give}} {
			for range transfers {
				w, err := way.open()
				if err != nil {
					return fmt.Errorf("%s: %w", way.name, err)
				}
				begin := time.Now()
				err = direction.run(w)
				took := time.Since(begin)
				w.conn.Close()
				if err != nil {
					return fmt.Errorf("%s, %s: %w", way.name, direction.name, err)
				}
				b.report.add("throughput "+direction.name+", "+way.name, "MiB/s", d.name, round,
					float64(forwarded>>20)/took.Seconds())
			}
		}
	}
	return nil
}

// wire is a connection to a pod's port. The client does as little as possible, so that the measurement shows
// the path between: it writes an SPDY frame, if SPDY is used, at once, and does not copy it when it reads.
type wire struct {
	conn   net.Conn
	from   *bufio.Reader
	stream uint32 // of SPDY; 0: plain bytes
}

const frameSize = 32 << 10 // bytes of data, as kubectl sends them

func (w *wire) write(b []byte) error {
	if w.stream != 0 {
		n := len(b)
		b = append([]byte{0, 0, 0, byte(w.stream), 0, byte(n >> 16), byte(n >> 8), byte(n)}, b...)
	}
	_, err := w.conn.Write(b)
	return err
}

// take requests the bytes from the pod and reads them.
func (w *wire) take() error {
	if err := w.write(fmt.Appendf(nil, "s%015d", forwarded)); err != nil {
		return err
	}
	return w.receive(forwarded)
}

// give sends the bytes and waits until the pod confirms them.
func (w *wire) give() error {
	if err := w.write(fmt.Appendf(nil, "r%015d", forwarded)); err != nil {
		return err
	}
	piece := make([]byte, frameSize)
	if w.stream != 0 {
		piece = append([]byte{0, 0, 0, byte(w.stream), 0, byte(frameSize >> 16), byte(frameSize >> 8),
			byte(frameSize & 0xff)}, piece...)
	}
	for range forwarded / frameSize {
		if _, err := w.conn.Write(piece); err != nil {
			return err
		}
	}
	return w.receive(1)
}

// receive reads want bytes of data.
func (w *wire) receive(want int) error {
	if w.stream == 0 {
		_, err := w.from.Discard(want)
		return err
	}
	for head := make([]byte, 8); want > 0; {
		if _, err := io.ReadFull(w.from, head); err != nil {
			return fmt.Errorf("with %d bytes to come: %w", want, err)
		}
		n := int(head[5])<<16 | int(head[6])<<8 | int(head[7])
		if _, err := w.from.Discard(n); err != nil {
			return err
		}
		if head[0]&0x80 == 0 && head[3] == byte(w.stream) {
			want -= n
		}
	}
	return nil
}

// forward opens a connection through the runtime's streaming server.
func (c *client) forward(ctx context.Context, p pod, port int) (*wire, error) {
	resp, err := c.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p.sandbox, Port: []int32{int32(port)}})
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn, from: bufio.NewReaderSize(conn, 64<<10), stream: 3}
	if err := w.upgrade(u, port); err != nil {
		conn.Close()
		return nil, err
	}
	return w, nil
}

func (w *wire) upgrade(u *url.URL, port int) error {
	fmt.Fprintf(w.conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n", u.RequestURI(), u.Host)
	resp, err := http.ReadResponse(w.from, nil)
	if err != nil {
		return err
	}
	resp.Body.Close() // empty
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("port-forward: %s", resp.Status)
	}
	framer, err := spdy.NewFramer(w.conn, w.from)
	if err != nil {
		return err
	}
	open := func(id uint32, kind string) error {
		header := http.Header{"Streamtype": {kind}, "Port": {strconv.Itoa(port)}, "Requestid": {"0"}}
		return framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(id), Headers: header})
	}
	return errors.Join(open(1, "error"), open(w.stream, "data"))
}

// proxy is a plain proxy to a port, which copies through user space with buffers like Kuri's. Like
// the runtimes it is a process of its own.
type proxy struct {
	cmd     *exec.Cmd
	address string
}

// proxyMode is the first argument of this program if it is the proxy. The second is the port.
const proxyMode = "proxy"

func startProxy(port int) (*proxy, error) {
	cmd := exec.Command("/proc/self/exe", proxyMode, strconv.Itoa(port))
	cmd.Stderr = os.Stderr
	said, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	address, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the proxy does not start: %w", err), cmd.Wait())
	}
	return &proxy{cmd, strings.TrimSpace(address)}, nil
}

func (p *proxy) close() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// dial connects through the proxy.
func (p *proxy) dial() (*wire, error) {
	conn, err := net.Dial("tcp", p.address)
	if err != nil {
		return nil, err
	}
	return &wire{conn: conn, from: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// serveProxy prints its address and serves until it is killed.
func serveProxy(port string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		near, err := l.Accept()
		if err != nil {
			return err
		}
		far, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			near.Close()
			continue
		}
		pass := func(to, from net.Conn) { // both directions end when either does
			io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 64<<10))
			to.Close()
		}
		go pass(far, near)
		go pass(near, far)
	}
}
