package namespace

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
)

// source is the source of the holder's tmpfs in mountinfo(5).
const source = "kuri-holder"

// Holder is a mount namespace without processes. Its root is a tmpfs, in which each pod's /dev/shm
// is mounted, also a tmpfs. The namespace ends when its last descriptor is closed.
type Holder struct {
	own, host *os.File
	device    uint64 // st_dev of the root
}

// NewHolder creates the mount namespace. scratch is any directory; it is used as a mount point
// inside the new namespace.
func NewHolder(scratch string) (*Holder, error) {
	var own *os.File
	err := OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := refuseChroot(); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		var err error
		if own, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(source, scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
			return err
		}
		if err := unix.Chdir(scratch); err != nil {
			return err
		}
		if err := unix.PivotRoot(".", "."); err == unix.EINVAL {
			return coverRoot()
		} else if err != nil {
			return err
		}
		return unix.Unmount(".", unix.MNT_DETACH)
	})
	if err == nil {
		return AdoptHolder(own)
	}
	if own != nil {
		own.Close()
	}
	return nil, fmt.Errorf("create the mount namespace for the pods' /dev/shm: %w", err)
}

// refuseChroot returns an error if this thread's root is not the root of its mount namespace.
// setns(2) leaves a chroot(2), so a thread that returns from another mount namespace would find other files.
func refuseChroot() error {
	var before, after unix.Statx_t
	const mask = unix.STATX_INO | unix.STATX_MNT_ID
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, mask, &before); err != nil {
		return err
	}
	own, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, mask, &after); err != nil {
		return err
	}
	if before.Ino != after.Ino || before.Dev_major != after.Dev_major || before.Dev_minor != after.Dev_minor ||
		before.Mnt_id != after.Mnt_id {
		return errors.New("kurid runs in a chroot(2), where no container can be created; run it in a mount namespace with that root (pivot_root(2), or RootDirectory= of a systemd unit)")
	}
	return nil
}

// coverRoot makes the file system at the working directory the root of the mount namespace where
// that root cannot be replaced, because it is the initramfs (pivot_root(2)): it moves the file system
// on top of it. Mounts below the old root are detached, so that they do not stay busy.
func coverRoot() error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Fchdir(old); err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] != "/" {
			unix.Unmount("."+fields[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // most are gone with those above them
		}
	}
	return unix.Chdir("/")
}

// ErrNotHolder is the error of a mount namespace whose root is not a holder's tmpfs.
var ErrNotHolder = errors.New("the mount namespace for the pods' /dev/shm has another root file system")

// AdoptHolder returns the holder of the mount namespace own, and takes ownership of own. The error
// is ErrNotHolder unless the root of own is a holder's: what a holder removes below its root would
// otherwise be the node's.
func AdoptHolder(own *os.File) (*Holder, error) {
	host, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		own.Close()
		return nil, err
	}
	h := &Holder{own: own, host: host}
	if err := h.identify(); err != nil {
		h.Close()
		return nil, fmt.Errorf("enter the mount namespace for the pods' /dev/shm: %w", err)
	}
	return h, nil
}

// identify sets the device of the holder's root.
func (h *Holder) identify() error {
	return OnThread(func() error {
		// The namespace has no /proc of its own.
		proc, err := os.Open("/proc/thread-self")
		if err != nil {
			return err
		}
		defer proc.Close()
		if err := h.enter(); err != nil {
			return err
		}
		fd, err := unix.Openat(int(proc.Fd()), "mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), "mountinfo")
		defer file.Close()
		mounts, err := io.ReadAll(file)
		if err != nil {
			return err
		}
		if !isHolder(string(mounts)) {
			return ErrNotHolder
		}
		var st unix.Stat_t
		err = unix.Stat("/", &st)
		h.device = st.Dev
		return err
	})
}

// isHolder reports whether the topmost mount at the root is a holder's tmpfs, in the form of
// /proc/PID/mountinfo.
func isHolder(mounts string) bool {
	var top string
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == "/" {
			top = line
		}
	}
	return strings.Contains(top, " - tmpfs "+source+" ")
}

