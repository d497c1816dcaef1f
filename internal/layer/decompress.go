package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kuri-cri/kuri/internal/fault"
)

// maxWindow is the largest zstd window that is accepted, in bytes: what "zstd --long=27" makes.
const maxWindow = 128 << 20

// usualWindow is the largest window that zstd itself chooses below its level 20, in bytes. A decoder takes a little
// more memory than its window.
const usualWindow = 8 << 20

// usualDecoders is how many layers are decoded with a usual window at once, at the most. Each takes a core and unpacks more
// than a GB a second; more of them would be memory for nothing.
const usualDecoders = 3

// headBytes is the size of the buffer through which a stream is looked at to see what it is packed with, in bytes. gzip reads
// on through it; zstd reads what is longer into its own buffers, without the copy.
const headBytes = 4 << 10

// decoders are zstd decoders to use again, while layers are being unpacked: each has megabytes of memory.
type decoders struct {
	usual chan *zstd.Decoder // those that are free; nil where none has been made yet
	wide  chan struct{}      // its only place is for who has a larger window than usual

	digested bool // what they give is verified by its digest; zstd's own checksum is not looked at
}

func newDecoders(digested bool) *decoders {
	usual := min(usualDecoders, runtime.GOMAXPROCS(0))
	d := &decoders{usual: make(chan *zstd.Decoder, usual), wide: make(chan struct{}, 1), digested: digested}
	for range usual {
		d.usual <- nil
	}
	return d
}

// drop lets the memory of those that are free go.
func (d *decoders) drop() {
	for range cap(d.usual) {
		select {
		case z := <-d.usual:
			if z != nil {
				z.Close()
			}
			d.usual <- nil
		default:
			return
		}
	}
}

// take waits for a decoder. The caller releases it.
func (d *decoders) take(ctx context.Context, wide bool) (z *zstd.Decoder, release func(), err error) {
	if wide {
		select {
		case d.wide <- struct{}{}:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		release = func() {
			z.Close()
			<-d.wide
		}
	} else {
		select {
		case z = <-d.usual:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		release = func() {
			if z.Reset(nil) != nil {
				z.Close()
				z = nil
			}
			d.usual <- z
		}
	}
	if z == nil {
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.IgnoreChecksum(d.digested))
		if err != nil {
			panic(err) // a wrong option, found by the first test
		}
	}
	return z, release, nil
}

// open returns the content of the zstd stream.
func (d *decoders) open(ctx context.Context, in *bufio.Reader) (*packed, error) {
	var head zstd.Header
	start, _ := in.Peek(zstd.HeaderMaxSize)
	z, release, err := d.take(ctx, head.Decode(start) != nil || head.Skippable || head.WindowSize > usualWindow)
	if err != nil {
		return nil, err
	}
	if err := z.Reset(in); err != nil {
		release()
		return nil, fault.New(fault.Corrupt, "not a zstd stream: %w", err)
	}
	return &packed{format: "zstd", from: z, close: release}, nil
}

// Decompress returns the content of from, which may be packed with gzip, zstd, xz or bzip2 or not at all. It goes by the first
// bytes: media types are wrong too often. An error of the packed data has kind Corrupt. The caller closes the content,
// and from by itself.
func Decompress(from io.Reader) (io.ReadCloser, error) {
	return newDecoders(false).decompress(context.Background(), from)
}

func (d *decoders) decompress(ctx context.Context, from io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(from, headBytes)
	magic, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fault.New(fault.Corrupt, "not a gzip stream: %w", err)
		}
		return &packed{format: "gzip", from: z, close: func() { z.Close() }}, nil
	case isZstd(magic):
		return d.open(ctx, in)
	case bytes.HasPrefix(magic, []byte("\xfd7zX")):
		return d.openXz(ctx, in)
	case bytes.HasPrefix(magic, []byte("BZh")):
		return d.openBzip2(ctx, in)
	}
	if err := refuseOther(magic); err != nil && !looksLikeTar(in) {
		return nil, err
	}
	return io.NopCloser(in), nil
}

// looksLikeTar reports whether the stream begins with the header of a tar: its first file may have any name.
func looksLikeTar(in *bufio.Reader) bool {
	block, err := in.Peek(512)
	if err != nil {
		return false
	}
	_, err = tar.NewReader(bytes.NewReader(block)).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF)
}

// isZstd knows a frame of data, or a skippable frame, with which some tools begin.
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// packed reads a decompressor and gives its errors a kind.
type packed struct {
	format string
	from   io.Reader
	close  func()
}

func (p *packed) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	if err != nil && err != io.EOF {
		err = damaged(p.format, err)
	}
	return n, err
}

func (p *packed) Close() error {
	p.close()
	return nil
}

// bounded stops a stream that unpacks to far more than its packed bytes can honestly hold.
type bounded struct {
	from   io.Reader
	packed *atomic.Int64
	plain  int64
	limits limits
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.plain += int64(n)
	if b.plain > b.limits.freeBytes && b.plain/b.limits.ratio > b.packed.Load() {
		return 0, fault.New(fault.Exhausted, "the layer unpacks to more than %d times its size (%d bytes so far): it looks like an archive bomb", b.limits.ratio, b.plain)
	}
	return n, err
}
