package namespace

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The main thread cannot end, so it must not be one that enters another namespace (see namespace.OnThread).
func init() { runtime.LockOSThread() }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: making namespaces needs root")
	}
}

func TestMakePinsAndHolds(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "ns", "pod")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	set, err := Make(Config{Network: true, NetnsPath: path, IPC: true, UTS: true, Hostname: "inner"}, func(*syscall.SysProcAttr) (int, error) {
		inside, err = os.Hostname()
		return 0, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inside != "inner" {
		t.Errorf("hostname inside is %q", inside)
	}
	if now, _ := os.Hostname(); now != host {
		t.Errorf("the host's name has become %q", now)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		t.Errorf("%s is not a namespace: %v", path, err)
	}
	if set.IPC == nil || set.UTS == nil {
		t.Errorf("not held: %+v", set)
	}
	for range 2 {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin is left: %v", err)
	}
}

func TestMakeThatFailsLeavesNothing(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "pod")
	boom := errors.New("boom")
	if _, err := Make(Config{Network: true, NetnsPath: path, IPC: true}, func(*syscall.SysProcAttr) (int, error) { return 0, boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin is left: %v", err)
	}
}

func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "pod")
	ids := []syscall.SysProcIDMap{{HostID: 1 << 20, Size: 1000}}
	set, err := Make(Config{Network: true, NetnsPath: path, IPC: true, UTS: true, User: &Mapping{ids, ids}, Hostname: "inner"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	user := inode(t, set.User)
	pinned, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	for name, ns := range map[string]*os.File{"network": pinned, "ipc": set.IPC, "uts": set.UTS} {
		fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
		if err != nil {
			t.Fatal(err)
		}
		owner := os.NewFile(uintptr(fd), "owner")
		if inode(t, owner) != user {
			t.Errorf("the %s namespace belongs to another user namespace", name)
		}
		owner.Close()
	}
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestHolderIsSeenByNobody(t *testing.T) {
	needRoot(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.AddShm("pod", 1<<20, 0, 0, ""); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); strings.Count(string(after), "kuri-holder") != strings.Count(string(before), "kuri-holder") {
		t.Errorf("the host sees it: %s", after)
	}
	// Two clones, in mount namespaces of their own, are one filesystem.
	target := t.TempDir()
	attach := func(then func() error) error {
		return OnThread(func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			shm, err := h.CloneShm("pod")
			if err != nil {
				return err
			}
			defer shm.Close()
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.MoveMount(int(shm.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return err
			}
			return then()
		})
	}
	note := filepath.Join(target, "note")
	if err := attach(func() error { return os.WriteFile(note, []byte("hello"), 0o600) }); err != nil {
		t.Fatal(err)
	}
	if err := attach(func() error {
		if body, err := os.ReadFile(note); err != nil || string(body) != "hello" {
			t.Errorf("%q, %v", body, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host sees the file: %v", err)
	}
	for range 2 {
		if err := h.RemoveShm("pod"); err != nil {
			t.Error(err)
		}
	}
	if err := attach(func() error { return nil }); !errors.Is(err, unix.ENOENT) {
		t.Errorf("after its removal: %v", err)
	}
}
