package layer

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Any algorithm of the digest library works, for blobs and for layers, also after a restart.
func TestOtherDigestAlgorithms(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := openStore(t, root)
	plain := tarOf(t, reg("f", "content"))
	packed := gzipped(t, plain)
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		for _, of := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
			b := blobOf(plain, packed)
			b.DiffID, b.Digest = a.FromBytes(plain), of.FromBytes(packed)
			release := s.Hold([]digest.Digest{b.DiffID})
			wrong := b
			wrong.Digest = of.FromString("other")
			if err := s.Unpack(t.Context(), wrong); !errors.Is(err, fault.Corrupt) {
				t.Errorf("a blob that is not %s: %v", wrong.Digest, err)
			}
			wrong = b
			wrong.DiffID = a.FromString("other")
			if err := s.Unpack(t.Context(), wrong); !errors.Is(err, fault.Corrupt) {
				t.Errorf("a layer that is not %s: %v", wrong.DiffID, err)
			}
			if err := s.Unpack(t.Context(), b); err != nil {
				t.Errorf("%s: %v", b.DiffID, err)
			}
			if err := s.Tar(t.Context(), b.DiffID, io.Discard); err != nil {
				t.Error(err)
			}
			again := openStore(t, root)
			if !again.Has(b.DiffID) || again.Check(t.Context(), b.DiffID) != nil {
				t.Errorf("%s is not there after a restart", b.DiffID)
			}
			release()
		}
	}
	nothingLeft(t, s)
}

// A layer that occurs several times in a stack is mounted once, at its topmost place, without a
// visible difference.
func TestALayerTwiceInAStack(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	layer := func(entries ...ent) digest.Digest {
		plain := tarOf(t, entries...)
		b := blobOf(plain, plain)
		t.Cleanup(s.Hold([]digest.Digest{b.DiffID}))
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		return b.DiffID
	}
	a := layer(dir("d"), reg("d/a", "a"), reg(".wh.base", ""), reg("f", "from a"))
	b := layer(reg("d/.wh.a", ""), reg("d/b", "b"), reg("f", "from b"), reg(".wh.g", ""))
	base := layer(reg("base", "base"), reg("g", "g"), dir("d"), reg("d/base", ""))
	all := layer(reg(whiteoutOpaque, ""), reg("only", ""))
	nothing := layer()
	for name, row := range map[string]struct {
		stack []digest.Digest
		want  []digest.Digest // topmost first
	}{
		"one after the other": {[]digest.Digest{base, a, a}, []digest.Digest{a, base}},
		"apart":               {[]digest.Digest{base, a, b, a}, []digest.Digest{a, b, base}},
		"all":                 {[]digest.Digest{a, a, a}, []digest.Digest{a}},
		"empty ones":          {[]digest.Digest{nothing, base, nothing, a, nothing}, []digest.Digest{nothing, a, base}},
		"opaque":              {[]digest.Digest{base, all, a, all}, []digest.Digest{all}},
		"opaque in between":   {[]digest.Digest{base, all, base}, []digest.Digest{base, all}},
		"many":                {slices.Repeat([]digest.Digest{a, b}, 100), []digest.Digest{b, a}},
	} {
		dirs, err := s.Lowerdirs(row.stack)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, id := range row.want {
			want = append(want, filepath.Join(s.dir(id), "fs"))
		}
		if !slices.Equal(dirs, want) {
			t.Errorf("%s: %v, want %v", name, dirs, want)
		}
		if _, err := s.Patch(row.stack); err != nil {
			t.Errorf("%s: patch: %v", name, err)
		}
		at := t.TempDir()
		if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY,
			"lowerdir="+strings.Join(append(dirs, t.TempDir()), ":")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		seen, err := os.ReadDir(at)
		if name == "apart" && (err != nil || len(seen) != 2) { // d and f: base and g are gone
			t.Errorf("%v, %v", seen, err)
		}
		if body, _ := os.ReadFile(filepath.Join(at, "f")); name == "apart" && string(body) != "from a" {
			t.Errorf("f is %q", body)
		}
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}

// A sparse file is tiny in the tar and must not take hours to read.
func TestSparseFilesAreBounded(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	s.limits.freeBytes = 1 << 20
	hole := t.TempDir()
	for _, f := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(hole, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(hole, f), 1<<40); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"gnu", "posix"} {
		plain, err := exec.Command("tar", "--sparse", "--format="+format, "-C", hole, "-c", "one", "two").Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Unpack(t.Context(), blobOf(plain, plain)); !errors.Is(err, fault.Exhausted) ||
			!strings.Contains(err.Error(), "sparse") {
			t.Errorf("%s: %v", format, err)
		}
		nothingLeft(t, s)
	}
}

// Two blobs with the same content become one layer, even when they are unpacked at once.
func TestOneLayerFromTwoBlobs(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("f", "content"))
	one, two := blobOf(plain, gzipped(t, plain)), blobOf(plain, zstded(t, plain))
	release := s.Hold([]digest.Digest{one.DiffID, two.DiffID})
	errs := make(chan error)
	for _, b := range []Blob{one, two} {
		go func() { errs <- s.Unpack(context.Background(), b) }()
	}
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	if n := s.Holders(one.DiffID); n != 2 {
		t.Errorf("%d holders", n)
	}
	if size := s.Size([]digest.Digest{one.DiffID, two.DiffID}); size != s.Usage().Bytes {
		t.Errorf("%d bytes, of %d", size, s.Usage().Bytes)
	}
	release()
	nothingLeft(t, s)
}
