package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// xattrPrefix marks extended attributes among the PAX records of a tar entry.
const xattrPrefix = "SCHILY.xattr."

// attributes sets the owner, the extended attributes and the mode of an open file or directory, in
// this order: chown clears the setuid bits and file capabilities, and an ACL changes the mode.
func (u *unpacker) attributes(fd int, hdr *tar.Header) error {
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("change owner to %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := u.xattrs(hdr, func(name string, value []byte) error {
		return unix.Fsetxattr(fd, name, value, 0)
	}); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode&0o7777)); err != nil {
		return fmt.Errorf("change mode: %w", err)
	}
	return nil
}

// attributesAt does the same, and sets the time, for an entry that cannot be opened: a symlink,
// device or FIFO.
func (u *unpacker) attributesAt(parent int, name string, hdr *tar.Header) error {
	if err := unix.Fchownat(parent, name, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("change owner to %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := u.xattrs(hdr, func(key string, value []byte) error {
		return unix.Lsetxattr(procPath(parent, name), key, value, 0)
	}); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(parent, name, uint32(hdr.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	return setTime(parent, name, hdr.ModTime)
}

// xattrs calls set for the extended attributes that an image may set. Attributes of overlayfs and
// of the node's security modules are skipped.
func (u *unpacker) xattrs(hdr *tar.Header, set func(string, []byte) error) error {
	total := 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		if total += len(name) + len(value); total > u.limits.xattrs {
			return refuse("its extended attributes have more than %d bytes", u.limits.xattrs)
		}
		u.tree.xattrs = true
		if !wantXattr(name) {
			u.skip(name, "an image must not set it")
			continue
		}
		err := set(name, []byte(value))
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) && !canHaveXattrs(hdr.Typeflag) {
			u.skip(name, "not supported by the filesystem")
			continue
		}
		if err != nil {
			return fmt.Errorf("set extended attribute %q: %w", clip(name), err)
		}
	}
	return nil
}

// canHaveXattrs reports whether files of a type can have attributes of the user (xattr(7)).
func canHaveXattrs(typeflag byte) bool {
	switch typeflag {
	case tar.TypeSymlink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return false
	}
	return true
}

func wantXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

func (u *unpacker) skip(xattr, why string) {
	if u.skipped == nil {
		u.skipped = make(map[string]bool)
	}
	if !u.skipped[xattr] && len(u.skipped) < 16 {
		u.skipped[xattr] = true
		slog.Warn("skipping an extended attribute of a layer", "name", clip(xattr), "why", why)
	}
}

// hasXattrs reports whether the entry has extended attributes.
func hasXattrs(hdr *tar.Header) bool {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) {
			return true
		}
	}
	return false
}

// setTime sets both times of entry name in dir, or of dir itself if name is "".
func setTime(dir int, name string, mtime time.Time) error {
	at := unix.Timespec{Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}
	times := [2]unix.Timespec{at, at}
	if name == "" {
		return unix.UtimesNanoAt(dir, "", times[:], unix.AT_EMPTY_PATH)
	}
	return unix.UtimesNanoAt(dir, name, times[:], unix.AT_SYMLINK_NOFOLLOW)
}

// setOwner reduces the owner to the 32 bits that an ID has on Linux, as docker and containerd do: -2 is
// 4294967294. An ID of -1, which some systems write for an unknown owner, is root: for chown(2) it means
// no change.
func setOwner(hdr *tar.Header) {
	for _, id := range []*int{&hdr.Uid, &hdr.Gid} {
		if *id = int(uint32(*id)); *id == math.MaxUint32 {
			*id = 0
		}
	}
}

// isSparse reports whether the entry is stored without its holes.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
