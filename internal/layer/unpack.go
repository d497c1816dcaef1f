package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/undo"
)

// Blob is a layer as it is had from outside.
type Blob struct {
	DiffID digest.Digest // of the uncompressed tar
	Digest digest.Digest // of the stream that Open gives; "" when only DiffID is known
	Size   int64         // of that stream, in bytes; -1 when it is not known
	MadeUp bool          // the stream is made up here, of content that it verifies itself; DiffID is but a name for it
	// Open starts the stream. It is called at most once per unpacking, by whoever unpacks first; the stream is closed.
	Open func(context.Context) (io.ReadCloser, error)
}

// identity is what makes two blobs the same piece of work.
type identity struct{ diffID, digest digest.Digest }

func (b Blob) identity() identity { return identity{b.DiffID, b.Digest} }

// fetch is a layer on its way, with those who wait for it. It is stopped when the last of them has left.
type fetch struct {
	ctx     context.Context // of the work, not of a caller
	cancel  context.CancelFunc
	waiters int          // guarded by Store.mu
	fetched atomic.Int64 // bytes of the blob
}

// Unpack makes the layer be there. When another caller's Unpack of the same blob is under way it waits for that one.
// The work stops when ctx of every caller has ended; Unpack then returns after all traces of it are gone. The caller
// holds the layer's diffID.
//
// The error is of kind Corrupt when content differs from its digests or is not a tar, Invalid when an entry is refused
// (it is named), Exhausted when the disk is full or a bound is passed, or whatever Open and its stream returned.
func (s *Store) Unpack(ctx context.Context, b Blob) error {
	for {
		if s.Has(b.DiffID) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.life.Err() != nil {
			return fault.New(fault.Unavailable, "unpack layer %s: the store is closing", b.DiffID)
		}
		joined, err := s.join(ctx, b)
		if err == nil || !joined || !personal(err) {
			return err
		}
		// Another's attempt failed, where ours may not.
	}
}

// personal tells whether the failure was due to who asked: other credentials, another repository, a caller that left.
func personal(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, fault.Unauthenticated) ||
		errors.Is(err, fault.PermissionDenied) || errors.Is(err, fault.NotFound)
}

// join takes part in the fetch of b, starting it when there is none.
func (s *Store) join(ctx context.Context, b Blob) (joined bool, err error) {
	f := s.enter(b.identity())
	patience, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	left := sync.OnceValue(func() (last bool) { return s.leave(b.identity(), f) })
	gone := context.AfterFunc(ctx, func() {
		if last := left(); !last {
			leave() // others go on; we need not wait for them
		}
	})
	_, joined, err = s.flights.Do(patience, b.identity(), func(context.Context) (Info, error) {
		// Another's work may have ended, well or not, since we looked.
		if s.Has(b.DiffID) {
			return Info{}, nil
		}
		f.fetched.Store(0)
		return s.unpack(f.ctx, b, &f.fetched, nil)
	})
	ended := !gone()
	left() // before the caller lets go of the layer: what somebody waits for is not pruned
	if ended && err != nil {
		return false, ctx.Err()
	}
	return joined, err
}

func (s *Store) enter(id identity) *fetch {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fetches[id]
	if f == nil {
		f = &fetch{}
		f.ctx, f.cancel = context.WithCancel(s.life)
		s.fetches[id] = f
	}
	f.waiters++
	return f
}

// leave takes a waiter off f and stops the work when it was the last.
func (s *Store) leave(id identity, f *fetch) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return false
	}
	f.cancel()
	if s.fetches[id] == f {
		delete(s.fetches, id)
	}
	if len(s.fetches) == 0 {
		s.decoders.drop()
	}
	return true
}

// wanted tells whether somebody is waiting for the layer. The caller has s.mu.
func (s *Store) wanted(diffID digest.Digest) bool {
	for id := range s.fetches {
		if id.diffID == diffID {
			return true
		}
	}
	return false
}

// Fetched tells how many bytes of the blob have been received by the unpacking under way, 0 when there is none.
func (s *Store) Fetched(b Blob) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.fetches[b.identity()]; f != nil {
		return f.fetched.Load()
	}
	return 0
}