// File returns the mount namespace. The holder keeps ownership.
func (h *Holder) File() *os.File { return h.own }

// Pods returns the device (st_dev) of each pod's /dev/shm by pod id.
func (h *Holder) Pods() (map[string]uint64, error) {
	pods := make(map[string]uint64)
	err := h.inside(func() error {
		entries, err := os.ReadDir("/")
		for _, e := range entries {
			var st unix.Stat_t
			if err := unix.Stat("/"+e.Name(), &st); err != nil {
				return err
			}
			pods[e.Name()] = st.Dev
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the pods' /dev/shm: %w", err)
	}
	return pods, nil
}

// Close closes the holder's descriptors.
func (h *Holder) Close() error { return errors.Join(h.own.Close(), h.host.Close()) }

// AddShm mounts a /dev/shm for the pod id: at most size bytes, owned by the host's uid and gid,
// with mountLabel as the SELinux label of its files unless that is "". It returns the device
// (st_dev).
func (h *Holder) AddShm(id string, size int64, uid, gid int, mountLabel string) (device uint64, err error) {
	options := label.FormatMountLabel(fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", size, uid, gid), mountLabel)
	err = h.inside(func() error {
		if err := unix.Mkdir("/"+id, 0o700); err != nil {
			return err
		}
		err := unix.Mount("shm", "/"+id, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
		if err != nil {
			unix.Rmdir("/" + id)
			return err
		}
		var st unix.Stat_t
		err = unix.Stat("/"+id, &st)
		device = st.Dev
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("mount /dev/shm of pod %s: %w", id, err)
	}
	return device, nil
}

// TakeShm clones the mount at target in the mount namespace of the process pid as the /dev/shm of
// the pod id. It must be the given device (st_dev).
func (h *Holder) TakeShm(id string, pid int, target string, device uint64) error {
	theirs, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer theirs.Close()
	err = OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		var st unix.Stat_t
		fd, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Dev != device {
			return fmt.Errorf("%s of process %d is another filesystem", target, pid)
		}
		if err := unix.Setns(int(h.own.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mkdir("/"+id, 0o700); err != nil && err != unix.EEXIST {
			return err
		}
		return unix.MoveMount(fd, "", unix.AT_FDCWD, "/"+id, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		return fmt.Errorf("take /dev/shm of pod %s from process %d: %w", id, pid, err)
	}
	return nil
}

// RemoveShm unmounts the /dev/shm of the pod id. It does nothing if there is none.
func (h *Holder) RemoveShm(id string) error {
	err := h.inside(func() error {
		// EINVAL: an earlier removal was interrupted after this step.
		if err := unix.Unmount("/"+id, unix.MNT_DETACH); err != nil && err != unix.ENOENT && err != unix.EINVAL {
			return err
		}
		if err := unix.Rmdir("/" + id); err != nil && err != unix.ENOENT {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove /dev/shm of pod %s: %w", id, err)
	}
	return nil
}

// CloneShm returns a detached mount of the /dev/shm of the pod id, which move_mount(2) can attach
// in any mount namespace. It must be called on a thread of its own ([OnThread]) with its own root
// and working directory (CLONE_FS), and leaves that thread in the host's mount namespace.
func (h *Holder) CloneShm(id string) (*os.File, error) {
	if err := unix.Setns(int(h.own.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("enter the holder of /dev/shm: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/"+id, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if serr := unix.Setns(int(h.host.Fd()), unix.CLONE_NEWNS); serr != nil {
		err = errors.Join(err, fmt.Errorf("return from the holder of /dev/shm: %w", serr))
	}
	if err != nil {
		return nil, fmt.Errorf("clone /dev/shm of pod %s: %w", id, err)
	}
	return os.NewFile(uintptr(fd), "shm"), nil
}

func (h *Holder) inside(fn func() error) error {
	return OnThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat("/", &st); err != nil {
			return err
		}
		if st.Dev != h.device {
			return ErrNotHolder
		}
		return fn()
	})
}

// enter moves this thread into the holder's mount namespace, at its root.
func (h *Holder) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(h.own.Fd()), unix.CLONE_NEWNS)
}
