package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestAllCompressionFormatsUnpack(t *testing.T) {
	needRoot(t)
	plain := tarOf(t, reg("a", "content"))
	var z bytes.Buffer
	w, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, z.Bytes()...)
	half := len(plain) / 2
	for name, packed := range map[string][]byte{
		"plain": plain, "gzip": gzipped(t, plain), "zstd": z.Bytes(), "zstd behind a skippable frame": skippable,
		"gzip of two members": append(gzipped(t, plain[:half]), gzipped(t, plain[half:])...),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			b := blobOf(plain, packed)
			s.Hold([]digest.Digest{b.DiffID})
			if err := s.Unpack(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(s.dir(b.DiffID), "fs/a")); err != nil || string(got) != "content" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestMismatchIsRefused(t *testing.T) {
	needRoot(t)
	plain := tarOf(t, reg("a", strings.Repeat("content", 1000)))
	packed := gzipped(t, plain)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)/2] ^= 0x10
	serve := func(body []byte) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	good := blobOf(plain, packed)
	for name, change := range map[string]func(*Blob){
		"blob digest":    func(b *Blob) { b.Digest = digest.FromString("other") },
		"diffID":         func(b *Blob) { b.DiffID = digest.FromString("other") },
		"size":           func(b *Blob) { b.Size++ },
		"a flipped bit":  func(b *Blob) { b.Open = serve(flipped) },
		"cut off":        func(b *Blob) { b.Open = serve(packed[:len(packed)/2]) },
		"something else": func(b *Blob) { b.Open = serve([]byte(strings.Repeat("<html>no tar</html>", 100))) },
		"a tail":         func(b *Blob) { b.Open = serve(append(bytes.Clone(packed), packed...)) },
		"a cut-off tar":  func(b *Blob) { *b = blobOf(plain[:1000], plain[:1000]) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			b := good
			change(&b)
			if err := s.Unpack(t.Context(), b); !errors.Is(err, fault.Corrupt) {
				t.Errorf("error %v, kind %q", err, fault.Of(err))
			}
			nothingLeft(t, s)
		})
	}
}

// overlay mounts the layers as a container's root and returns its path.
func overlay(t *testing.T, s *Store, diffIDs ...digest.Digest) string {
	t.Helper()
	lower, err := s.Lowerdirs(diffIDs)
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", 0,
		"lowerdir="+strings.Join(lower, ":")+":"+t.TempDir()); err != nil {
		t.Skipf("overlayfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestWhiteoutsWorkInOverlayfs(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	add := func(entries ...ent) digest.Digest {
		t.Helper()
		body := tarOf(t, entries...)
		b := blobOf(body, gzipped(t, body))
		s.Hold([]digest.Digest{b.DiffID})
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		return b.DiffID
	}
	below := add(
		reg("keep", "below"), reg("gone", "below"), reg("replaced", "below"),
		dir("dir"), reg("dir/gone", "below"), reg("dir/keep", "below"),
		dir("opaque"), reg("opaque/old", "below"), dir("opaque/sub"), reg("opaque/sub/old", "below"),
		dir("wiped"), reg("wiped/old", "below"),
		dir("again"), reg("again/old", "below"),
		dir("late"), reg("late/old", "below"),
		dir("implied"), reg("implied/old", "below"),
	)
	above := add(
		reg(".wh.gone", ""), reg("replaced", "above"),
		reg("dir/.wh.gone", ""), reg("dir/new", "above"), reg(".wh..wh.plnk", ""),
		dir("opaque"), reg("opaque/.wh..wh..opq", ""), reg("opaque/new", "above"),
		reg(".wh.wiped", ""),
		reg(".wh.again", ""), dir("again"), reg("again/new", "above"), // removed and recreated
		dir("late"), reg("late/new", "above"), reg(".wh.late", ""), // the same in reverse order
		reg(".wh.implied", ""), reg("implied/new", "above"), // the same without an entry for the directory
		reg(".wh.never-there", ""),
	)
	root := overlay(t, s, below, above)
	for name, want := range map[string]string{
		"keep": "below", "replaced": "above", "dir/keep": "below", "dir/new": "above", "opaque/new": "above",
		"again/new": "above", "late/new": "above", "implied/new": "above",
		"gone": "", "dir/gone": "", "opaque/old": "", "opaque/sub": "", "wiped": "", "again/old": "", "late/old": "",
		"implied/old": "",
	} {
		got, err := os.ReadFile(filepath.Join(root, name))
		if want == "" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %q, %v", name, got, err)
		}
		if want != "" && string(got) != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 7 {
		t.Errorf("listing %v, %v", entries, err)
	}

	all := add(reg(".wh..wh..opq", ""), reg("only", "top"))
	root = overlay(t, s, below, above, all)
	if entries, _ := os.ReadDir(root); len(entries) != 1 || entries[0].Name() != "only" {
		t.Errorf("a layer that hides all below shows %v", entries)
	}
}

