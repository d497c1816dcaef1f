package layer

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// packedBy compresses body with an installed program.
func packedBy(t *testing.T, body []byte, program string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s", program)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = bytes.NewReader(body)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return out
}

func zstded(t *testing.T, body []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(body, nil)
}

func decompressed(packed []byte) ([]byte, error) {
	plain, err := Decompress(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return io.ReadAll(plain)
}

// A stream is decompressed completely, with any number of members, frames, streams and blocks.
func TestWholeStreamIsDecompressed(t *testing.T) {
	one, two := bytes.Repeat([]byte("one "), 100_000), []byte(strings.Repeat("two ", 10))
	both := slices.Concat(one, two)
	xz := func(body []byte, args ...string) []byte {
		return packedBy(t, body, "xz", append([]string{"-c"}, args...)...)
	}
	for name, packed := range map[string][]byte{
		"gzip members":          slices.Concat(gzipped(t, one), gzipped(t, two)),
		"gzip, an empty member": slices.Concat(gzipped(t, one), gzipped(t, nil), gzipped(t, two)),
		"gzip, padding":         slices.Concat(gzipped(t, one), gzipped(t, two), make([]byte, 512)),
		"zstd frames":           slices.Concat(zstded(t, one), zstded(t, two)),
		"zstd, skippable frames": slices.Concat([]byte("\x50\x2a\x4d\x18\x03\x00\x00\x00abc"), zstded(t, one),
			[]byte("\x5f\x2a\x4d\x18\x01\x00\x00\x00a"), zstded(t, two)),
		"bzip2":                packedBy(t, both, "bzip2", "-c"),
		"bzip2 streams":        slices.Concat(packedBy(t, one, "bzip2", "-c"), packedBy(t, two, "bzip2", "-c")),
		"xz":                   xz(both),
		"xz -9":                xz(both, "-9"),
		"xz streams":           slices.Concat(xz(one), xz(two)),
		"xz streams, padding":  slices.Concat(xz(one), make([]byte, 8), xz(two)),
		"xz blocks":            xz(both, "--block-size=10000"),
		"xz threads":           xz(both, "-T4", "--block-size=70000"),
		"xz sha256":            xz(both, "--check=sha256"),
		"xz without a check":   xz(both, "--check=none"),
		"xz of what is random": nil,
		"plain":                both,
	} {
		want := both
		if packed == nil {
			want = make([]byte, 300_000)
			for i := range want {
				want[i] = byte(i*i>>7*31 ^ i>>3)
			}
			packed = xz(want)
		}
		if got, err := decompressed(packed); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
}

func TestTooLargeAWindow(t *testing.T) {
	packed := packedBy(t, bytes.Repeat([]byte("0123456789"), 100), "zstd", "-q", "-c", "--long=31")
	if _, err := decompressed(packed); !errors.Is(err, fault.Unimplemented) ||
		!strings.Contains(err.Error(), "--long=27") {
		t.Errorf("%v", err)
	}
}

// A truncated stream or one with trailing garbage is an error, never a shorter layer.
func TestNoPartOfAStreamIsDroppedSilently(t *testing.T) {
	body := bytes.Repeat([]byte("content "), 1000)
	for name, packed := range map[string][]byte{
		"gzip": gzipped(t, body), "zstd": zstded(t, body), "bzip2": packedBy(t, body, "bzip2", "-c"),
		"xz": packedBy(t, body, "xz", "-c"),
	} {
		for cut := 5; cut < len(packed); cut += 7 {
			if got, err := decompressed(packed[:cut]); !errors.Is(err, fault.Corrupt) {
				t.Errorf("%s, %d of %d bytes: %d bytes, %v", name, cut, len(packed), len(got), err)
			}
		}
		if _, err := decompressed(slices.Concat(packed, []byte("what is this?"))); !errors.Is(err, fault.Corrupt) ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s and more: %v", name, err)
		}
	}
}

func TestXzIsBounded(t *testing.T) {
	body := []byte("content")
	small := packedBy(t, body, "xz", "-c", "--lzma2=dict=64KiB")
	for name, row := range map[string]struct {
		packed []byte
		kind   fault.Kind
		says   string
	}{
		"dictionary": {packedBy(t, body, "xz", "-c", "--lzma2=dict=512MiB"), fault.Exhausted,
			"dictionary"},
		"dictionary of a second block": {slices.Concat(small, packedBy(t, body, "xz", "-c", "--lzma2=dict=512MiB")),
			fault.Exhausted, "dictionary"},
		"dictionary that is just right": {packedBy(t, body, "xz", "-c", "--lzma2=dict=128MiB"), "", ""},
		"filter": {packedBy(t, body, "xz", "-c", "--x86", "--lzma2"), fault.Unimplemented,
			"filter"},
	} {
		if _, err := decompressed(row.packed); fault.Of(err) != row.kind ||
			err != nil && !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzXz asserts that xzGuard accepts every stream without a panic or a hang.
func FuzzXz(f *testing.F) {
	f.Add([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x02\x00!\x01\x16\x00\x00\x00t/\xe5\xa3\x01\x00\x02abc\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if plain, err := Decompress(bytes.NewReader(append([]byte("\xfd7zXZ\x00"), body...))); err == nil {
			io.Copy(io.Discard, io.LimitReader(plain, 1<<20))
			plain.Close()
		}
	})
}

func TestUnsupportedFormatsAreNamed(t *testing.T) {
	for magic, says := range map[string]string{"\x04\x22\x4d\x18....": "lz4", "LZIP\x01": "lzip -dc",
		"\x5d\x00\x00\x80\x00": "xz -dc", "PK\x03\x04....": "zip", "\x1f\x9d\x90": "compress", "Rar!": "rar"} {
		if _, err := decompressed([]byte(magic)); !errors.Is(err, fault.Invalid) ||
			!strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", magic, err)
		}
	}
	plain := tarOf(t, reg("LZIP and more", "x"))
	if got, err := decompressed(plain); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("a tar whose first file is called so: %v", err)
	}
}

func TestLayersInXzAndBzip2(t *testing.T) {
	needRoot(t)
	for _, program := range []string{"xz", "bzip2"} {
		s := openStore(t, "")
		plain := tarOf(t, reg("f", "content"))
		b := blobOf(plain, packedBy(t, plain, program, "-c"))
		s.Hold([]digest.Digest{b.DiffID})
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Errorf("%s: %v", program, err)
		}
	}
}
