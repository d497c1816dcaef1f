package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
)

// rewritten unpacks a layer and returns its tar, written again from the recipe.
func rewritten(t *testing.T, s *Store, plain []byte) []byte {
	t.Helper()
	b := blobOf(plain, plain)
	t.Cleanup(s.Hold([]digest.Digest{b.DiffID}))
	if err := s.Unpack(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := s.Tar(t.Context(), b.DiffID, &again); err != nil {
		t.Fatal(err)
	}
	if size, ok := s.TarSize(b.DiffID); !ok || size != int64(len(plain)) {
		t.Errorf("the tar has %d bytes, want %d", size, len(plain))
	}
	return again.Bytes()
}

func TestTarIsWrittenAgainByteForByte(t *testing.T) {
	needRoot(t)
	large := strings.Repeat("large ", 40_000)
	pax := reg("pax", "x")
	pax.PAXRecords, pax.Format = map[string]string{"SCHILY.xattr.user.note": "n"}, tar.FormatPAX
	var many []ent
	for i := range 1000 {
		many = append(many, reg(fmt.Sprintf("many/%d", i), strings.Repeat("x", i)))
	}
	for name, entries := range map[string][]ent{
		"nothing": nil,
		"all kinds": {dir("d"), reg("d/f", "f"), reg("d/large", large), link("l", "d/f"), symlink("s", "d"),
			reg("s/through", "t"), reg(".wh.x", ""), pax,
			{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}},
		"many": many,
		"twice": {reg("f", "one"), reg("f", "two"), reg("f", "three"), reg("g", large), reg("g", "small"),
			reg("h", "small"), reg("h", large)},
		"replaced": {reg("a", "a"), symlink("a", "b"), reg("b", "b"), dir("b"), reg("c", "c"), link("d", "c"),
			reg("c", "other"), reg("d", "also"), reg("e", "e"), link("e", "a/../c")},
		"directories": {
			dir("d"), reg("d/f", "f"), dir("d/e"), reg("d/e/g", large), symlink("d/s", "f"), link("kept", "d/f"),
			reg("d/empty", ""), reg("d", "a file now"),
			dir("x"), reg("x/y", "y"), symlink("x", "d"), reg("z/z", "small"), link("z", "d"),
		},
		"linked": {reg("c", "c"), link("d", "c"), link("d", "c"), link("c", "d")},
		"content of what has none": {
			{Header: tar.Header{Name: ".wh.gone", Typeflag: tar.TypeReg}, body: "content of a whiteout"},
			{Header: tar.Header{Name: ".wh..wh.plnk", Typeflag: tar.TypeReg}, body: large},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			plain := tarOf(t, entries...)
			if !bytes.Equal(rewritten(t, s, plain), plain) {
				t.Error("another tar")
			}
		})
	}
	t.Run("odd ends", func(t *testing.T) {
		s := openStore(t, "")
		plain := tarOf(t, reg("f", "f"))
		for _, odd := range [][]byte{{}, plain[:len(plain)-1024], plain[:len(plain)-512],
			append(bytes.Clone(plain), plain...), append(bytes.Clone(plain), make([]byte, 9000)...)} {
			if !bytes.Equal(rewritten(t, s, odd), odd) {
				t.Errorf("another tar than one of %d bytes", len(odd))
			}
		}
	})
	t.Run("sparse", func(t *testing.T) {
		dir := sparseFiles(t)
		for _, format := range [][]string{{"--format=gnu"}, {"--format=posix", "--sparse-version=0.0"},
			{"--format=posix", "--sparse-version=0.1"}, {"--format=posix", "--sparse-version=1.0"}} {
			plain, err := exec.Command("tar", append(format, "--sparse", "-C", dir, "-c", ".")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			s := openStore(t, "")
			if !bytes.Equal(rewritten(t, s, plain), plain) {
				t.Errorf("%s: another tar", format)
			}
			unpacked := filepath.Join(s.dir(digest.FromBytes(plain)), "fs")
			if out, err := exec.Command("diff", "-r", dir, unpacked).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", format, err, out)
			}
		}
	})
}

