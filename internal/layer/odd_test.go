package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math"
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

// stackOf unpacks layers, bottom first, with their patch layer, and mounts them.
func stackOf(t *testing.T, s *Store, layers ...[]ent) (root string) {
	t.Helper()
	var ids []digest.Digest
	add := func(b Blob) {
		t.Cleanup(s.Hold([]digest.Digest{b.DiffID}))
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, b.DiffID)
	}
	for _, entries := range layers {
		plain := tarOf(t, entries...)
		add(blobOf(plain, plain))
	}
	patch, err := s.Patch(ids)
	if err != nil {
		t.Fatal(err)
	}
	if patch != nil {
		add(*patch)
	}
	if more, err := s.Patch(ids); err != nil || more != nil {
		t.Errorf("the patched stack is not right yet: %v, %v", more, err)
	}
	return overlay(t, s, ids...)
}

// A symlink of a layer may point to a directory that only a layer below has. An entry below the
// symlink lands in that directory, which keeps its attributes (containerd unpacks on top of the
// layers below, with the same result).
func TestEntriesThroughASymlinkToALayerBelow(t *testing.T) {
	needRoot(t)
	private := dir("run/private")
	private.Mode, private.Uid = 0o700, 7
	root := stackOf(t, openStore(t, ""), []ent{dir("run"), private, reg("run/old", "")}, []ent{
		symlink("var/run", "../run"), reg("var/run/new", "n"), reg("var/run/private/f", "p"),
		symlink("abs", "/run/private"), reg("abs/g", "g"), reg("var/run/.wh.old", ""),
		symlink("nowhere", "a/b"), reg("nowhere/f", "f"),
	})
	for name, want := range map[string]string{"run/new": "n", "run/private/f": "p", "run/private/g": "g", "a/b/f": "f",
		"var/run/new": "n"} {
		if body, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
	if st := lstat(t, filepath.Join(root, "run/private")); st.Mode != unix.S_IFDIR|0o700 || st.Uid != 7 {
		t.Errorf("run/private: mode %o, owner %d", st.Mode, st.Uid)
	}
	if to, err := os.Readlink(filepath.Join(root, "var/run")); err != nil || to != "../run" {
		t.Errorf("var/run: %q, %v", to, err)
	}
	if _, err := os.Lstat(filepath.Join(root, "run/old")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run/old: %v", err)
	}
}

// Whiteouts that hide nothing are not visible: not in a directory that no other layer has, nor in
// one that is opaque or replaces a symlink.
func TestWhiteoutsOfNothingAreInvisible(t *testing.T) {
	needRoot(t)
	root := stackOf(t, openStore(t, ""),
		[]ent{dir("opaque"), reg("opaque/a", ""), dir("gone"), reg("gone/a", ""), symlink("link", "opaque"),
			dir("both"), reg("both/a", "")},
		[]ent{reg("new/deep/.wh.a", ""), reg("opaque/.wh..wh..opq", ""), reg("opaque/.wh.a", ""),
			reg(".wh.gone", ""), reg("gone/.wh.a", ""), reg("link/.wh.a", ""), reg("both/.wh.a", ""),
			reg("below/.wh.a", ""), symlink("s", "new"), reg("s/linked/.wh.a", "")},
		[]ent{reg("below/.wh..wh..opq", ""), reg("below/f", "")})
	for name, want := range map[string]int{"new": 2, "new/deep": 0, "new/linked": 0, "opaque": 0, "gone": 0, "link": 0,
		"both": 0, "below": 1} {
		if seen, err := os.ReadDir(filepath.Join(root, name)); err != nil || len(seen) != want {
			t.Errorf("%s: %v, %v", name, seen, err)
		}
	}
}

// Attributes that a file of this type cannot have are skipped.
func TestUserXattrsOfSpecialFiles(t *testing.T) {
	needRoot(t)
	with := func(typeflag byte) ent {
		return ent{Header: tar.Header{Name: "x" + string(typeflag), Typeflag: typeflag, Linkname: "t", Mode: 0o600,
			Devmajor: 1, Devminor: 3, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}}
	}
	fs, err := unpacked(t, openStore(t, ""), with(tar.TypeFifo), with(tar.TypeChar), with(tar.TypeBlock),
		with(tar.TypeSymlink), with(tar.TypeDir))
	if err != nil {
		t.Fatal(err)
	}
	if got := xattr(filepath.Join(fs, "x5"), "user.a"); got != "b" {
		t.Errorf("of the directory: %q", got)
	}
}

// An owner has 32 bits, as in docker and containerd. One that chown(2) would not change is root.
func TestOddOwners(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	for id, want := range map[int]uint32{-2: math.MaxUint32 - 1, 1 << 32: 0, 1<<40 + 7: 7, -1: 0, math.MaxUint32: 0} {
		fs, err := unpacked(t, s, ent{Header: tar.Header{Name: "x", Typeflag: tar.TypeReg, Uid: id, Gid: id,
			Format: tar.FormatGNU}})
		if err != nil {
			t.Errorf("%d: %v", id, err)
		} else if st := lstat(t, filepath.Join(fs, "x")); st.Uid != want || st.Gid != want {
			t.Errorf("%d: %d:%d, want %d", id, st.Uid, st.Gid, want)
		}
	}
}

// The mode of an entry counts, not that of its ACL, as in docker and containerd.
func TestModeBesideAnACL(t *testing.T) {
	needRoot(t)
	// u::rw-,g::r--,o::r--
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	with := func(typeflag byte) ent {
		return ent{Header: tar.Header{Name: "x" + string(typeflag), Typeflag: typeflag, Mode: 0o2751, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": acl}}}
	}
	fs, err := unpacked(t, openStore(t, ""), with(tar.TypeReg), with(tar.TypeDir), with(tar.TypeFifo))
	if err != nil {
		t.Fatal(err)
	}
	for _, typeflag := range []byte{tar.TypeReg, tar.TypeDir, tar.TypeFifo} {
		if st := lstat(t, filepath.Join(fs, "x"+string(typeflag))); st.Mode&0o7777 != 0o2751 {
			t.Errorf("type %c: mode %o", typeflag, st.Mode)
		}
	}
}
