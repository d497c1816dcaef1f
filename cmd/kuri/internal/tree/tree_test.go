package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func tarOf(t testing.TB, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "content"
			h.Size = int64(len(body))
		}
		h.ModTime = time.Unix(1e9, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o4755} }
func dir(name string) tar.Header  { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o555} }
func symlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func hardlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// list returns the paths of all files below a directory.
func list(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// TestUnpackHostile unpacks tars with which a container could try to write elsewhere. A file and a
// directory beside the target must not change.
func TestUnpackHostile(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"up":                       {file("src/../../victim")},
		"up alone":                 {file("../victim")},
		"absolute":                 {file("/victim")},
		"another name":             {file("victim")},
		"a prefix of the name":     {file("srcx")},
		"through a link":           {symlink("src", "beside"), file("src/f")},
		"through a link below":     {dir("src"), symlink("src/l", "../beside"), file("src/l/f")},
		"through an absolute link": {dir("src"), symlink("src/l", "/tmp"), file("src/l/victim")},
		"a file over a link":       {dir("src"), symlink("src/l", "../victim"), file("src/l")},
		"hard link out":            {dir("src"), hardlink("src/h", "../victim"), file("src/h")},
		"hard link to another":     {dir("src"), hardlink("src/h", "victim")},
		"directory over a link":    {dir("src"), symlink("src/l", "../beside"), dir("src/l"), file("src/l/f")},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			if err := os.Mkdir(filepath.Join(parent, "beside"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(parent, "victim"), []byte("whole"), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := Unpack(t.Context(), tarOf(t, entries...), parent, "src", "to", func(string) {})
			if b, err := os.ReadFile(filepath.Join(parent, "victim")); err != nil || string(b) != "whole" {
				t.Errorf("the victim has %q %v", b, err)
			}
			if left := list(t, filepath.Join(parent, "beside")); len(left) > 0 {
				t.Errorf("beside: %v", left)
			}
			for _, n := range list(t, parent) {
				if n != "beside" && n != "victim" && n != "to" && !strings.HasPrefix(n, "to/") {
					t.Errorf("%s was made", n)
				}
			}
			t.Log(err)
		})
	}
}

func TestUnpackIntoALinkOfTheTargets(t *testing.T) {
	parent, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(parent, "to"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(parent, "to", "l")); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), tarOf(t, dir("src"), file("src/l/f")), parent, "src", "to",
		func(string) {}); err == nil {
		t.Error("it was written through the link")
	}
	if left := list(t, elsewhere); len(left) > 0 {
		t.Errorf("elsewhere: %v", left)
	}
}

func TestUnpackLeavesOutDevicesAndSetuid(t *testing.T) {
	parent := t.TempDir()
	var left []string
	n, err := Unpack(t.Context(), tarOf(t, dir("./src/"), file("./src/f"),
		tar.Header{Typeflag: tar.TypeChar, Name: "./src/null", Devmajor: 1, Devminor: 3},
		tar.Header{Typeflag: tar.TypeFifo, Name: "./src/pipe"}, symlink("./src/l", "/etc/passwd")), parent, "src", "to",
		func(s string) { left = append(left, s) })
	if err != nil || n != 3 || strings.Join(left, " ") != "./src/null ./src/pipe" {
		t.Errorf("%d %v: %v", n, err, left)
	}
	if got := strings.Join(list(t, parent), " "); got != "to to/f to/l" {
		t.Error(got)
	}
	info, err := os.Stat(filepath.Join(parent, "to/f"))
	if err != nil || info.Mode() != 0o755 || info.ModTime().Unix() != 1e9 {
		t.Error(info.Mode(), info.ModTime(), err)
	}
	if info, err := os.Stat(filepath.Join(parent, "to")); err != nil || info.Mode().Perm() != 0o555 {
		t.Error(info.Mode(), err)
	}
}

