package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestAttributesAreApplied(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	capability := string([]byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // cap_net_raw+ep
	long := strings.Repeat("long-name/", 30) + strings.Repeat("n", 200)
	with := func(e ent, change func(*tar.Header)) ent {
		change(&e.Header)
		return e
	}
	at := time.Unix(1_234_567_890, 123_456_789)
	fs, err := unpacked(t, s,
		with(dir("./"), func(h *tar.Header) { h.Mode = 0o711 }),
		with(dir("opt"), func(h *tar.Header) { h.Mode, h.Uid, h.ModTime = 0o1777, 5, at }),
		with(reg("opt/setuid", "x"), func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o6755, 12, 34 }),
		with(reg("opt/cap", "x"), func(h *tar.Header) {
			h.Uid = 9
			h.PAXRecords = map[string]string{
				"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "n",
				"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.opaque": "y",
				"SCHILY.xattr.security.selinux": "evil",
			}
		}),
		with(dir("opt/dir"), func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"} }),
		with(reg("opt/late", strings.Repeat("a", 3*blockBytes+5)),
			func(h *tar.Header) { h.ModTime, h.Format = at, tar.FormatPAX }),
		with(reg("opt/big-owner", ""), func(h *tar.Header) {
			h.Uid, h.Gid, h.Format = math.MaxUint32-1, 3_000_000_000,
				tar.FormatGNU
		}),
		with(reg(long, "deep"), func(h *tar.Header) { h.Format = tar.FormatGNU }),
		with(reg("pax/"+long, "deep"), func(h *tar.Header) { h.Format = tar.FormatPAX }),
		link("opt/hard", "opt/setuid"),
		link("/opt/hard2", "/opt/setuid"),
		with(symlink("opt/sym", "/nowhere/../x"), func(h *tar.Header) { h.Uid, h.ModTime = 77, at }),
		ent{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		ent{Header: tar.Header{Name: "dev/loop9", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 7, Devminor: 300,
			Gid: 6}},
		ent{Header: tar.Header{Name: "dev/pipe", Typeflag: tar.TypeFifo, Mode: 0o622}},
		reg("/rooted", "r"),
	)
	if err != nil {
		t.Fatal(err)
	}
	is := func(name string, mode, uid, gid uint32) unix.Stat_t {
		t.Helper()
		st := lstat(t, filepath.Join(fs, name))
		if st.Mode != mode || st.Uid != uid || st.Gid != gid {
			t.Errorf("%s: mode %o, owner %d:%d; want %o, %d:%d", name, st.Mode, st.Uid, st.Gid, mode, uid, gid)
		}
		return st
	}
	is(".", unix.S_IFDIR|0o711, 0, 0)
	if st := is("opt", unix.S_IFDIR|0o1777, 5, 0); st.Mtim.Sec != at.Unix() {
		t.Errorf("opt: time %v", st.Mtim)
	}
	st := is("opt/setuid", unix.S_IFREG|0o6755, 12, 34)
	if st.Nlink != 3 || is("opt/hard", unix.S_IFREG|0o6755, 12, 34).Ino != st.Ino {
		t.Error("hard links are no links")
	}
	is("opt/cap", unix.S_IFREG|0o644, 9, 0)
	for name, want := range map[string]string{
		"security.capability": capability, "user.note": "n", "trusted.overlay.opaque": "", "user.overlay.opaque": "",
	} {
		if got := xattr(filepath.Join(fs, "opt/cap"), name); got != want {
			t.Errorf("xattr %s = %q, want %q", name, got, want)
		}
	}
	if xattr(filepath.Join(fs, "opt/dir"), opaqueXattr) != "" {
		t.Error("the image made a directory opaque through an xattr")
	}
	if st := is("opt/late", unix.S_IFREG|0o644, 0, 0); st.Size != 3*blockBytes+5 || st.Mtim.Nsec != 123_456_789 {
		t.Errorf("opt/late: %d bytes, time %v", st.Size, st.Mtim)
	}
	is("opt/big-owner", unix.S_IFREG|0o644, math.MaxUint32-1, 3_000_000_000)
	for _, name := range []string{long, "pax/" + long} {
		if body, err := os.ReadFile(filepath.Join(fs, name)); err != nil || string(body) != "deep" {
			t.Errorf("long name: %q, %v", body, err)
		}
	}
	if to, _ := os.Readlink(filepath.Join(fs, "opt/sym")); to != "/nowhere/../x" ||
		is("opt/sym", unix.S_IFLNK|0o777, 77, 0).Mtim.Sec != at.Unix() {
		t.Errorf("symlink to %q", to)
	}
	if st := is("dev/null", unix.S_IFCHR|0o666, 0, 0); st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("dev/null is %x", st.Rdev)
	}
	if st := is("dev/loop9", unix.S_IFBLK|0o660, 0, 6); st.Rdev != unix.Mkdev(7, 300) {
		t.Errorf("dev/loop9 is %x", st.Rdev)
	}
	is("dev/pipe", unix.S_IFIFO|0o622, 0, 0)
	is("dev", unix.S_IFDIR|0o755, 0, 0)
	is("rooted", unix.S_IFREG|0o644, 0, 0)
}

func TestZerosBecomeHoles(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	body := strings.Repeat("\x00", 8*blockBytes) + "end" + strings.Repeat("\x00", 8*blockBytes)
	fs, err := unpacked(t, s, reg("sparse", body))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(fs, "sparse"))
	if err != nil || string(got) != body {
		t.Errorf("content differs: %d bytes, %v", len(got), err)
	}
	if st := lstat(t, filepath.Join(fs, "sparse")); st.Blocks*512 > 2*blockBytes {
		t.Errorf("%d bytes are allocated for 3 bytes of content", st.Blocks*512)
	}
}

