package quota

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Kuri's range of project numbers: [first, first+count). A kubelet counts up from 1048577.
const (
	first = 1 << 30
	count = 1 << 30
)

// Limits are the limits of a project; zero means no limit.
type Limits struct {
	Bytes  uint64 // rounded up to KiB
	Inodes uint64
}

// Usage is the usage of a project, as the filesystem counts it.
type Usage struct{ Bytes, Inodes uint64 }

// Check returns an error of kind Unimplemented if directories below dir cannot be limited; it says
// what the administrator can do. If dir does not exist, Check uses its nearest existing parent.
func Check(dir string) error {
	f, err := os.Open(dir)
	for at := dir; errors.Is(err, fs.ErrNotExist) && filepath.Dir(at) != at; {
		at = filepath.Dir(at)
		f, err = os.Open(at)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	state := quotaState{version: 1}
	err = quotactl(f, getState, 0, unsafe.Pointer(&state))
	const how = "mount it with the option prjquota (ext4 needs its features first, unmounted: tune2fs -O project,quota DEVICE; xfs is ready)"
	switch {
	case errors.Is(err, unix.ENOSYS) && !hasQuotactlFd(f):
		return fault.New(fault.Unimplemented, "this kernel has no quotactl_fd(2), which needs Linux 5.14")
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.EOPNOTSUPP):
		return fault.New(fault.Unimplemented, "the filesystem of %s (%s) has no project quotas; use ext4 or xfs and %s", dir,
			kind(f), how)
	case err != nil:
		return fmt.Errorf("read the quota state of the filesystem of %s: %w", dir, err)
	case state.flags&enforced == 0 && state.flags&accounted != 0:
		return fault.New(fault.Unimplemented, "the filesystem of %s counts projects but does not limit them; %s", dir, how)
	case state.flags&enforced == 0:
		return fault.New(fault.Unimplemented, "the project quotas of the filesystem of %s (%s) are off; %s", dir,
			kind(f), how)
	}
	return nil
}

// hasQuotactlFd reports whether the kernel has quotactl_fd(2): an unknown command has another error
// than a missing system call.
func hasQuotactlFd(f *os.File) bool {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, ^uintptr(0), 0, 0, 0, 0, 0)
	return errno != unix.ENOSYS
}

// kind names the type of the filesystem of f.
func kind(f *os.File) string {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err.Error()
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC:           "tmpfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs",
	}
	if name, ok := names[int64(st.Type)]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", st.Type)
}

// Projects assigns projects to directories. The zero value is ready to use. It is safe for concurrent use.
type Projects struct {
	mu sync.Mutex // held while a free number is found and taken: a few system calls
}

// Limit puts dirs, which must be empty and on one filesystem, into a new project with limits, and returns its number.
func (p *Projects) Limit(l Limits, dirs ...string) (uint32, error) {
	files, err := open(dirs)
	if err != nil {
		return 0, err
	}
	defer closeAll(files)
	project, err := p.take(files)
	if err != nil {
		return 0, err
	}
	q := diskQuota{blocksHard: (l.Bytes + 1023) / 1024, inodesHard: l.Inodes, valid: validBlockLimits | validInodeLimits}
	// Without a soft limit there is no grace period: only the hard limit applies.
	if err := quotactl(files[0], setQuota, project, unsafe.Pointer(&q)); err != nil {
		return 0, fmt.Errorf("limit %s to %d bytes and %d inodes: %w", dirs[0], l.Bytes, l.Inodes, err)
	}
	return project, nil
}

// take finds an unused number and assigns it to all files.
func (p *Projects) take(files []*os.File) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 100 {
		project := first + rand.Uint32N(count)
		free, err := unused(files[0], project, 0)
		if err != nil {
			return 0, err
		}
		if !free {
			continue
		}
		for _, f := range files {
			if err := setProject(f, project); err != nil {
				return 0, err
			}
		}
		// Another process that has taken the same number at the same moment is counted now.
		alone, err := unused(files[0], project, uint64(len(files)))
		if err != nil {
			return 0, err
		}
		if alone {
			return project, nil
		}
	}
	return 0, fault.New(fault.Exhausted, "a hundred random project numbers of the filesystem of %s are all in use",
		files[0].Name())
}

// unused reports whether a project has at most ours inodes and no limits on the filesystem of f.
func unused(f *os.File, project uint32, ours uint64) (bool, error) {
	q, err := read(f, project)
	return q.inodes <= ours && q.blocksHard|q.blocksSoft|q.inodesHard|q.inodesSoft == 0, err
}

func read(f *os.File, project uint32) (diskQuota, error) {
	var q diskQuota
	err := quotactl(f, getQuota, project, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) { // xfs has no entry for it
		return diskQuota{}, nil
	}
	if err != nil {
		return q, fmt.Errorf("read the quota of project %d on the filesystem of %s: %w", project, f.Name(), err)
	}
	return q, nil
}

// Used returns the usage of dir's project. limited is false if dir has no project of Kuri's.
func Used(dir string) (u Usage, limited bool, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return u, false, err
	}
	defer f.Close()
	project, ok := ours(f)
	if !ok {
		return u, false, nil
	}
	q, err := read(f, project)
	return Usage{Bytes: q.space, Inodes: q.inodes}, true, err
}

// Release removes the limits of dir's project. The caller then removes dir with its content, which
// frees the number. Release does nothing if dir does not exist or has no project of Kuri's.
func Release(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	project, ok := ours(f)
	if !ok {
		return nil
	}
	q := diskQuota{valid: validBlockLimits | validInodeLimits}
	// ESRCH, ENOSYS: the filesystem is now mounted without quotas, so there is no limit either.
	if err := quotactl(f, setQuota, project, unsafe.Pointer(&q)); err != nil && !errors.Is(err, unix.ESRCH) &&
		!errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("release project %d of %s: %w", project, dir, err)
	}
	return nil
}

// ours returns the project of f, and whether it is in Kuri's range.
func ours(f *os.File) (uint32, bool) {
	var x fileXattr
	if err := ioctl(f, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return 0, false // a filesystem without projects
	}
	return x.project, x.project >= first && x.project < first+count
}

func setProject(f *os.File, project uint32) error {
	var x fileXattr
	if err := ioctl(f, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("read the project of %s: %w", f.Name(), err)
	}
	x.project = project
	x.flags |= flagProjectInherit // new files in it belong to the project too
	if err := ioctl(f, fsSetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("put %s into project %d: %w", f.Name(), project, err)
	}
	return nil
}

func open(dirs []string) ([]*os.File, error) {
	var files []*os.File
	for _, d := range dirs {
		f, err := os.Open(d)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
