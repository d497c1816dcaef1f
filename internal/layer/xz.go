package layer

import (
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Layers and archives may be compressed with xz or bzip2, as with docker and Podman. Both are slow
// and rare, so only one such stream is decompressed at a time.

// openXz returns the decompressed xz stream.
func (d *decoders) openXz(ctx context.Context, in io.Reader) (*decompressor, error) {
	release, err := d.takeWide(ctx)
	if err != nil {
		return nil, err
	}
	z, err := xz.NewReader(&xzGuard{from: in, maxDictionary: maxWindow})
	if err != nil {
		release()
		return nil, damaged("xz", err)
	}
	return &decompressor{format: "xz", from: z, close: release}, nil
}

// openBzip2 returns the decompressed bzip2 stream.
func (d *decoders) openBzip2(ctx context.Context, in io.Reader) (*decompressor, error) {
	release, err := d.takeWide(ctx)
	if err != nil {
		return nil, err
	}
	return &decompressor{format: "bzip2", from: bzip2.NewReader(in), close: release}, nil
}

// takeWide waits for the slot of streams that need much memory.
func (d *decoders) takeWide(ctx context.Context) (release func(), err error) {
	select {
	case d.wide <- struct{}{}:
		return func() { <-d.wide }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// xzGuard passes an xz stream through to the decoder and refuses a block with too large a
// dictionary: the decoder allocates whatever a block asks for, up to 4 GiB. It parses only as much
// of the format as it needs to find the blocks (The .xz File Format, version 1.2.1). All other
// errors are left to the decoder.
type xzGuard struct {
	from          io.Reader
	maxDictionary int64

	state   func(*xzGuard, byte) error // handles the next byte; nil: at the beginning
	skip    uint64                     // bytes to skip
	then    func(*xzGuard, byte) error // the state after skip
	head    []byte                     // of the header being read
	want    int                        // its length in bytes
	offset  uint64                     // bytes since the beginning of the block or index
	check   uint64                     // length in bytes of a block's checksum
	varints uint64                     // left in the index
	counted bool                       // the number of records in the index is known
	varint  uint64
	shift   uint
	whole   bool // nothing but padding, or an incomplete stream header, since the last footer
}

// xzChecks maps the check type to the length of the checksum in bytes.
var xzChecks = [16]uint64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

func (g *xzGuard) Read(p []byte) (int, error) {
	n, err := g.from.Read(p)
	if g.state == nil {
		g.begin()
	}
	for b := p[:n]; len(b) > 0; {
		if g.skip > 0 {
			k := min(g.skip, uint64(len(b)))
			g.skip -= k
			g.offset += k
			b = b[k:]
			continue
		}
		if g.then != nil {
			g.state, g.then = g.then, nil
		}
		g.offset++
		if err := g.state(g, b[0]); err != nil {
			return 0, err
		}
		b = b[1:]
	}
	if err == io.EOF && !g.ended() {
		err = io.ErrUnexpectedEOF // the decoder treats a stream that ends before its first block as empty
	}
	return n, err
}

// ended reports whether a stream has just ended.
func (g *xzGuard) ended() bool {
	if g.skip == 0 && g.then != nil {
		g.state, g.then = g.then, nil
	}
	return g.whole && g.skip == 0 && len(g.head) == 0
}

// skipTo skips n bytes and continues with state.
func (g *xzGuard) skipTo(n uint64, state func(*xzGuard, byte) error) {
	if g.skip, g.then = n, nil; n == 0 {
		g.state = state
		return
	}
	g.then = state
}

// begin is the state at the beginning of a stream.
func (g *xzGuard) begin() { g.head, g.want, g.state = g.head[:0], 12, (*xzGuard).streamHeader }

func (g *xzGuard) streamHeader(b byte) error {
	if len(g.head) == 0 && b == 0 { // padding between streams
		return nil
	}
	if g.head = append(g.head, b); len(g.head) == g.want {
		g.whole = false
		g.check = xzChecks[g.head[7]&0x0f]
		g.state = (*xzGuard).blockOrIndex
	}
	return nil
}

func (g *xzGuard) blockOrIndex(b byte) error {
	g.offset = 1
	if b == 0 {
		g.counted, g.varints, g.varint, g.shift = false, 1, 0, 0
		g.state = (*xzGuard).index
		return nil
	}
	g.head, g.want, g.state = append(g.head[:0], b), (int(b)+1)*4, (*xzGuard).blockHeader
	return nil
}

func (g *xzGuard) blockHeader(b byte) error {
	if g.head = append(g.head, b); len(g.head) < g.want {
		return nil
	}
	g.state = (*xzGuard).chunk
	at := g.head[2:]
	next := func() (v uint64) {
		for shift := uint(0); len(at) > 0 && shift < 63; shift += 7 {
			c := at[0]
			at = at[1:]
			v |= uint64(c&0x7f) << shift
			if c&0x80 == 0 {
				break
			}
		}
		return v
	}
	flags := g.head[1]
	for _, sized := range []byte{0x40, 0x80} {
		if flags&sized != 0 {
			next()
		}
	}
	for range flags&3 + 1 {
		id, size := next(), next()
		if size > uint64(len(at)) {
			return fmt.Errorf("truncated block header")
		}
		if id != 0x21 || size != 1 {
			return fault.New(fault.Unimplemented,
				"filter %#x is not supported, only LZMA2 is: compress it again with xz without filters", id)
		}
		if bits := at[0] & 0x3f; int64(2|bits&1)<<(bits/2+11) > g.maxDictionary {
			return fault.New(fault.Exhausted,
				"its dictionary exceeds the limit of %d MiB: compress it again with xz -9 or less", g.maxDictionary>>20)
		}
		at = at[size:]
	}
	return nil
}

// chunk is the state at the control byte of an LZMA2 chunk.
func (g *xzGuard) chunk(b byte) error {
	switch {
	case b == 0: // the last chunk; padding and checksum follow
		g.skipTo(-g.offset&3+g.check, (*xzGuard).blockOrIndex)
	case b >= 0x80:
		g.head, g.want, g.state = g.head[:0], 4, (*xzGuard).chunkSize
		if b >= 0xc0 {
			g.want = 5
		}
	default:
		g.head, g.want, g.state = g.head[:0], 2, (*xzGuard).chunkSize
	}
	return nil
}

func (g *xzGuard) chunkSize(b byte) error {
	if g.head = append(g.head, b); len(g.head) == g.want {
		size := g.head[:2]
		if g.want > 2 {
			size = g.head[2:4]
		}
		g.skipTo(uint64(size[0])<<8+uint64(size[1])+1, (*xzGuard).chunk)
	}
	return nil
}

// index is the state within a stream's index: the number of records, and two numbers for each.
func (g *xzGuard) index(b byte) error {
	g.varint |= uint64(b&0x7f) << (g.shift & 63)
	if g.shift += 7; b&0x80 != 0 {
		return nil
	}
	g.varints--
	if !g.counted {
		g.counted, g.varints = true, 2*min(g.varint, 1<<60)
	}
	g.varint, g.shift = 0, 0
	if g.varints == 0 {
		const footer = 4 + 12 // checksum of the index, and the stream footer
		g.skipTo(-g.offset&3+footer, (*xzGuard).streamHeader)
		g.head, g.want, g.whole = g.head[:0], 12, true
	}
	return nil
}

// otherFormats are unsupported formats that archives are sometimes compressed with, by their first
// bytes.
var otherFormats = []struct{ magic, name, tool string }{
	{"\x04\x22\x4d\x18", "lz4", "lz4 -dc"},
	{"LZIP", "lzip", "lzip -dc"},
	{"\x5d\x00\x00", "lzma", "xz -dc"},
	{"\x1f\x9d", "compress", "uncompress -c"},
	{"\x89LZO", "lzop", "lzop -dc"},
	{"PK\x03\x04", "zip", ""},
	{"7z\xbc\xaf", "7z", ""},
	{"Rar!", "rar", ""},
}

// refuseOther returns an error that names an unsupported format, or nil for unknown bytes.
func refuseOther(magic []byte) error {
	for _, f := range otherFormats {
		if len(magic) < len(f.magic) || string(magic[:len(f.magic)]) != f.magic {
			continue
		}
		todo := "unpack it, and make a tar of its content"
		if f.tool != "" {
			todo = "decompress it first with " + f.tool
		}
		return fault.New(fault.Invalid, "compressed with %s, which is not supported (gzip, zstd, xz and bzip2 are): %s",
			f.name, todo)
	}
	return nil
}

// damaged gives an error of compressed data the kind Corrupt, unless it has a kind.
func damaged(format string, err error) error {
	if fault.Of(err) != "" {
		return fmt.Errorf("the %s stream: %w", format, err)
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fault.New(fault.Unimplemented,
			"the %s stream needs a window of more than %d MiB: compress it again with at most --long=27", format,
			maxWindow>>20)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.New(fault.Corrupt, "the %s stream is damaged or truncated: %w", format, err)
	}
	return fault.New(fault.Corrupt, "the %s stream is damaged: %w", format, err)
}
