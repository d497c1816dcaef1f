package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// treeSum walks a layer's files once. It counts their disk usage and computes one checksum of the
// tree: sha256 over all entries, sorted by name, with everything that a container can see of them,
// including the xxhash64 of file contents. During an unpack the contents have just been hashed, so
// the checksum needs no reading. It detects damage; the diffID protects against forgery.
type treeSum struct {
	// content returns the checksum of a regular file's content.
	content func(dir int, name string, st *unix.Stat_t) (uint64, error)
	xattrs  bool // entries may have extended attributes

	usage  Usage
	sum    hash.Hash
	linked map[uint64]bool // inodes with several names, already counted
	fields bytes.Buffer
}

// walk computes the usage and the checksum of the tree at dir.
func (s *treeSum) walk(dir string) (Usage, digest.Digest, error) {
	s.sum, s.linked = sha256.New(), make(map[uint64]bool)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Usage{}, "", &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if err := s.entry(-1, dir, ".", &st, fd); err != nil {
		return Usage{}, "", err
	}
	if err := s.children(f, "."); err != nil {
		return Usage{}, "", err
	}
	return s.usage, digest.NewDigest(digest.SHA256, s.sum), nil
}

// children adds the entries of the open directory p.
func (s *treeSum) children(dir *os.File, p string) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	fd := int(dir.Fd())
	for _, name := range names {
		var st unix.Stat_t
		at := path.Join(p, name)
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := s.entry(fd, name, at, &st, -1); err != nil {
				return err
			}
			continue
		}
		if err := s.directory(fd, name, at, &st); err != nil {
			return err
		}
	}
	return nil
}

func (s *treeSum) directory(parent int, name, p string, st *unix.Stat_t) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: p, Err: err}
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	if err := s.entry(parent, name, p, st, fd); err != nil {
		return err
	}
	return s.children(f, p)
}

// entry adds one entry. open is the descriptor of a directory, -1 for other entries.
func (s *treeSum) entry(parent int, name, p string, st *unix.Stat_t, open int) error {
	if st.Nlink < 2 || open >= 0 || !s.linked[st.Ino] {
		s.usage.Bytes += st.Blocks * 512
		s.usage.Inodes++
		if st.Nlink > 1 && open < 0 {
			s.linked[st.Ino] = true
		}
	}
	s.fields.Reset()
	s.text(p)
	at := st.Mtim
	if isWhiteout(st) { // its time is invisible and is that of the unpacking
		at = unix.Timespec{}
	}
	s.number(uint64(st.Mode), uint64(st.Uid), uint64(st.Gid), uint64(at.Sec), uint64(at.Nsec))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		sum, err := s.content(parent, name, st)
		if err != nil {
			return fmt.Errorf("file %q: %w", clip(p), err)
		}
		s.number(uint64(st.Size), sum)
	case unix.S_IFLNK:
		target := make([]byte, 4096)
		n, err := unix.Readlinkat(parent, name, target)
		if err != nil {
			return &os.PathError{Op: "readlink", Path: p, Err: err}
		}
		s.text(string(target[:n]))
	case unix.S_IFCHR, unix.S_IFBLK:
		s.number(st.Rdev)
	}
	if s.xattrs {
		where := procPath(parent, name)
		if open >= 0 {
			where = procPath(open, ".")
		}
		found := listXattrs(where)
		if open >= 0 && isOpaque(where) {
			found[opaqueXattr] = "y"
		}
		for _, key := range slices.Sorted(maps.Keys(found)) {
			s.text(key)
			s.text(found[key])
		}
	}
	s.number(^uint64(0)) // end of the entry
	s.sum.Write(s.fields.Bytes())
	return nil
}

// text and number write an unambiguous encoding.
func (s *treeSum) text(t string) {
	s.number(uint64(len(t)))
	s.fields.WriteString(t)
}

func (s *treeSum) number(numbers ...uint64) {
	for _, n := range numbers {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], n)
		s.fields.Write(b[:])
	}
}

// readSum reads a file and returns the checksum of its content.
func readSum(dir int, name string, _ *unix.Stat_t) (uint64, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	sum := xxhash.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, make([]byte, 128<<10)); err != nil {
		return 0, err
	}
	return sum.Sum64(), nil
}
