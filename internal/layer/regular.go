package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// createFlags create a new file and never open an existing one.
const createFlags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC

func (u *unpacker) regular(parent int, p, name string, hdr *tar.Header) error {
	attr := fileAttr{uint32(hdr.Mode & 0o7777), hdr.Uid, hdr.Gid, hdr.ModTime}
	sparse := isSparse(hdr)
	if sparse {
		// Holes are not in the tar, so the ratio of the stream does not limit them.
		if u.sparse += hdr.Size; u.sparse > u.limits.freeBytes && u.sparse/u.limits.ratio > u.from.read {
			return fault.New(fault.Exhausted,
				"the layer's sparse files have more than %d times the bytes that it has: it looks like an archive bomb",
				u.limits.ratio)
		}
	}
	u.from.content = !sparse
	defer func() { u.from.content = false }()
	if hdr.Size <= maxSmallFile && !u.linked && !hasXattrs(hdr) {
		j := smallFile{path: p, name: name, label: hdr.Name, attr: attr}
		sum, err := u.files.add(u.refOf(parent), j, u.in, hdr.Size)
		if err != nil {
			return cutOff(err)
		}
		u.note(p, hdr, sum)
		return nil
	}
	fd, err := unix.Openat(parent, name, createFlags, attr.mode&0o777)
	if errors.Is(err, unix.EEXIST) {
		if err = u.clear(parent, name); err != nil {
			return err
		}
		fd, err = unix.Openat(parent, name, createFlags, attr.mode&0o777)
	}
	if err != nil {
		return err
	}
	flushed := int64(0)
	defer func() { u.flush.add(flushRange{fd, flushed, hdr.Size, true}) }()
	sum, err := u.content(fd, hdr, func(written int64) {
		if written-flushed >= flushBytes {
			u.flush.add(flushRange{fd, flushed, written, false})
			flushed = written
		}
	})
	if err != nil {
		return err
	}
	if err := u.finishFile(fd, attr, sum); err != nil {
		return err
	}
	u.note(p, hdr, sum)
	if !hasXattrs(hdr) {
		return nil
	}
	return u.attributes(fd, hdr)
}

// writeSmall creates a small file. Safe for concurrent use.
func (u *unpacker) writeSmall(dir int, j *smallFile) error {
	fd, err := unix.Openat(dir, j.name, createFlags, j.attr.mode&0o777)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, j.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return errIsDir
		}
		if err := u.retire(dir, j.name, &st); err != nil {
			return err
		}
		fd, err = unix.Openat(dir, j.name, createFlags, j.attr.mode&0o777)
	}
	if err != nil {
		return err
	}
	if err = writeAll(fd, j.data); err == nil {
		err = u.finishFile(fd, j.attr, j.sum)
	}
	if err == nil && len(j.data) >= flushFile {
		u.flush.add(flushRange{fd, 0, int64(len(j.data)), true})
	} else {
		unix.Close(fd)
	}
	return err
}

// waitForFiles waits for all pending small files.
func (u *unpacker) waitForFiles() error {
	return u.files.settle(func(dir int, j *smallFile) error {
		if err := u.clear(dir, j.name); err != nil {
			return err
		}
		return u.writeSmall(dir, j)
	})
}

// finishFile sets the attributes of a file with complete content (chown first, because it clears
// setuid bits) and stores its checksum. Safe for concurrent use.
func (u *unpacker) finishFile(fd int, a fileAttr, sum uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	moved := int(st.Uid) != a.uid || int(st.Gid) != a.gid // a setgid directory passes on its group
	if moved {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return fmt.Errorf("change owner to %d:%d: %w", a.uid, a.gid, err)
		}
	}
	if moved || st.Mode&0o7777 != a.mode { // changed by a umask or a default ACL
		if err := unix.Fchmod(fd, a.mode); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	u.sumLock.Lock()
	u.sums[st.Ino] = sum
	u.sumLock.Unlock()
	return setTime(fd, "", a.mtime)
}

func cutOff(err error) error {
	return fault.As(fault.Corrupt, fmt.Errorf("its content is cut off: %w", err))
}

// zeros reports whether all bytes are zero. p must not be empty.
func zeros(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }

// content copies an entry's content to fd and returns its checksum. It leaves holes for zeros and
// reports its progress to written.
func (u *unpacker) content(fd int, hdr *tar.Header, written func(int64)) (uint64, error) {
	sum := xxhash.New()
	hole := false
	for left := hdr.Size; left > 0; {
		if err := u.ctx.Err(); err != nil {
			return 0, err
		}
		part := u.buf[:min(left, int64(len(u.buf)))]
		if _, err := io.ReadFull(u.in, part); err != nil {
			return 0, cutOff(err)
		}
		_, _ = sum.Write(part)
		left -= int64(len(part))
		if hole = zeros(part); hole {
			if _, err := unix.Seek(fd, int64(len(part)), io.SeekCurrent); err != nil {
				return 0, err
			}
			continue
		}
		if err := writeAll(fd, part); err != nil {
			return 0, err
		}
		written(hdr.Size - left)
	}
	if hole {
		return sum.Sum64(), unix.Ftruncate(fd, hdr.Size)
	}
	return sum.Sum64(), nil
}
