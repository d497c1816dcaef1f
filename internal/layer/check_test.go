package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// sampleLayer has one entry of every kind.
func sampleLayer() []ent {
	return []ent{
		dir("bin/"), reg("bin/sh", strings.Repeat("x", 100)), link("bin/ash", "bin/sh"), symlink("sh", "bin/sh"),
		reg("big", strings.Repeat("0123456789abcdef", flushBytes/16+9)), reg("zeros", strings.Repeat("\x00", 1<<20)),
		reg("empty", ""),
		{Header: tar.Header{Name: "ping", Typeflag: tar.TypeReg, Mode: 0o4755,
			PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, body: "p"},
		{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		reg("gone/.wh..wh..opq", ""), reg(".wh.hidden", ""), reg("over", "first"), reg("over", "second"),
	}
}

func TestCheckFindsDamage(t *testing.T) {
	needRoot(t)
	body := tarOf(t, sampleLayer()...)
	for what, damage := range map[string]func(fs string) error{
		"content": func(fs string) error {
			return os.WriteFile(filepath.Join(fs, "bin/sh"), []byte(strings.Repeat("y", 100)), 0o644)
		},
		"cut off": func(fs string) error { return os.Truncate(filepath.Join(fs, "big"), 5) },
		"mode":    func(fs string) error { return os.Chmod(filepath.Join(fs, "ping"), 0o755) },
		"owner":   func(fs string) error { return os.Chown(filepath.Join(fs, "empty"), 1, 0) },
		"removed": func(fs string) error { return os.Remove(filepath.Join(fs, "sh")) },
		"added":   func(fs string) error { return os.WriteFile(filepath.Join(fs, "bin/more"), nil, 0o644) },
		"renamed": func(fs string) error { return os.Rename(filepath.Join(fs, "sh"), filepath.Join(fs, "si")) },
		"xattr": func(fs string) error {
			return unix.Setxattr(filepath.Join(fs, "ping"), "user.a", []byte("c"),
				0)
		},
		"not whole": func(fs string) error { return os.RemoveAll(fs) },
		"all gone":  func(fs string) error { return os.RemoveAll(filepath.Dir(fs)) },
		"no record": func(fs string) error { return os.Remove(filepath.Join(filepath.Dir(fs), "layer.json")) },
	} {
		s := openStore(t, "")
		b := blobOf(body, gzipped(t, body))
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context(), b.DiffID); err != nil {
			t.Fatalf("%s: a whole layer: %v", what, err)
		}
		if err := damage(filepath.Join(s.dir(b.DiffID), "fs")); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context(), b.DiffID); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.Replace(t.Context(), b, func(swap func(int) error) error { return swap(0) }); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := s.Check(t.Context(), b.DiffID); err != nil {
			t.Errorf("%s: a repaired layer: %v", what, err)
		}
		if left, _ := os.ReadDir(s.tmp()); len(left) > 0 {
			t.Errorf("left in tmp: %v", left)
		}
	}
}

// Small files are written in parallel with reading; entries that touch the same path must still be
// applied in order.
func TestEntriesAreAppliedInOrder(t *testing.T) {
	needRoot(t)
	var entries []ent
	for n := range 300 {
		entries = append(entries, reg(fmt.Sprintf("f%d", n), "old"))
	}
	entries = append(entries, symlink("way", "d"), dir("d/"))
	for n := range 300 {
		entries = append(entries,
			reg(fmt.Sprintf("f%d", n), fmt.Sprint(n)),               // replaces a file
			reg(fmt.Sprintf("d/x%d", n), "x"),                       // replaced through a symlink
			reg(fmt.Sprintf("way/x%d", n), fmt.Sprint("y", n)),      //
			link(fmt.Sprintf("l%d", n), fmt.Sprintf("f%d", n)),      // to a file that is being written
			reg(fmt.Sprintf("t%d", n), "file"),                      // a file becomes a directory
			dir(fmt.Sprintf("t%d/", n)),                             //
			reg(fmt.Sprintf("t%d/in", n), "in"),                     //
			dir(fmt.Sprintf("u%d/", n)),                             // a directory becomes a file
			reg(fmt.Sprintf("u%d/in", n), "in"),                     //
			reg(fmt.Sprintf("u%d", n), fmt.Sprint("now a file", n)), //
		)
	}
	s := openStore(t, "")
	fs, err := unpacked(t, s, entries...)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 300 {
		for name, want := range map[string]string{
			fmt.Sprintf("f%d", n): fmt.Sprint(n), fmt.Sprintf("d/x%d", n): fmt.Sprint("y", n),
			fmt.Sprintf("l%d", n):    fmt.Sprint(n),
			fmt.Sprintf("t%d/in", n): "in", fmt.Sprintf("u%d", n): fmt.Sprint("now a file", n),
		} {
			got, err := os.ReadFile(filepath.Join(fs, name))
			if err != nil || string(got) != want {
				t.Fatalf("%s: %q, %v, want %q", name, got, err, want)
			}
		}
	}
}

func TestErrorNamesTheSmallFile(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	_, err := unpacked(t, s, reg("a", "a"), reg(strings.Repeat("n", 256), "too long a name"), reg("b", "b"))
	if err == nil || !strings.Contains(err.Error(), "nnnn") {
		t.Errorf("%v", err)
	}
	_, err = unpacked(t, s, reg("a", "a"), reg("a/b", "below a file"))
	if err == nil || !strings.Contains(err.Error(), `"a/b"`) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)
}
