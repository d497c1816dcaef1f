package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	base := layerOf(t, map[string]string{
		"etc/passwd": "root", "etc/old": "x", "data/a": "1", "data/b": "2", "data/sub/c": "3", "dir/f": "4",
		"link": "->etc", "gone/deep/f": "5", "kept": "6", "was/file": "7",
	})
	middle := layerOf(t, map[string]string{"data/b": "!", "etc/new": "n"})
	for _, tt := range []struct {
		name  string
		top   map[string]string
		below []string
		want  string
	}{
		{"the first layer", map[string]string{"a/b": "xyz"}, nil, "A /a 0, A /a/b 3"},
		{"files", map[string]string{"etc/passwd": "root2", "etc/shadow": "s", "etc/old": "!", "gone": "!"},
			[]string{base}, "D /etc/old 0, C /etc/passwd 5, A /etc/shadow 1, D /gone 0"},
		{"a whiteout of nothing", map[string]string{"nothing": "!", "data/b": "!"}, []string{middle, base}, ""},
		{"an opaque directory", map[string]string{"data": "o", "data/a": "new", "data/z": "z"}, []string{middle, base},
			"D /data/sub 0, C /data/a 3, A /data/z 1"},
		{"below an opaque directory", map[string]string{"gone": "o", "gone/deep/g": "1"}, []string{base},
			"D /gone/deep/f 0, A /gone/deep/g 1"},
		{"a file for a directory", map[string]string{"dir": "file"}, []string{base}, "C /dir 4"},
		{"a directory for a file", map[string]string{"kept/x": "1"}, []string{base}, "C /kept 0, A /kept/x 1"},
		{"a directory for a link", map[string]string{"link/x": "1"}, []string{base}, "C /link 0, A /link/x 1"},
	} {
		var got []string
		err := Changes(t.Context(), layerOf(t, tt.top), tt.below, func(c Change) error {
			got = append(got, fmt.Sprintf("%c %s %d", "ACD"[c.Kind], c.Path, c.Size))
			return nil
		})
		if err != nil || strings.Join(got, ", ") != tt.want {
			t.Errorf("%s: %s %v, want %s", tt.name, strings.Join(got, ", "), err, tt.want)
		}
	}

	mode := layerOf(t, map[string]string{"data": "d"})
	if err := os.Chmod(filepath.Join(mode, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	var got []Change
	keep := func(c Change) error { got = append(got, c); return nil }
	if err := Changes(t.Context(), mode, []string{base}, keep); err != nil || len(got) != 1 ||
		got[0] != (Change{Kind: Changed, Path: "/data"}) {
		t.Errorf("the mode of a directory: %v %v", got, err)
	}
	full := errors.New("full")
	if err := Changes(t.Context(), base, nil, func(Change) error { return full }); !errors.Is(err, full) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Changes(ended, base, nil, keep); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
