package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
)

// The tar of a layer is not kept, but can be written again byte for byte, with the diffID as its
// digest. The recipe beside the layer's files contains all bytes of the tar outside of file
// contents (headers, padding, trailer) and references to the files whose contents go between. A
// file that a later entry of the same layer replaces is kept below "replaced". Docker's tar-split
// serves the same purpose.
//
// A recipe is a zstd stream of pieces. A piece begins with its kind and length, as varints.
// pieceBytes is followed by that many bytes of the tar. pieceFile stands for a file of that length
// and is followed by the length of its path, the xxhash64 of the file, and the path.
const (
	recipeFile  = "tar.recipe"
	replacedDir = "replaced"

	pieceBytes = 0
	pieceFile  = 1

	maxPiece     = 32 << 10 // maximum bytes of the tar in one piece
	recipeWindow = 128 << 10
)

// recipe writes the recipe of a layer that is being unpacked. Except for keep, its methods are
// called by the goroutine that reads the tar.
type recipe struct {
	dir   string // the layer's directory
	file  *os.File
	sum   hash.Hash // of the recipe file
	zip   *zstd.Encoder
	piece []byte
	bytes int64 // of the tar, so far
	err   error // the first error

	mu       sync.Mutex // guards the fields below
	replaced int        // descriptor of replacedDir; -1: not created yet
}

// newRecipe begins the recipe of the layer in dir. The caller closes it.
func newRecipe(dir string) (*recipe, error) {
	f, err := os.OpenFile(filepath.Join(dir, recipeFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	r := &recipe{dir: dir, file: f, sum: digest.SHA256.Hash(), piece: make([]byte, 0, maxPiece), replaced: -1}
	r.zip, err = zstd.NewWriter(io.MultiWriter(f, r.sum), zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(recipeWindow), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

func (r *recipe) close() {
	r.zip.Close()
	r.file.Close()
	if r.replaced >= 0 {
		unix.Close(r.replaced)
	}
}

// addBytes adds bytes of the tar.
func (r *recipe) addBytes(b []byte) {
	r.bytes += int64(len(b))
	for len(b) > 0 {
		n := min(len(b), cap(r.piece)-len(r.piece))
		r.piece = append(r.piece, b[:n]...)
		b = b[n:]
		if len(r.piece) == cap(r.piece) {
			r.flush()
		}
	}
}

// addFile adds a reference to a file's content.
func (r *recipe) addFile(p string, size int64, sum uint64) {
	r.bytes += size
	r.flush()
	head := binary.AppendUvarint(nil, pieceFile)
	head = binary.AppendUvarint(head, uint64(size))
	head = binary.AppendUvarint(head, uint64(len(p)))
	head = binary.LittleEndian.AppendUint64(head, sum)
	r.write(append(head, p...))
}

func (r *recipe) flush() {
	if len(r.piece) == 0 {
		return
	}
	head := binary.AppendUvarint(nil, pieceBytes)
	r.write(binary.AppendUvarint(head, uint64(len(r.piece))))
	r.write(r.piece)
	r.piece = r.piece[:0]
}

func (r *recipe) write(b []byte) {
	if r.err == nil {
		_, r.err = r.zip.Write(b)
	}
}

// finish writes the rest. It returns the size of the tar and the digest of the recipe.
func (r *recipe) finish() (bytes int64, sum digest.Digest, err error) {
	r.flush()
	if err := r.zip.Close(); r.err == nil {
		r.err = err
	}
	if r.err != nil {
		return 0, "", fmt.Errorf("write %s: %w", recipeFile, r.err)
	}
	return r.bytes, digest.NewDigest(digest.SHA256, r.sum), nil
}

// keep moves a file that is being replaced to replacedDir. A file with other names is copied
// instead, because a container would see a link too many. Safe for concurrent use.
func (r *recipe) keep(parent int, name string, st *unix.Stat_t, sum uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.replaced < 0 {
		at := filepath.Join(r.dir, replacedDir)
		if err := os.Mkdir(at, 0o700); err != nil {
			return err
		}
		fd, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: at, Err: err}
		}
		r.replaced = fd
	}
	kept := replacedName(st.Size, sum)
	if st.Nlink == 1 {
		return unix.Renameat(parent, name, r.replaced, kept)
	}
	if err := copyFile(parent, name, filepath.Join(r.dir, replacedDir, kept)); err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, 0)
}

func copyFile(parent int, name, to string) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(fd), name)
	defer from.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// note records in the recipe, if there is one, that the entry's content is that of the file p.
func (u *unpacker) note(p string, hdr *tar.Header, sum uint64) {
	if u.from.recipe != nil && u.from.content && hdr.Size > 0 {
		u.from.recipe.addFile(p, hdr.Size, sum)
	}
}

// keep moves a file that an entry replaces to where the recipe finds it, and removes anything else.
// Safe for concurrent use.
func (u *unpacker) keep(parent int, name string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 {
		u.sumLock.Lock()
		sum, ok := u.sums[st.Ino]
		u.sumLock.Unlock()
		if !ok {
			return fault.New(fault.Corrupt, "the file %q that it replaces has no checksum", clip(name))
		}
		return u.from.recipe.keep(parent, name, st, sum)
	}
	return unix.Unlinkat(parent, name, 0)
}

// replacedName returns the name below replacedDir of a file with this content.
func replacedName(size int64, sum uint64) string {
	return strconv.FormatUint(sum, 16) + "-" + strconv.FormatInt(size, 10)
}

