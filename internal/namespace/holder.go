package namespace

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
)

// Holder is a mount namespace without processes. Its root is a tmpfs, in which each pod's /dev/shm is mounted, also a tmpfs.
// The namespace ends when its last descriptor is closed.
type Holder struct {
	own, host *os.File
}

// NewHolder creates the mount namespace. scratch is any directory; it is used as a mount point inside the new namespace.
func NewHolder(scratch string) (*Holder, error) {
	host, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	h := &Holder{host: host}
	err = OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		var err error
		if h.own, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("kuri-holder", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
			return err
		}
		if err := unix.Chdir(scratch); err != nil {
			return err
		}
		// Leave the host's mounts, to keep none busy. That is impossible from an initramfs: chroot there instead.
		if err := unix.PivotRoot(".", "."); err == nil {
			if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
				return err
			}
		} else if err := unix.Chroot("."); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		if h.own != nil {
			h.own.Close()
		}
		host.Close()
		return nil, fmt.Errorf("create the mount namespace for the pods' /dev/shm: %w", err)
	}
	return h, nil
}

// AdoptHolder returns the holder of the mount namespace own, and takes ownership of own.
func AdoptHolder(own *os.File) (*Holder, error) {
	host, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		own.Close()
		return nil, err
	}
	return &Holder{own: own, host: host}, nil
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

// AddShm mounts a /dev/shm for the pod id: at most size bytes, owned by the host's uid and gid, with mountLabel as the SELinux
// label of its files unless that is "". It returns the device (st_dev).
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

// TakeShm clones the mount at target in the mount namespace of the process pid as the /dev/shm of the pod id. It must be the
// given device (st_dev).
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

// CloneShm returns a detached mount of the /dev/shm of the pod id, which move_mount(2) can attach in any mount namespace. It
// must be called on a thread of its own ([OnThread]) with its own root and working directory (CLONE_FS), and leaves that
// thread in the host's mount namespace.
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
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(h.own.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		return fn()
	})
}
