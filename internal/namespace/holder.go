package namespace

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
)

// Holder is a mount namespace without processes. Its root is a tmpfs, with one mounted tmpfs for each pod: the pod's
// /dev/shm. It is gone when the last descriptor of it is closed.
type Holder struct {
	own, host *os.File
}

// NewHolder makes the mount namespace. Scratch is a directory, any, that it may mount over within the new namespace.
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
		// Without the host's mounts, so that none is kept busy. An initramfs cannot be left; there it stays.
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
		return nil, fmt.Errorf("make the mount namespace that holds /dev/shm of pods: %w", err)
	}
	return h, nil
}

// AdoptHolder returns the holder whose mount namespace own is, which it then owns.
func AdoptHolder(own *os.File) (*Holder, error) {
	host, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		own.Close()
		return nil, err
	}
	return &Holder{own: own, host: host}, nil
}

// File is the mount namespace, which stays the holder's.
func (h *Holder) File() *os.File { return h.own }

// Pods lists the pods that have a /dev/shm here, and the device (st_dev) of each.
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
		return nil, fmt.Errorf("list /dev/shm of pods: %w", err)
	}
	return pods, nil
}

// Close gives all of it up.
func (h *Holder) Close() error { return errors.Join(h.own.Close(), h.host.Close()) }

// AddShm makes the /dev/shm of the pod id, of at most size bytes, which belongs to the given user and group of the host.
// All that is in it has the SELinux label, unless that is "". It returns the device (st_dev) that it is.
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
		return 0, fmt.Errorf("make /dev/shm of pod %s: %w", id, err)
	}
	return device, nil
}

// TakeShm makes the mount at target in the mount namespace of the process pid the /dev/shm of the pod id, if it is that
// device (st_dev).
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
			return fmt.Errorf("%s of process %d is another file system", target, pid)
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

// RemoveShm gives the /dev/shm of the pod id up. One that is not there is a success.
func (h *Holder) RemoveShm(id string) error {
	err := h.inside(func() error {
		// EINVAL: its removal was cut off after this step.
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

// CloneShm returns a detached mount of the /dev/shm of the pod id, to be attached with move_mount(2) in any mount
// namespace. It is called on a thread of its own (see [OnThread]) which has its own root and working directory
// (CLONE_FS); the thread is back in the host's mount namespace afterwards.
func (h *Holder) CloneShm(id string) (*os.File, error) {
	if err := unix.Setns(int(h.own.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("enter the holder of /dev/shm: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/"+id, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if serr := unix.Setns(int(h.host.Fd()), unix.CLONE_NEWNS); serr != nil {
		err = errors.Join(err, fmt.Errorf("come back from the holder of /dev/shm: %w", serr))
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
