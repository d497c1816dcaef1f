package server

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeDirectories(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for _, err := range []error{
		os.Chown(root, 1234, 4321), os.Mkdir(filepath.Join(root, "there"), 0o700), os.Symlink(outside,
			filepath.Join(root, "out")),
		os.WriteFile(filepath.Join(root, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := makeDirectories(root, []string{"there", "there/a/b", "c", "there/a"}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"there": 0o700, "there/a": 0o755, "there/a/b": 0o755, "c": 0o755} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if name != "there" && (st.Uid != 1234 || st.Gid != 4321) || st.Mode != unix.S_IFDIR|mode {
			t.Errorf("%s belongs to %d:%d and has mode %o", name, st.Uid, st.Gid, st.Mode)
		}
	}
	for _, path := range []string{"out/x", "out", "file", "file/x", "../x", "/x", "a/../../x", ""} {
		if err := makeDirectories(root, []string{path}); err == nil {
			t.Errorf("%q was made", path)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made behind a link: %v", left)
	}
}
