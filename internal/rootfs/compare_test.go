package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// compared returns the result of Compare as text.
func compared(t *testing.T, from, to []string) string {
	t.Helper()
	var got []string
	err := Compare(t.Context(), from, to, func(c Change) error {
		got = append(got, fmt.Sprintf("%c %s %d %d", "ACD"[c.Kind], c.Path, c.OldSize, c.Size))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(got, ", ")
}

func TestCompare(t *testing.T) {
	base := layerOf(t, map[string]string{"etc/passwd": "root", "etc/old": "xx", "data/a": "1", "data/sub/c": "333",
		"link": "->etc", "kept": "6", "pipe": "p"})
	for _, tt := range []struct {
		name     string
		from, to []map[string]string // above base, topmost first
		want     string
	}{
		{"the same", nil, nil, ""},
		{"one more layer", nil, []map[string]string{{"etc/new": "nnn", "etc/old": "!", "etc/passwd": "root2",
			"data": "!"}},
			"D /data 0 0, D /data/a 1 0, D /data/sub 0 0, D /data/sub/c 3 0, A /etc/new 0 3, D /etc/old 2 0, C " +
				"/etc/passwd 4 5"},
		{"and back", []map[string]string{{"etc/new": "nnn", "data": "!"}}, nil,
			"A /data 0 0, A /data/a 0 1, A /data/sub 0 0, A /data/sub/c 0 3, D /etc/new 3 0"},
		{"the same content again", nil, []map[string]string{{"etc/passwd": "root", "link": "->etc", "pipe": "p"}}, ""},
		{"of one size", nil, []map[string]string{{"etc/passwd": "toor"}}, "C /etc/passwd 4 4"},
		{"a link", nil, []map[string]string{{"link": "->data"}}, "C /link 0 0"},
		{"a file for a directory", nil, []map[string]string{{"data": "file"}},
			"C /data 0 4, D /data/a 1 0, D /data/sub 0 0, D /data/sub/c 3 0"},
		{"a directory for a file", nil, []map[string]string{{"kept/x": "1"}}, "C /kept 1 0, A /kept/x 0 1"},
		{"an opaque directory", nil, []map[string]string{{"data": "o", "data/a": "1"}},
			"D /data/sub 0 0, D /data/sub/c 3 0"},
		{"a whiteout of a whiteout", []map[string]string{{"kept": "!"}},
			[]map[string]string{{"kept": "7"}, {"kept": "!"}}, "A /kept 0 1"},
		{"a whiteout of nothing", nil, []map[string]string{{"nothing": "!"}}, ""},
		{"the same by other layers", []map[string]string{{"x/a": "1"}, {"x/b": "2"}},
			[]map[string]string{{"x/a": "1", "x/b": "2"}}, ""},
	} {
		stack := func(layers []map[string]string) []string {
			var dirs []string
			for _, l := range layers {
				dirs = append(dirs, layerOf(t, l))
			}
			return append(dirs, base)
		}
		if got := compared(t, stack(tt.from), stack(tt.to)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// The attributes of a file that Compare considers, and those that it ignores.
func TestCompareInodes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: owners and trusted attributes")
	}
	for name, row := range map[string]struct {
		change func(at string) error
		counts bool
	}{
		"a time":   {func(at string) error { return os.Chtimes(at, time.Unix(1, 0), time.Unix(1, 0)) }, false},
		"a mode":   {func(at string) error { return os.Chmod(at, 0o600) }, true},
		"setuid":   {func(at string) error { return unix.Chmod(at, 0o4644) }, true},
		"an owner": {func(at string) error { return os.Chown(at, 7, 0) }, true},
		"a group":  {func(at string) error { return os.Chown(at, 0, 7) }, true},
		"user's":   {func(at string) error { return unix.Setxattr(at, "user.x", []byte("1"), 0) }, true},
		"overlayfs's": {func(at string) error { return unix.Setxattr(at, "trusted.overlay.origin", []byte("1"), 0) },
			false},
		"capability": {func(at string) error {
			return unix.Setxattr(at, "security.capability",
				[]byte("\x00\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
		}, true},
	} {
		for _, p := range []string{"file", "dir"} {
			if p == "dir" && name == "capability" {
				continue // only files have capabilities
			}
			from, to := layerOf(t, map[string]string{"file": "x", "dir": "d"}),
				layerOf(t, map[string]string{"file": "x", "dir": "d"})
			err := row.change(filepath.Join(to, p))
			if errors.Is(err, unix.ENOTSUP) {
				t.Logf("%s: the filesystem has no such attributes", name)
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := compared(t, []string{from}, []string{to}); (got != "") != row.counts {
				t.Errorf("%s of %s: %q", name, p, got)
			}
		}
	}
}

func TestCompareEnds(t *testing.T) {
	base := layerOf(t, map[string]string{"a": "1", "b": "2"})
	full := errors.New("full")
	if err := Compare(t.Context(), nil, []string{base}, func(Change) error { return full }); !errors.Is(err, full) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Compare(ended, nil, []string{base}, func(Change) error { return nil }); !errors.Is(err,
		context.Canceled) {
		t.Error(err)
	}
}

// Compare must find the same differences as a walk of two real overlayfs mounts, for random stacks.
func TestCompareAgainstOverlayfs(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	bottom := randomLayer(t, r, false)
	for range 30 {
		stack := func() []string {
			var dirs []string
			for range r.IntN(4) {
				dirs = append(dirs, randomLayer(t, r, true))
			}
			return append(dirs, bottom)
		}
		from, to := stack(), stack()
		want := differences(seen(t, from), seen(t, to))
		var got []string
		err := Compare(t.Context(), from, to, func(c Change) error {
			got = append(got, fmt.Sprintf("%c %s", "ACD"[c.Kind], c.Path))
			return nil
		})
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v and %v: %q, %v, overlayfs has %q", from, to, got, err, want)
		}
	}
}

// randomLayer makes a layer with few distinct names, so that layers collide, and with whiteouts and
// opaque directories if it is not the lowest.
func randomLayer(t *testing.T, r *rand.Rand, above bool) string {
	files := make(map[string]string)
	for range r.IntN(12) {
		var parts []string
		for range 1 + r.IntN(3) {
			parts = append(parts, string('a'+rune(r.IntN(3))))
		}
		name := strings.Join(parts, "/")
		free := func(n string) bool { // no other file is above or below it
			for other := range files {
				if other == n || strings.HasPrefix(other, n+"/") ||
					strings.HasPrefix(n, other+"/") && files[other] != "o" && files[other] != "d" {
					return false
				}
			}
			return true
		}
		if !free(name) {
			continue
		}
		bodies := []string{"1", "2", "longer", "->a", "d"}
		if above {
			bodies = append(bodies, "!", "!", "o")
		}
		files[name] = bodies[r.IntN(len(bodies))]
	}
	return layerOf(t, files)
}

// seen walks a stack mounted by the kernel and returns path -> mode, owner and content.
func seen(t *testing.T, stack []string) map[string]string {
	t.Helper()
	at := t.TempDir()
	options := "lowerdir=" + strings.Join(append(slices.Clone(stack), t.TempDir()), ":") // overlayfs needs at least two
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, options); err != nil {
		t.Skipf("needs to mount overlayfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	found := make(map[string]string)
	err := filepath.WalkDir(at, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == at {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a whiteout in a directory of a single layer is listed but does not exist
		}
		if err != nil {
			return err
		}
		what := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what += string(body)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			what += to
		}
		found[strings.TrimPrefix(p, at)] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func differences(from, to map[string]string) []string {
	var all []string
	for p, what := range from {
		if other, ok := to[p]; !ok {
			all = append(all, "D "+p)
		} else if other != what {
			all = append(all, "C "+p)
		}
	}
	for p := range to {
		if _, ok := from[p]; !ok {
			all = append(all, "A "+p)
		}
	}
	slices.Sort(all)
	return all
}