func TestLaterEntryReplacesEarlier(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	fs, err := unpacked(t, s,
		reg("a", "first, longer"), reg("a", "second"),
		dir("d"), reg("d/x", ""), reg("d", "a file now"),
		symlink("l", "a"), reg("l", "not through the link"),
		reg("f", ""), dir("f"), reg("f/in", "in"),
		dir("same"), reg("same/kept", ""), dir("same"),
	)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "second", "d": "a file now", "l": "not through the link",
		"f/in": "in", "same/kept": ""} {
		if body, err := os.ReadFile(filepath.Join(fs, name)); err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
}

// Each row is a layer that must not succeed in its attempt. refuses is the entry named by the
// error. If it is empty, the attempt is harmless and inside names the file within the layer.
func TestHostileTar(t *testing.T) {
	needRoot(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	secret := up + strings.TrimPrefix(outside, "/")
	manyXattrs := map[string]string{}
	for i := range 20 {
		manyXattrs[fmt.Sprintf("SCHILY.xattr.user.x%d", i)] = strings.Repeat("v", 4000)
	}
	rows := []struct {
		name    string
		entries []ent
		refuses string // the entry that the error names; "": unpacked
		inside  string // the resulting file in the layer
	}{
		{name: "dot-dot", entries: []ent{reg("../evil", "x")}, refuses: "../evil"},
		{name: "dot-dot within", entries: []ent{dir("a"), reg("a/../b", "x")}, inside: "b"},
		{name: "dot-dot from what is not there", entries: []ent{reg("a/b/../../c/./d", "x")}, inside: "c/d"},
		{name: "dot-dot by a symlink", entries: []ent{symlink("s", up), reg("s/../b", "x")}, inside: "b"},
		{name: "dot-dot out and in again", entries: []ent{reg("a/../../fs/b", "x")}, refuses: "a/../../fs/b"},
		{name: "dot-dot in a hard link", entries: []ent{reg("f", "x"), link("d/h", "a/../f"), reg("f", "y")},
			inside: "d/h"},
		{name: "dot-dot out in a hard link", entries: []ent{reg("f", ""), link("h", "a/../../f")}, refuses: "h"},
		{name: "dot-dot in a whiteout", entries: []ent{reg("f", "x"), reg("a/../.wh.g", "")}, inside: "f"},
		{name: "no name", entries: []ent{reg("", "x"), reg("f", "")}, inside: "f"},
		{name: "directory without a name", entries: []ent{dir(""), reg("f", "")}, inside: "f"},
		{name: "slashes at the end, and two", entries: []ent{dir("a//"), reg("a//b", "x")}, inside: "a/b"},
		{name: "one name in many spellings", entries: []ent{reg("./a/b", "1"), reg("/a/b", "2"), reg("a//b", "3"),
			reg("a/x/../b", "4")}, inside: "a/b"},
		{name: "contiguous file", entries: []ent{{Header: tar.Header{Name: "f", Typeflag: tar.TypeCont, Mode: 0o644}}},
			inside: "f"},
		{name: "dot-dot deep", entries: []ent{reg("a/b/"+up+"evil", "x")}, refuses: "evil"},
		{name: "dot-dot alone", entries: []ent{dir("..")}, refuses: ".."},
		{name: "absolute name", entries: []ent{reg(outside, "x")}, inside: outside},
		{name: "file over the root", entries: []ent{reg(".", "x"), reg("a/..", "x"), reg("f", "")}, inside: "f"},
		{name: "symlink for the root", entries: []ent{symlink("./", "/etc"), reg("f", "")}, inside: "f"},
		{name: "hard link for the root", entries: []ent{reg("f", ""), link("/", "f")}, inside: "f"},
		{name: "absolute symlink, write through", entries: []ent{symlink("s", filepath.Dir(outside)),
			reg("s/outside", "x")}, inside: outside},
		{name: "climbing symlink, write through", entries: []ent{symlink("s", up+"etc"), reg("s/passwd", "x")},
			inside: "etc/passwd"},
		{name: "climbing symlink in a directory, write through",
			entries: []ent{symlink("a/b/s", "../../../../../x/y"), reg("a/b/s/f", "x")}, inside: "x/y/f"},
		{name: "symlink to a symlink to nothing", entries: []ent{symlink("s", "d/t"), symlink("d/t", "../u/v"),
			reg("s/f", "x")}, inside: "u/v/f"},
		{name: "symlink to a file, write through", entries: []ent{reg("f", "x"), symlink("s", "f/d"), reg("s/x", "x")},
			refuses: "s/x"},
		{name: "symlink to below itself", entries: []ent{symlink("s", "s/d"), reg("s/x", "x")}, refuses: "s/x"},
		{name: "climbing symlink is the layer's root",
			entries: []ent{dir("etc"), symlink("s", up+"etc"), reg("s/x", "x")}, inside: "etc/x"},
		{name: "absolute symlink within", entries: []ent{dir("usr/lib"), symlink("lib", "/usr/lib"), reg("lib/x", "x")},
			inside: "usr/lib/x"},
		{name: "symlink as the last component", entries: []ent{symlink("s", outside), reg("s", "x")}, inside: "s"},
		{name: "symlink loop", entries: []ent{symlink("a", "b"), symlink("b", "a"), reg("a/x", "x")}, refuses: "a/x"},
		{name: "through /proc", entries: []ent{symlink("s", "/proc/self/root/etc"), reg("s/x", "x")},
			inside: "proc/self/root/etc/x"},
		{name: "directory over a symlink", entries: []ent{symlink("s", filepath.Dir(outside)), dir("s"),
			reg("s/outside", "x")}, inside: "s/outside"},
		{name: "hard link out", entries: []ent{link("h", secret)}, refuses: "h"},
		{name: "hard link absolute", entries: []ent{link("h", outside)}, refuses: "h"},
		{name: "hard link through a symlink", entries: []ent{symlink("s", filepath.Dir(outside)),
			link("h", "s/outside")}, refuses: "h"},
		{name: "hard link to a symlink out, write", entries: []ent{symlink("s", outside), link("h", "s"),
			reg("h", "x")}, inside: "h"},
		{name: "hard link to itself", entries: []ent{reg("h", "x"), link("h", "./h")}, inside: "h"},
		{name: "hard link to itself, of a directory", entries: []ent{dir("h"), link("h", "./h")}, refuses: "h"},
		{name: "hard link to itself, not there", entries: []ent{link("h", "h")}, refuses: "h"},
		{name: "hard link to a directory", entries: []ent{dir("d"), link("h", "d")}, refuses: "h"},
		{name: "hard link to nothing", entries: []ent{link("h", "missing")}, refuses: "h"},
		{name: "whiteout of dot-dot", entries: []ent{reg("a/.wh...", "")}, refuses: ".wh..."},
		{name: "whiteout of dot", entries: []ent{reg("a/.wh..", "")}, refuses: ".wh.."},
		{name: "whiteout of no name", entries: []ent{reg(".wh.", "")}, refuses: ".wh."},
		{name: "whiteout through a symlink", entries: []ent{symlink("s", filepath.Dir(outside)),
			reg("s/.wh.outside", ""), reg("f", "x")}, inside: "f"},
		{name: "file as a directory", entries: []ent{reg("f", ""), reg("f/x", "")}, refuses: "f/x"},
		{name: "path too long", entries: []ent{reg(strings.Repeat("0123456789/", 280)+"x", "")}, refuses: "0123456789"},
		{name: "component too long", entries: []ent{reg(strings.Repeat("n", 300), "")}, refuses: "nnn"},
		{name: "too deep", entries: []ent{reg(deep(300)+"x", "")}, refuses: "d/d/d"},
		{name: "too deep by symlinks", entries: []ent{dir(deep(200)), symlink("s", deep(200)), dir("s/" + deep(100))},
			refuses: "s/d/"},
		{name: "too much in xattrs", entries: []ent{{Header: tar.Header{Name: "x", Typeflag: tar.TypeReg,
			PAXRecords: manyXattrs}}}, refuses: "x"},
		{name: "unknown type", entries: []ent{{Header: tar.Header{Name: "x", Typeflag: 'Z'}}}, refuses: "x"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s := openStore(t, "")
			fs, err := unpacked(t, s, row.entries...)
			if body, err := os.ReadFile(outside); err != nil || string(body) != "safe" {
				t.Fatalf("it got out: %q, %v", body, err)
			}
			if row.refuses == "" {
				if err != nil {
					t.Fatal(err)
				}
				if st := lstat(t, filepath.Join(fs, row.inside)); st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
					t.Errorf("%s: %+v", row.inside, st)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), row.refuses) || !strings.Contains(err.Error(), "entry ") {
				t.Errorf("not refused by name: %v", err)
			}
			nothingLeft(t, s)
		})
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	t.Run("entries", func(t *testing.T) {
		s := openStore(t, "")
		s.limits.entries = 2
		_, err := unpacked(t, s, reg("a", ""), reg("b", ""), reg("one/too/many", ""))
		if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), `entry "one/too/many"`) {
			t.Errorf("%v", err)
		}
		nothingLeft(t, s)
	})
	t.Run("ratio", func(t *testing.T) {
		s := openStore(t, "")
		s.limits.freeBytes = 1 << 20
		plain := tarOf(t, reg("zeros", strings.Repeat("\x00", 4<<20)))
		err := s.Unpack(t.Context(), blobOf(plain, gzipped(t, plain)))
		if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "bomb") ||
			!strings.Contains(err.Error(), `entry "zeros"`) {
			t.Errorf("%v", err)
		}
		nothingLeft(t, s)
	})
	// A small file is read before it is created, which is a separate code path.
	t.Run("ratio by small files", func(t *testing.T) {
		s := openStore(t, "")
		s.limits.freeBytes = 1 << 20
		s.limits.ratio = 10
		var entries []ent
		for i := range 4000 {
			entries = append(entries, reg(fmt.Sprintf("small%d", i), strings.Repeat("\x00", 1000)))
		}
		plain := tarOf(t, entries...)
		err := s.Unpack(t.Context(), blobOf(plain, gzipped(t, plain)))
		if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "bomb") {
			t.Errorf("%v", err)
		}
		nothingLeft(t, s)
	})
	t.Run("ratio after the tar's end", func(t *testing.T) {
		s := openStore(t, "")
		s.limits.freeBytes = 1 << 20
		plain := append(tarOf(t, reg("a", "")), make([]byte, 4<<20)...)
		if err := s.Unpack(t.Context(), blobOf(plain, gzipped(t, plain))); !errors.Is(err, fault.Exhausted) {
			t.Errorf("%v", err)
		}
		nothingLeft(t, s)
	})
}