func TestThereAndBack(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(src, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "a/b/f"), bytes.Repeat([]byte("x"), 1<<20), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b/f", filepath.Join(src, "a/l")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, filepath.Join(src, "a"), "a", false, func(s string) { t.Error(s) }); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time over existing files
		if _, err := Unpack(t.Context(), bytes.NewReader(b.Bytes()), dst, "a", "a",
			func(s string) { t.Error(s) }); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := list(t, dst), list(t, src); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if f, err := os.ReadFile(filepath.Join(dst, "a/l")); err != nil || len(f) != 1<<20 {
		t.Error(len(f), err)
	}
	into := t.TempDir()
	b.Reset()
	if err := Pack(t.Context(), &b, filepath.Join(src, "a"), ".", false, func(s string) { t.Error(s) }); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), &b, into, ".", "", func(s string) { t.Error(s) }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(list(t, into), " "); got != "b b/f l" {
		t.Error(got)
	}
}

// Pack writes no headers that some programs cannot read: busybox's tar ignores PAX headers, and the
// names in them.
func TestNamesForEveryTar(t *testing.T) {
	src := t.TempDir()
	names := []string{"Kastanie-süß", strings.Repeat("long", 60), "-f", "with\nline"}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(src, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("ü", 100), filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, src, strings.Repeat("dir/", 40)+"x", true, func(s string) { t.Error(s) }); err != nil {
		t.Fatal(err)
	}
	// the files are empty: there are only headers and long names
	for body := b.Bytes(); len(body) >= 512; body = body[512:] {
		if magic := string(body[257:265]); magic == "ustar\x0000" {
			t.Errorf("entry %.100q is of type %q and not GNU's", body[:100], body[156])
		}
		if strings.HasPrefix(string(body[257:]), "ustar") && body[345] != 0 {
			t.Errorf("entry %.100q has what others take for a part of its name: %q", body[:100], body[345:360])
		}
	}
	got := map[string]string{}
	for in := tar.NewReader(&b); ; {
		h, err := in.Next()
		if err != nil {
			break
		}
		got[filepath.Base(h.Name)] = h.Linkname
	}
	for _, name := range append(names, "link") {
		if _, ok := got[name]; !ok {
			t.Errorf("%q is not among %q", name, got)
		}
	}
	if got["link"] != strings.Repeat("ü", 100) {
		t.Errorf("the link leads to %q", got["link"])
	}
}