// unpack is the one pass from the stream to the layer's directory. With replace, which is the caller's of [Store.Replace],
// it takes the place of the layer that is there.
func (s *Store) unpack(ctx context.Context, b Blob, fetched *atomic.Int64, replace func(swap func(holders int) error) error) (Info, error) {
	back := undo.New(ctx)
	defer back.Run()

	// 1. A directory of our own, on the same filesystem.
	dir, err := os.MkdirTemp(s.tmp(), "layer-")
	if err != nil {
		return Info{}, DiskError(s.root, fmt.Errorf("unpack layer %s: %w", b.DiffID, err))
	}
	back.Add("remove the half-made layer", func(context.Context) error { return os.RemoveAll(dir) })
	failpoint.At("unpack layer: directory made")

	// 2. The stream, counted and hashed on both sides of the decompressor, becomes files.
	out, err := s.stream(ctx, b, dir, fetched)
	if err != nil {
		return Info{}, DiskError(s.root, fmt.Errorf("unpack layer %s: %w", b.DiffID, err))
	}

	failpoint.At("unpack layer: files written")

	// 3. The record.
	info, err := s.describe(dir, Info{
		DiffID: b.DiffID, Bytes: 1 << 20, Inodes: 1 << 10, Opaque: out.opaque, BootID: s.bootID, Implied: out.implied,
		TarBytes: out.tarBytes, Recipe: out.recipe,
	}, out)
	if err != nil {
		return Info{}, DiskError(s.root, fmt.Errorf("record layer %s: %w", b.DiffID, err))
	}

	failpoint.At("unpack layer: recorded")

	// 4. One rename makes it a layer. Another blob with the same content may have been quicker.
	if replace != nil {
		return info.brief(), replace(func(holders int) error { return s.swap(dir, info, holders, back) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if there, ok := s.layers[b.DiffID]; ok {
		return there, nil
	}
	return info.brief(), s.put(dir, info, back)
}

// put makes the directory a layer. The caller has s.mu, and has seen that there is no such layer.
func (s *Store) put(dir string, info Info, back *undo.Stack) error {
	if err := os.Rename(dir, s.dir(info.DiffID)); err != nil {
		return fmt.Errorf("put layer %s in its place: %w", info.DiffID, err)
	}
	failpoint.At("unpack layer: in its place")
	s.layers[info.DiffID] = info.brief()
	back.Release()
	return nil
}

// swap puts the directory in the place of the layer that is there, if no more than holders hold it: between the look and
// the exchange nobody can begin to. What was there is removed by the undo.
func (s *Store) swap(dir string, info Info, holders int, back *undo.Stack) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[info.DiffID] > holders {
		return fault.New(fault.Precondition, "layer %s is in use", info.DiffID)
	}
	err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, s.dir(info.DiffID), unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		return s.put(dir, info, back)
	}
	if err != nil {
		return fmt.Errorf("put layer %s in its place: %w", info.DiffID, err)
	}
	s.layers[info.DiffID] = info.brief()
	return nil
}

// describe surveys the unpacked layer and writes its record, which counts itself.
func (s *Store) describe(dir string, info Info, out outcome) (Info, error) {
	look := survey{xattrs: out.xattrs, content: func(at int, name string, st *unix.Stat_t) (uint64, error) {
		if sum, ok := out.sums[st.Ino]; ok {
			return sum, nil
		}
		return readSum(at, name, st)
	}}
	var err error
	var u Usage
	if u, info.Sum, err = look.take(filepath.Join(dir, "fs")); err != nil {
		return info, err
	}
	path := filepath.Join(dir, "layer.json")
	if err := record.Write(path, recordVersion, info); err != nil {
		return info, err
	}
	owned := []string{dir, path}
	if info.TarBytes > 0 {
		owned = append(owned, filepath.Join(dir, recipeFile))
	}
	if kept, err := os.ReadDir(filepath.Join(dir, replacedDir)); err == nil {
		owned = append(owned, filepath.Join(dir, replacedDir))
		for _, f := range kept {
			owned = append(owned, filepath.Join(dir, replacedDir, f.Name()))
		}
	}
	for _, own := range owned {
		var st unix.Stat_t
		if err := unix.Lstat(own, &st); err != nil {
			return info, &os.PathError{Op: "stat", Path: own, Err: err}
		}
		u.Bytes += st.Blocks * 512
		u.Inodes++
	}
	info.Bytes, info.Inodes = u.Bytes, u.Inodes
	return info, record.Write(path, recordVersion, info)
}

// stream reads the blob into dir/fs and verifies its digests.
func (s *Store) stream(ctx context.Context, b Blob, dir string, fetched *atomic.Int64) (out outcome, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	body, err := b.Open(ctx)
	if err != nil {
		return out, err
	}
	defer body.Close()

	// Fetching, decompressing and writing files each have a goroutine; hashing goes on beside them.
	packed := &meter{from: body, count: fetched}
	blobSum, packedTee := tee(b.Digest, packed)
	arriving := readAhead(packedTee, &s.blocks, &s.hasher)
	defer arriving.close()
	defer stop() // or a fetch that hangs would be waited for
	plain, err := s.decoders.decompress(ctx, arriving)
	if err != nil {
		return out, packed.blame(err)
	}
	defer plain.Close()
	tarSum, plainTee := tee(b.DiffID, &bounded{from: plain, packed: fetched, limits: s.limits})
	unpacked := readAhead(plainTee, &s.blocks, &s.hasher)
	defer unpacked.close()
	defer stop()

	if out, err = s.untar(ctx, b, unpacked, dir); err == nil {
		_, err = io.Copy(io.Discard, arriving)
	}
	if err != nil {
		return out, packed.blame(err)
	}
	if b.Size >= 0 && fetched.Load() != b.Size {
		return out, fault.New(fault.Corrupt, "the blob %s has %d bytes, its manifest says %d", b.Digest, fetched.Load(), b.Size)
	}
	if got := blobSum(arriving); b.Digest != "" && got != b.Digest {
		return out, fault.New(fault.Corrupt, "the blob %s arrived with digest %s: it was changed on the way or in the registry; pull again, or ask the registry's owner", b.Digest, got)
	}
	if got := tarSum(unpacked); got != b.DiffID && !b.MadeUp {
		return out, fault.New(fault.Corrupt, "the content of blob %s has digest %s, the image's config says %s: the image is built wrong", b.Digest, got, b.DiffID)
	}
	return out, nil
}

// tee returns the stream, and what returns its digest, of the kind that want is of, at its end. A read-ahead stream has
// its sha256 anyway.
func tee(want digest.Digest, from io.Reader) (sum func(*ahead) digest.Digest, through io.Reader) {
	if want == "" || want.Algorithm() == digest.SHA256 {
		return (*ahead).digest, from
	}
	hash := want.Algorithm().Hash()
	return func(a *ahead) digest.Digest {
		<-a.done
		return digest.NewDigest(want.Algorithm(), hash)
	}, io.TeeReader(from, hash)
}

// untar reads the plain tar to its end: into dir/fs, and the recipe beside it.
func (s *Store) untar(ctx context.Context, b Blob, plain io.Reader, dir string) (out outcome, err error) {
	from := &source{from: plain}
	if !b.MadeUp { // what is made up is not asked for again
		if from.recipe, err = newRecipe(dir); err != nil {
			return out, err
		}
		defer from.recipe.close()
	}
	if out, err = untar(ctx, from, filepath.Join(dir, "fs"), s.limits, &s.blocks); err != nil {
		return out, err
	}
	// What follows the tar's end is part of both digests. Peers pass over it, too.
	left, err := drain(from)
	if err != nil {
		return out, err
	}
	if left > 0 {
		slog.Warn("a layer goes on after the end of its tar; what follows is left out", "layer", b.DiffID, "blob", b.Digest, "bytes", left)
	}
	if from.recipe != nil {
		out.tarBytes, out.recipe, err = from.recipe.finish()
	}
	return out, err
}

// drain reads a tar stream from the end of its last entry to its own end, and returns how many bytes there are from the
// first that is not zero.
func drain(from io.Reader) (left int64, err error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if left > 0 {
			left += int64(n)
		} else if rest := bytes.TrimLeft(buf[:n], "\x00"); len(rest) > 0 {
			left = int64(len(rest))
		}
		if err == io.EOF {
			return left, nil
		}
		if err != nil {
			return left, err
		}
	}
}

// meter counts what passes, and remembers how the source ended.
type meter struct {
	from  io.Reader
	count *atomic.Int64
	err   atomic.Pointer[error] // of from, other than io.EOF
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.from.Read(p)
	m.count.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		m.err.Store(&err)
	}
	return n, err
}

// blame returns the source's own error when there is one: what the decompressor and the tar reader make of it says less.
func (m *meter) blame(err error) error {
	if own := m.err.Load(); own != nil {
		return *own
	}
	return err
}