func TestHeldLayersStay(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", "x"))
	b := blobOf(plain, plain)
	ids := []digest.Digest{b.DiffID}
	image, container := s.Hold(ids), s.Hold(ids)
	if err := s.Unpack(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	image()
	image() // a second call does nothing
	s.Prune()
	if _, err := s.Lowerdirs(ids); err != nil {
		t.Fatal(err)
	}
	container()
	if _, err := s.Lowerdirs(ids); !errors.Is(err, fault.NotFound) ||
		!strings.Contains(err.Error(), b.DiffID.String()) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)
}

func TestOpenAfterAKill(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := openStore(t, root)
	fs, err := unpacked(t, s, reg("a", strings.Repeat("x", 5000)), dir("d"), link("h", "a"))
	if err != nil {
		t.Fatal(err)
	}
	before := s.Usage()
	whole := filepath.Base(filepath.Dir(fs))
	for name, record := range map[string]string{
		strings.Repeat("a", 64): "",
		strings.Repeat("b", 64): `{"version":1,"data":`,
		strings.Repeat("c", 64): `{"version":1,"data":{"diff_id":"sha256:` + whole + `"}}`,
		"not-a-digest":          "",
	} {
		if err := os.MkdirAll(filepath.Join(root, "layers", name, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if record != "" {
			if err := os.WriteFile(filepath.Join(root, "layers", name, "layer.json"), []byte(record),
				0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, left := range []string{"layer-1/fs/some/dir", "removed-2"} {
		if err := os.MkdirAll(filepath.Join(root, "tmp", left), 0o700); err != nil {
			t.Fatal(err)
		}
	}

	s = openStore(t, root)
	if left, _ := os.ReadDir(filepath.Join(root, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Join(root, "layers")); len(left) != 1 || left[0].Name() != whole {
		t.Errorf("layers: %v", left)
	}
	if got := s.Usage(); got != before {
		t.Errorf("usage %+v, was %+v", got, before)
	}
	real, err := measure(filepath.Join(root, "layers", whole))
	if err != nil || real != before {
		t.Errorf("usage is %+v, measured %+v, %v", before, real, err)
	}
	s.PruneStale()
	if !s.Has(digest.NewDigestFromEncoded("sha256", whole)) {
		t.Error("a layer of this boot was taken for stale")
	}
	s.bootID = "another"
	s.PruneStale()
	nothingLeft(t, s)
}

func TestFullDisk(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	s := openStore(t, root)
	random := make([]byte, 4<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	plain := tarOf(t, reg("small", "x"), reg("big", string(random)))
	err := s.Unpack(t.Context(), blobOf(plain, plain))
	if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Bfree*uint64(st.Bsize) < 2<<20-64<<10 {
		t.Errorf("%d bytes are free again, %v", st.Bfree*uint64(st.Bsize), err)
	}
}

// panicStream panics when it is read.
type panicStream struct{}

func (panicStream) Read([]byte) (int, error) { panic("a bug") }
func (panicStream) Close() error             { return nil }

func TestPanicInAStreamFailsOnlyItsLayer(t *testing.T) {
	needRoot(t)
	s := openStore(t, t.TempDir())
	plain := tarOf(t, reg("f", "x"))
	good := blobOf(plain, gzipped(t, plain))
	bad := good
	bad.Open = func(context.Context) (io.ReadCloser, error) { return panicStream{}, nil }
	defer s.Hold([]digest.Digest{good.DiffID})()
	if err := s.Unpack(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "a bug in Kuri") {
		t.Errorf("Unpack: %v", err)
	}
	nothingLeft(t, s)
	if err := s.Unpack(t.Context(), good); err != nil {
		t.Errorf("Unpack after it: %v", err)
	}
}
