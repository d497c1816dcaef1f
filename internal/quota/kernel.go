package quota

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/fs.h, linux/quota.h and linux/dqblk_xfs.h.
const (
	fsGetXattr = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr = 0x401c5820 // FS_IOC_FSSETXATTR

	flagProjectInherit = 0x200 // FS_XFLAG_PROJINHERIT

	projectQuota = 2 // PRJQUOTA
	getQuota     = 0x800007
	setQuota     = 0x800008
	getState     = 'X'<<8 + 8 // Q_XGETQSTATV, which ext4 answers as well

	validBlockLimits = 1 // QIF_BLIMITS
	validInodeLimits = 4 // QIF_ILIMITS

	accounted = 1 << 4 // FS_QUOTA_PDQ_ACCT
	enforced  = 1 << 5 // FS_QUOTA_PDQ_ENFD
)

// fileXattr is struct fsxattr.
type fileXattr struct {
	flags, extsize, extents, project, cowExtsize uint32
	_                                            [8]byte
}

// diskQuota is struct if_dqblk.
type diskQuota struct {
	blocksHard, blocksSoft uint64 // in units of 1 KiB
	space                  uint64 // bytes
	inodesHard, inodesSoft uint64
	inodes                 uint64
	blocksTime, inodesTime uint64
	valid                  uint32
	_                      uint32
}

// quotaState is struct fs_quota_statv.
type quotaState struct {
	version int8
	_       uint8
	flags   uint16
	_       [172]byte
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// quotactl speaks to the filesystem of f.
func quotactl(f *os.File, command uintptr, project uint32, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), command<<8|projectQuota, uintptr(project),
		uintptr(arg), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
