package probe

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

var storageRows = []row{
	{"storage", "overlayfs", func(m *machine) Result { return m.fromInside("overlay", "works in "+m.tryDir, missing) },
		"no container can be created",
		"modprobe overlay, or put kurid's root on ext4, xfs (ftype=1), btrfs or tmpfs (--root): overlay cannot " +
			"be on overlay or NFS"},
	{"storage", "mapped mounts", func(m *machine) Result {
		return m.fromInside("mapped", "layers can be mounted with mapped ids in "+m.tryDir, limited)
	}, "pods with hostUsers: false are refused", "Linux 5.19, and a root directory on ext4, xfs, btrfs or tmpfs"},
	{"storage", "root", func(m *machine) Result { return m.filesystem(m.Root, 10<<30, 1<<30) },
		"images cannot be pulled, and the kubelet evicts pods",
		"make room (kuri prune), or another root directory (--root)"},
	{"storage", "root's inodes", func(m *machine) Result { return m.inodes(m.Root) },
		"images cannot be pulled although there is room",
		"remove files (kuri prune), or recreate the filesystem with more inodes"},
	{"storage", "state", func(m *machine) Result { return m.filesystem(m.State, 64<<20, 8<<20) },
		"pods cannot be created", "make room, or another state directory (--state)"},
	{"storage", "state's mode", (*machine).passable, "pods with hostUsers: false are refused",
		"chmod o+x the directory, or another state directory (--state)"},
}

// filesystems maps f_type of statfs(2) to names; see linux/magic.h.
var filesystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", 0x2fc12fc1: "zfs", unix.RAMFS_MAGIC: "ramfs",
	unix.F2FS_SUPER_MAGIC: "f2fs",
}

// filesystem checks the free space, in bytes, on the filesystem of a directory that need not exist.
func (m *machine) filesystem(dir string, enough, least uint64) Result {
	at := m.existing(dir)
	f, err := FilesystemOf(at)
	if err != nil {
		return unknown("%s: %v", at, err)
	}
	return judgeSpace(dir, f.Kind, f.ReadOnly, f.Free, f.Total, enough, least)
}

// Filesystem describes the filesystem of a directory.
type Filesystem struct {
	Kind        string `json:"kind"` // as in /proc/filesystems, or "another filesystem"
	ReadOnly    bool   `json:"readOnly"`
	Free        uint64 `json:"free"`  // bytes available to other users than root
	Total       uint64 `json:"total"` // bytes
	InodesFree  uint64 `json:"inodesFree"`
	InodesTotal uint64 `json:"inodesTotal"` // 0: no limit
}

// FilesystemOf returns the filesystem of an existing directory.
func FilesystemOf(dir string) (Filesystem, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return Filesystem{}, err
	}
	kind := filesystems[int64(s.Type)]
	if kind == "" {
		kind = "another filesystem"
	}
	return Filesystem{
		Kind: kind, ReadOnly: uint64(s.Flags)&unix.ST_RDONLY != 0, Free: s.Bavail * uint64(s.Bsize),
		Total:      s.Blocks * uint64(s.Bsize),
		InodesFree: s.Ffree, InodesTotal: s.Files,
	}, nil
}

func judgeSpace(dir, kind string, readOnly bool, free, total, enough, least uint64) Result {
	about := func(judge func(string, ...any) Result) Result {
		return judge("%s on %s, %s of %s free", dir, kind, size(free), size(total))
	}
	switch {
	case readOnly:
		return missing("%s on %s is read-only", dir, kind)
	case free < least:
		return about(missing)
	case free < enough || total > 0 && free < total/10:
		return about(limited)
	}
	return about(ok)
}

func (m *machine) inodes(dir string) Result {
	at := m.existing(dir)
	f, err := FilesystemOf(at)
	if err != nil {
		return unknown("%s: %v", at, err)
	}
	return judgeInodes(dir, f.InodesFree, f.InodesTotal)
}

func judgeInodes(dir string, free, total uint64) Result {
	switch {
	case total == 0:
		return ok("%s: without a limit", dir)
	case free < 10_000:
		return missing("%s: %d of %d free", dir, free, total)
	case free < total/20 || free < 100_000:
		return limited("%s: %d of %d free", dir, free, total)
	}
	return ok("%s: %d of %d free", dir, free, total)
}

// passable checks that all users can traverse to the state directory, as required for the root of a
// user namespace.
func (m *machine) passable() Result {
	for dir := m.existing(m.State); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return unknown("%v", err)
		}
		if info.Mode()&0o001 == 0 {
			return limited("others than its owner cannot pass %s, of mode %04o", dir, info.Mode().Perm())
		}
		if dir == m.path("/") || dir == "/" {
			return ok("everybody can pass to %s", m.State)
		}
	}
}
