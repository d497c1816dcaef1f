package layer

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestImpliedDirectoriesLookAsInTheLayersBelow(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	add := func(entries ...ent) digest.Digest {
		t.Helper()
		body := tarOf(t, entries...)
		b := blobOf(body, body)
		s.Hold([]digest.Digest{b.DiffID})
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		return b.DiffID
	}
	owned := func(name string, mode int64, uid int) ent {
		e := dir(name)
		e.Mode, e.Uid = mode, uid
		return e
	}
	withXattr := owned("acl", 0o755, 0)
	withXattr.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "n"}
	base := add(
		owned("tmp", 0o1777, 0), owned("home", 0o755, 0), owned("home/u", 0o700, 1000),
		owned("home/u/deep", 0o750, 1000),
		owned("same", 0o755, 0), withXattr, owned("explicit", 0o700, 5), owned("opaque", 0o700, 5),
		owned("gone", 0o700, 5),
		reg("was-file", ""), owned("later", 0o711, 9), symlink("link", "home"),
	)
	middle := add(reg("later/m", ""))
	top := add(
		reg("tmp/f", "f"), reg("home/u/deep/f", "f"), reg("same/f", "f"), reg("acl/f", "f"), reg("new/f", "f"),
		owned("explicit", 0o755, 6), reg("explicit/f", ""),
		reg("opaque/.wh..wh..opq", ""), reg("opaque/f", ""),
		reg(".wh.gone", ""), reg("gone/f", ""),
		reg("was-file/f", ""), reg("later/t", ""), reg("link/f", ""),
	)
	ids := []digest.Digest{base, middle, top}
	patch, err := s.Patch(ids)
	if err != nil || patch == nil {
		t.Fatalf("%v, %v", patch, err)
	}
	if again, _ := s.Patch(ids); again.DiffID != patch.DiffID {
		t.Error("the same stack gave another patch")
	}
	s.Hold([]digest.Digest{patch.DiffID})
	if err := s.Unpack(t.Context(), *patch); err != nil {
		t.Fatal(err)
	}
	ids = append(ids, patch.DiffID)
	if more, err := s.Patch(ids); err != nil || more != nil {
		t.Errorf("the patched stack is not right yet: %v, %v", more, err)
	}
	if none, err := s.Patch([]digest.Digest{base}); err != nil || none != nil {
		t.Errorf("%v, %v", none, err)
	}

	root := overlay(t, s, ids...)
	for name, want := range map[string]struct{ mode, uid uint32 }{
		"tmp": {0o1777, 0}, "home": {0o755, 0}, "home/u": {0o700, 1000}, "home/u/deep": {0o750, 1000},
		"same": {0o755, 0},
		"acl":  {0o755, 0}, "new": {0o755, 0}, "explicit": {0o755, 6}, "opaque": {0o700, 5}, "gone": {0o755, 0},
		"was-file": {0o755, 0}, "later": {0o711, 9}, "link": {0o755, 0},
	} {
		st := lstat(t, filepath.Join(root, name))
		if st.Mode != unix.S_IFDIR|want.mode || st.Uid != want.uid {
			t.Errorf("%s: mode %o, owner %d; want %o, %d", name, st.Mode, st.Uid, want.mode, want.uid)
		}
	}
	if got := xattr(filepath.Join(root, "acl"), "user.note"); got != "n" {
		t.Errorf("xattr %q", got)
	}
	if _, err := os.Stat(filepath.Join(root, "home/u/deep/f")); err != nil {
		t.Error(err)
	}
	if st := lstat(t, filepath.Join(root, "tmp")); st.Mtim.Sec != then.Unix() {
		t.Errorf("tmp: time %v", st.Mtim)
	}
}

func TestTooManyImpliedDirectories(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	s.limits.implied = 3
	if _, err := unpacked(t, s, reg("a/b/c/d", "")); err != nil {
		t.Error(err)
	}
	if _, err := unpacked(t, s, ent{Header: tar.Header{Name: "a/b/c/d/e", Typeflag: tar.TypeReg}}); err == nil {
		t.Error("not refused")
	}
}
