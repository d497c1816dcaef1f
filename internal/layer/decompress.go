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

// maxWindow is the largest accepted zstd window, in bytes: that of "zstd --long=27".
const maxWindow = 128 << 20

// usualWindow is the largest window that zstd chooses below level 20, in bytes. A decoder takes a
// little more memory than its window.
const usualWindow = 8 << 20

// usualDecoders is the maximum number of concurrent decoders with a usual window. Each takes one
// core and unpacks more than 1 GB a second; more of them would only take memory.
const usualDecoders = 3

// headBytes is the size in bytes of the buffer in which the compression format is detected. gzip
// reads through it; zstd bypasses it for large reads.
const headBytes = 4 << 10

// decoders recycles zstd decoders between layers, because each has megabytes of memory.
type decoders struct {
	usual chan *zstd.Decoder // free ones; nil: not created yet
	wide  chan struct{}      // one slot, for a stream with a larger window

	digested bool // the caller verifies a digest, so zstd's own checksum is skipped
}

func newDecoders(digested bool) *decoders {
	usual := min(usualDecoders, runtime.GOMAXPROCS(0))
	d := &decoders{usual: make(chan *zstd.Decoder, usual), wide: make(chan struct{}, 1), digested: digested}
	for range usual {
		d.usual <- nil
	}
	return d
}

// drop frees the memory of unused decoders.
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

// take waits for a decoder. The caller calls release.
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
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.IgnoreChecksum(d.digested))
		if err != nil {
			panic(err) // an invalid option, which the first test would find
		}
	}
	return z, release, nil
}

// open returns the decompressed zstd stream.
func (d *decoders) open(ctx context.Context, in *bufio.Reader) (*decompressor, error) {
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
	return &decompressor{format: "zstd", from: z, close: release}, nil
}

// Decompress returns the decompressed content of from, which may be compressed with gzip, zstd, xz,
// bzip2 or not at all. The first bytes decide, because media types are often wrong. Errors in the
// compressed data are of kind Corrupt. The caller closes the result and, separately, from.
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
		z.Multistream(false)
		return &decompressor{format: "gzip", from: &gzipMembers{in, z}, close: func() { z.Close() }}, nil
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

// gzipMembers reads the members of a gzip stream. Zeros after the last one are padding, as in gzip
// and tar.
type gzipMembers struct {
	in *bufio.Reader
	z  *gzip.Reader // of the current member
}

func (g *gzipMembers) Read(p []byte) (int, error) {
	for {
		n, err := g.z.Read(p)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		if err := g.next(); err != nil {
			return 0, err
		}
	}
}

// next begins the next member. It returns io.EOF after the last one.
func (g *gzipMembers) next() error {
	first, err := g.in.Peek(1)
	for err == nil && first[0] == 0 {
		_, _ = g.in.Discard(1)
		first, err = g.in.Peek(1)
	}
	if err != nil {
		return err
	}
	if err := g.z.Reset(g.in); err != nil {
		return fault.New(fault.Corrupt, "there is data after its end")
	}
	g.z.Multistream(false)
	return nil
}

// looksLikeTar reports whether the stream begins with a tar header: the name of the first file
// could look like another format's magic.
func looksLikeTar(in *bufio.Reader) bool {
	block, err := in.Peek(512)
	if err != nil {
		return false
	}
	_, err = tar.NewReader(bytes.NewReader(block)).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF)
}

// isZstd reports whether magic begins a zstd frame, or a skippable frame, which some tools write
// first.
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// decompressor gives the errors of a decompressing reader a kind.
type decompressor struct {
	format string
	from   io.Reader
	close  func()
}

func (p *decompressor) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(p.format, err)
	}
	return n, err
}

func (p *decompressor) Close() error {
	p.close()
	return nil
}

// ratioLimiter stops a stream that decompresses to far more than its compressed size can justify.
type ratioLimiter struct {
	from   io.Reader
	packed *atomic.Int64
	plain  int64
	limits limits
}

func (b *ratioLimiter) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.plain += int64(n)
	if b.plain > b.limits.freeBytes && b.plain/b.limits.ratio > b.packed.Load() {
		return 0, fault.New(fault.Exhausted,
			"the layer unpacks to more than %d times its size (%d bytes so far): it looks like an archive bomb",
			b.limits.ratio, b.plain)
	}
	return n, err
}