// FuzzUntar asserts that no stream escapes from the layer's directory or hangs.
func FuzzUntar(f *testing.F) {
	needRoot(f)
	for _, seed := range [][]ent{
		{dir("a"), reg("a/b", "x"), symlink("a/s", "../../.."), reg("a/s/e", "x"), link("h", "a/b")},
		{reg(".wh.x", ""), dir("x"), reg("x/.wh..wh..opq", ""), reg("x", "")},
		{symlink("s", "/"), dir("s/s/s"), link("s/l", "s")},
		{{Header: tar.Header{Name: "p", Typeflag: tar.TypeReg,
			PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}}},
		{{Header: tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1}}},
	} {
		f.Add(tarOf(f, seed...))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 64<<10 {
			t.Skip()
		}
		base := t.TempDir()
		canary := filepath.Join(base, "canary")
		if err := os.WriteFile(canary, []byte("safe"), 0o600); err != nil {
			t.Fatal(err)
		}
		l := defaultLimits
		l.entries, l.freeBytes = 200, 1<<20
		_, _ = untar(t.Context(), &tarSource{from: bytes.NewReader(body)}, filepath.Join(base, "fs"), l,
			new(bufferPool))
		left, err := os.ReadDir(base)
		if err != nil || len(left) != 2 {
			t.Fatalf("beside the layer: %v, %v", left, err)
		}
		if got, err := os.ReadFile(canary); err != nil || string(got) != "safe" {
			t.Fatalf("canary: %q, %v", got, err)
		}
		if _, err := measure(filepath.Join(base, "fs")); err != nil {
			t.Fatal(err)
		}
	})
}
