package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountsChanged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting needs root")
	}
	var l lists
	defer l.close()
	if !l.mountsChanged() {
		t.Error("the first look is a full one")
	}
	dir := t.TempDir()
	if err := unix.Mount("test", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if !l.mountsChanged() {
		t.Error("a mount is no change")
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if !l.mountsChanged() {
		t.Error("an unmount is no change")
	}
	// Other processes on this machine mount, too.
	for range 100 {
		if !l.mountsChanged() {
			return
		}
	}
	t.Error("the mount table changes all the time")
}

func TestDirectoriesLack(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b/c"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := make(directories)
	for name, lacks := range map[string]bool{"a": false, "b": false, "b/c": false, "b/d": true, "e": true, "e/f": true} {
		if got := d.lacks(filepath.Join(dir, name)); got != lacks {
			t.Errorf("%s: %v", name, got)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "e"), 0o755); err != nil {
		t.Fatal(err)
	}
	if d.lacks(filepath.Join(dir, "e")) {
		t.Error("what was made after the directory was read is lacking")
	}
}

// BenchmarkLackingCgroups compares checks of the cgroups of a thousand pods: file by file, and by directory.
func BenchmarkLackingCgroups(b *testing.B) {
	dir, paths := b.TempDir(), []string{}
	for n := range 1000 {
		paths = append(paths, filepath.Join(dir, fmt.Sprintf("pod%036d", n)))
		if err := os.Mkdir(paths[n], 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for name, lacks := range map[string]func() func(string) bool{
		"file by file":   func() func(string) bool { return lacksFile },
		"by directories": func() func(string) bool { return make(directories).lacks },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				gone := lacks()
				for _, path := range paths {
					if gone(path) {
						b.Fatal("one is gone")
					}
				}
			}
		})
	}
}