// tarSource is the tar stream of a layer. It feeds the recipe with everything that the unpacker
// reads.
type tarSource struct {
	from    io.Reader
	read    int64   // bytes so far
	recipe  *recipe // nil: not recorded
	content bool    // file content is being read, which the recipe leaves out
}

func (s *tarSource) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.read += int64(n)
	if s.recipe != nil && !s.content {
		s.recipe.addBytes(p[:n])
	}
	return n, err
}

// TarSize returns the size in bytes of the original tar. ok reports whether [Store.Tar] can write
// it.
func (s *Store) TarSize(id digest.Digest) (bytes int64, ok bool) {
	info, err := s.info(id)
	return info.TarBytes, err == nil && (info.TarBytes > 0 || isEmpty(id))
}

// isEmpty reports whether the layer's tar has no bytes, not even an end.
func isEmpty(id digest.Digest) bool { return id == id.Algorithm().FromBytes(nil) }

// info reads the layer's record.
func (s *Store) info(id digest.Digest) (Info, error) {
	var info Info
	err := record.Read(filepath.Join(s.dir(id), "layer.json"), recordVersion, &info)
	return info, err
}

// Tar writes the original tar of the layer, whose digest is the diffID. The caller holds the layer.
// The error is of kind NotFound if TarSize reports false, and of kind Corrupt if files of the layer
// have changed; the output is then invalid.
func (s *Store) Tar(ctx context.Context, id digest.Digest, to io.Writer) error {
	size, ok := s.TarSize(id)
	if !ok {
		return fault.New(fault.NotFound, "layer %s has no recipe: its tar cannot be written again", id)
	}
	if size == 0 {
		return nil
	}
	verify := id.Verifier()
	a := &assembler{ctx: ctx, dir: s.dir(id), out: io.MultiWriter(to, verify), buf: make([]byte, blockBytes)}
	if err := a.run(); err != nil {
		return fmt.Errorf("write the tar of layer %s: %w", id, err)
	}
	if !verify.Verified() {
		return fault.New(fault.Corrupt,
			"layer %s is not as it was unpacked: files of it were changed, or the disk is failing; kuri check "+
				"--images --repair fetches it again", id)
	}
	return nil
}

// assembler writes a tar from its recipe.
type assembler struct {
	ctx  context.Context
	dir  string // the layer's directory
	out  io.Writer
	root int // descriptor of the layer's fs directory
	buf  []byte
}

func (a *assembler) run() error {
	f, err := os.Open(filepath.Join(a.dir, recipeFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if a.root, err = unix.Open(filepath.Join(a.dir, "fs"),
		unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(a.dir, "fs"), Err: err}
	}
	defer unix.Close(a.root)
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(recipeWindow))
	if err != nil {
		return err
	}
	defer z.Close()
	in := bufio.NewReader(z)
	for {
		kind, err := binary.ReadUvarint(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = a.ctx.Err()
		}
		if err == nil {
			err = a.piece(kind, in)
		}
		if err != nil {
			return err
		}
	}
}

// piece writes one piece of the tar.
func (a *assembler) piece(kind uint64, in *bufio.Reader) error {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return err
	}
	switch kind {
	case pieceBytes:
		if size > maxPiece {
			return fault.New(fault.Corrupt, "%s has a piece of %d bytes", recipeFile, size)
		}
		_, err := io.CopyN(a.out, in, int64(size))
		return err
	case pieceFile:
		length, err := binary.ReadUvarint(in)
		if err != nil {
			return err
		}
		if length > 2*unix.PathMax {
			return fault.New(fault.Corrupt, "%s has a path of %d bytes", recipeFile, length)
		}
		rest := make([]byte, 8+length)
		if _, err := io.ReadFull(in, rest); err != nil {
			return err
		}
		return a.content(string(rest[8:]), int64(size), binary.LittleEndian.Uint64(rest))
	}
	return fault.New(fault.Corrupt, "%s has a piece of the unknown kind %d", recipeFile, kind)
}

// content writes the content of file p as it was unpacked.
func (a *assembler) content(p string, size int64, sum uint64) error {
	f, err := a.open(p, size, sum)
	if err != nil {
		return fault.New(fault.Corrupt, "file %q: %w", clip(p), err)
	}
	defer f.Close()
	for left := size; left > 0; {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		part := a.buf[:min(left, int64(len(a.buf)))]
		if _, err := io.ReadFull(f, part); err != nil {
			return fmt.Errorf("file %q: %w", clip(p), err)
		}
		if _, err := a.out.Write(part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	return nil
}

// open opens the replaced file with this content if there is one, or else the file p.
func (a *assembler) open(p string, size int64, sum uint64) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	f, err := os.OpenFile(filepath.Join(a.dir, replacedDir, replacedName(size, sum)), flags, 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	how := unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(a.root, p, &how)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) { // EAGAIN: a rename elsewhere raced with the lookup
		fd, err = unix.Openat2(a.root, p, &how)
	}
	if err != nil {
		return nil, err
	}
	f = os.NewFile(uintptr(fd), p)
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() != size) {
		err = errors.New("not the file that was unpacked")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkRecipe compares a layer's recipe with its digest.
func (s *Store) checkRecipe(info Info) error {
	if info.TarBytes == 0 {
		return nil
	}
	f, err := os.Open(filepath.Join(s.dir(info.DiffID), recipeFile))
	if err != nil {
		return err
	}
	defer f.Close()
	verify := info.Recipe.Verifier()
	if _, err := io.Copy(verify, f); err != nil {
		return err
	}
	if !verify.Verified() {
		return errors.New(recipeFile + " has changed since it was written")
	}
	return nil
}
