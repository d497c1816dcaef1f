package namespace

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
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
	set, err := Make(Config{Network: true, NetnsPath: path, IPC: true, UTS: true, Hostname: "inner"},
		func(*syscall.SysProcAttr) (int, error) {
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
	if _, err := Make(Config{Network: true, NetnsPath: path, IPC: true},
		func(*syscall.SysProcAttr) (int, error) { return 0, boom }); !errors.Is(err, boom) {
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
	set, err := Make(Config{Network: true, NetnsPath: path, IPC: true, UTS: true, User: &Mapping{ids, ids},
		Hostname: "inner"}, nil)
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
	if after, _ := os.ReadFile("/proc/self/mountinfo"); strings.Count(string(after),
		"kuri-holder") != strings.Count(string(before), "kuri-holder") {
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

// TestForeignNamespaceIsNoHolder: whatever is below the root of a holder and has no pod is removed.
// So the node's own mount namespace must never be taken for one.
func TestForeignNamespaceIsNoHolder(t *testing.T) {
	needRoot(t)
	node, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AdoptHolder(node); !errors.Is(err, ErrNotHolder) {
		t.Errorf("the node's mount namespace: %v", err)
	}
}

// TestHolderInAChroot: setns(2) leaves a chroot, and the root of the new mount namespace would be
// the node's.
func TestHolderInAChroot(t *testing.T) {
	needRoot(t)
	if os.Getenv("KURI_TEST_CHROOT") != "" {
		h, err := NewHolder("/tmp")
		if err == nil {
			h.Close()
		}
		fmt.Print(err)
		os.Exit(0)
	}
	dir := t.TempDir()
	err := OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("/", dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestHolderInAChroot$")
		cmd.Env = append(os.Environ(), "KURI_TEST_CHROOT=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), "kurid runs in a chroot(2)") {
			t.Errorf("%s", out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRootOfAnInitramfs: pivot_root(2) cannot replace an initramfs, so the holder covers it and
// detaches the mounts below.
func TestRootOfAnInitramfs(t *testing.T) {
	needRoot(t)
	scratch := t.TempDir()
	var own *os.File
	err := OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		var err error
		if own, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(source, scratch, "tmpfs", 0, "mode=700"); err != nil {
			return err
		}
		if err := unix.Chdir(scratch); err != nil {
			return err
		}
		thread, err := os.Open("/proc/thread-self")
		if err != nil {
			return err
		}
		defer thread.Close()
		if err := coverRoot(); err != nil {
			return err
		}
		fd, err := unix.Openat(int(thread.Fd()), "mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), "mountinfo")
		defer file.Close()
		mounts, err := io.ReadAll(file)
		if n := strings.Count(string(mounts), "\n"); n != 2 { // the old root, and the holder's on top
			t.Errorf("%d mounts, with those of the holder and of the old root:\n%s", n, mounts)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := AdoptHolder(own)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.AddShm("pod", 1<<20, 0, 0, ""); err != nil {
		t.Fatal(err)
	}
	if pods, err := h.Pods(); err != nil || len(pods) != 1 {
		t.Errorf("%v, %v", pods, err)
	}
}