// A tar that ends within a file leaves no part of it, and keeps an existing file with its name.
func TestUnpackInPart(t *testing.T) {
	parent := t.TempDir()
	if err := os.WriteFile(filepath.Join(parent, "to"), []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	whole := tarOf(t, file("src")).Bytes()
	if _, err := Unpack(t.Context(), bytes.NewReader(whole[:512+3]), parent, "src", "to", func(string) {}); err == nil {
		t.Error("half a file is one")
	}
	if body, err := os.ReadFile(filepath.Join(parent, "to")); err != nil || string(body) != "before" {
		t.Errorf("it has %q, %v", body, err)
	}
	if got := list(t, parent); len(got) != 1 {
		t.Errorf("there is %v", got)
	}
	if _, err := Unpack(t.Context(), bytes.NewReader(whole), parent, "src", "to", func(string) {}); err != nil {
		t.Error(err)
	}
	if body, err := os.ReadFile(filepath.Join(parent, "to")); err != nil || string(body) != "content" {
		t.Errorf("it has %q, %v", body, err)
	}
}

// A file replaces a symlink, an empty directory and a read-only file. A non-empty directory is
// kept.
func TestUnpackOverWhatIsThere(t *testing.T) {
	parent := t.TempDir()
	for name, make := range map[string]func(at string) error{
		"link":  func(at string) error { return os.Symlink("../elsewhere", at) },
		"empty": func(at string) error { return os.Mkdir(at, 0o755) },
		"fixed": func(at string) error { return os.WriteFile(at, nil, 0o444) },
	} {
		at := filepath.Join(parent, name)
		if err := make(at); err != nil {
			t.Fatal(err)
		}
		if _, err := Unpack(t.Context(), tarOf(t, file("src")), parent, "src", name, func(string) {}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Lstat(at); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(parent, "full/f"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), tarOf(t, file("src")), parent, "src", "full", func(string) {}); err == nil {
		t.Error("a directory gave way")
	}
	if got := strings.Join(list(t, parent), " "); got != "empty fixed full full/f link" {
		t.Error(got)
	}
}

// Repeated directories use no memory each, and links at most maxLinkBytes.
func TestUnpackIsBounded(t *testing.T) {
	parent := t.TempDir()
	var entries []tar.Header
	for range 1000 {
		entries = append(entries, dir("src"), dir("src/a"))
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u := &unpacker{root: root, from: "src", to: "to", dirs: map[string]os.FileMode{}}
	for _, h := range entries {
		if err := u.entry(&h, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(u.dirs) != 2 {
		t.Errorf("%d directories are kept", len(u.dirs))
	}
	long := symlink("src/l", strings.Repeat("x", 1<<20))
	for i := range 100 {
		if err := u.entry(&long, nil); err != nil {
			if i < 60 {
				t.Errorf("link %d: %v", i, err)
			}
			return
		}
	}
	t.Error("links without bound")
}

func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, dir("src"), symlink("src/l", ".."), file("src/l/f"), hardlink("src/h", "src/l")).Bytes())
	f.Add(tarOf(f, file("src"), file("src/../../x")).Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		into := filepath.Join(parent, "into")
		if err := os.Mkdir(into, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = Unpack(t.Context(), bytes.NewReader(data), into, "src", "to", func(string) {})
		for _, dir := range []string{parent, into} {
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) > 1 || len(entries) == 1 && entries[0].Name() != "into" && entries[0].Name() != "to" {
				t.Errorf("%s has %v %v", dir, entries, err)
			}
		}
	})
}

// If nothing can be copied the result is an error, not an empty tar.
func TestNothingToCopy(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(pipe, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{pipe, filepath.Join(dir, "link"), "/dev/null"} {
		if err := Pack(t.Context(), io.Discard, src, "x", false, func(string) {}); !errors.Is(err, ErrNothing) {
			t.Errorf("%s: %v", src, err)
		}
	}
	if err := Pack(t.Context(), io.Discard, dir, "x", false, func(string) {}); err != nil {
		t.Errorf("a directory with a FIFO in it: %v", err)
	}
	for what, in := range map[string]io.Reader{"a FIFO": tarOf(t, tar.Header{Typeflag: tar.TypeFifo, Name: "p"}),
		"nothing": strings.NewReader("")} {
		if err := Again(t.Context(), io.Discard, in, func(string) {}); !errors.Is(err, ErrNothing) {
			t.Errorf("a tar with %s: %v", what, err)
		}
	}
	if err := Again(t.Context(), io.Discard, strings.NewReader("text\n"), func(string) {}); err == nil ||
		!strings.Contains(err.Error(), "not a tar") {
		t.Errorf("no tar: %v", err)
	}
	n, err := Unpack(t.Context(), tarOf(t, tar.Header{Typeflag: tar.TypeFifo, Name: "p"}), dir, "p", "q", func(string) {})
	if n != 0 || err != nil {
		t.Errorf("a tar with a FIFO: %d %v", n, err)
	}
}

// A file in /proc reports the size 0 but is not empty.
func TestPackWithoutASize(t *testing.T) {
	var out bytes.Buffer
	if err := Pack(t.Context(), &out, "/proc/self/status", "status", false, func(string) {}); err != nil {
		t.Fatal(err)
	}
	in := tar.NewReader(&out)
	if _, err := in.Next(); err != nil {
		t.Fatal(err)
	}
	if content, err := io.ReadAll(in); err != nil || !strings.HasPrefix(string(content), "Name:") {
		t.Errorf("%q %v", content, err)
	}
}