// sparseFiles returns a directory with files of one hole, of none, with holes at the start and the
// end, and with more parts than fit into one header.
func sparseFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, parts := range map[string]struct{ number, size int64 }{"hole": {0, 1 << 20}, "nothing": {0, 0},
		"end": {1, 1 << 20}, "header": {4, 1 << 20}, "more": {5, 1 << 20}, "many": {200, 14 << 20}} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for i := range parts.number {
			if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 4096), (i+1)<<16); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(parts.size), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A layer unpacked by an older Kuri has no recipe, and the store says so.
func TestLayerWithoutARecipe(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := openStore(t, root)
	plain := tarOf(t, reg("f", "f"))
	rewritten(t, s, plain)
	id := digest.FromBytes(plain)
	info, err := s.info(id)
	if err != nil {
		t.Fatal(err)
	}
	info.TarBytes, info.Recipe = 0, ""
	if err := record.Write(filepath.Join(s.dir(id), "layer.json"), recordVersion, info); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(s.dir(id), recipeFile)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root)
	if size, ok := s.TarSize(id); ok {
		t.Errorf("a tar of %d bytes", size)
	}
	if err := s.Tar(t.Context(), id, io.Discard); !errors.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	if err := s.Check(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func TestTarOfADamagedLayerIsAnError(t *testing.T) {
	needRoot(t)
	plain := tarOf(t, reg("f", "content"), reg("g", "x"))
	for name, damage := range map[string]func(dir string) error{
		"content": func(dir string) error { return os.WriteFile(filepath.Join(dir, "fs/f"), []byte("CONTENT"), 0o600) },
		"size":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "fs/f"), []byte("c"), 0o600) },
		"gone":    func(dir string) error { return os.Remove(filepath.Join(dir, "fs/f")) },
		"link": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "fs/f")),
				os.Symlink("/etc/hostname", filepath.Join(dir, "fs/f")))
		},
		"recipe":    func(dir string) error { return os.Truncate(filepath.Join(dir, recipeFile), 20) },
		"no recipe": func(dir string) error { return os.Remove(filepath.Join(dir, recipeFile)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			rewritten(t, s, plain)
			id := digest.FromBytes(plain)
			if err := damage(s.dir(id)); err != nil {
				t.Fatal(err)
			}
			if err := s.Tar(t.Context(), id, io.Discard); err == nil {
				t.Error("it was written")
			}
			if err := s.Check(t.Context(), id); !errors.Is(err, fault.Corrupt) {
				t.Errorf("check: %v", err)
			}
		})
	}
}

// The recipe and the replaced files count as part of the layer's size.
func TestUsageIncludesTheRecipe(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("f", strings.Repeat("x", 50_000)), reg("f", "y"))
	rewritten(t, s, plain)
	want, err := measure(s.dir(digest.FromBytes(plain)))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Usage(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// FuzzRecipe asserts that every stream that unpacks can be written again.
func FuzzRecipe(f *testing.F) {
	needRoot(f)
	for _, seed := range [][]ent{
		{dir("a"), reg("a/b", "x"), symlink("a/s", "../../.."), reg("a/s/e", "x"), link("h", "a/b"), reg("h", "y")},
		{reg(".wh.x", "x"), dir("x"), reg("x/.wh..wh..opq", ""), reg("x", "y"), reg("x", "z")},
		{dir("d"), reg("d/f", "f"), reg("d", "file"), symlink("s", "d"), reg("s", "s")},
	} {
		f.Add(tarOf(f, seed...))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 64<<10 {
			t.Skip()
		}
		dir := t.TempDir()
		r, err := newRecipe(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		l := defaultLimits
		l.entries, l.freeBytes = 200, 1<<20
		from := &tarSource{from: bytes.NewReader(body), recipe: r}
		if _, err := untar(t.Context(), from, filepath.Join(dir, "fs"), l, new(bufferPool)); err != nil {
			return
		}
		if _, err := drain(from); err != nil {
			t.Fatal(err)
		}
		size, _, err := r.finish()
		if err != nil || size != int64(len(body)) {
			t.Fatalf("%d bytes, %v, want %d", size, err, len(body))
		}
		var again bytes.Buffer
		a := &assembler{ctx: t.Context(), dir: dir, out: &again, buf: make([]byte, blockBytes)}
		if err := a.run(); err != nil || !bytes.Equal(again.Bytes(), body) {
			t.Errorf("another tar: %v", err)
		}
	})
}
