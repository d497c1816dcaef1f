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

// Blob is the compressed form of a layer, as a registry or an archive has it.
type Blob struct {
	DiffID    digest.Digest // of the uncompressed tar
	Digest    digest.Digest // of the stream that Open returns; "" if unknown
	Size      int64         // of the same stream, in bytes; -1 if unknown
	Generated bool          // generated here from verified content; DiffID is only a name
	// Open starts the stream, which the store closes. It is called at most once per unpacking, by
	// the first caller.
	Open func(context.Context) (io.ReadCloser, error)
}

// blobKey identifies blobs that are the same work.
type blobKey struct{ diffID, digest digest.Digest }

func (b Blob) key() blobKey { return blobKey{b.DiffID, b.Digest} }

// fetch is a layer in flight. It is cancelled when its last waiter leaves.
type fetch struct {
	ctx     context.Context // of the work, not of a caller
	cancel  context.CancelFunc
	waiters int          // guarded by Store.mu
	fetched atomic.Int64 // bytes of the blob received
}

// Unpack returns when the layer is unpacked. If another caller is already unpacking the same blob,
// it waits for that one. The work is cancelled when the contexts of all callers have ended; Unpack
// then returns after everything has been removed. The caller holds the layer's diffID.
//
// The error is of kind Corrupt if the content does not match its digests or is not a tar, Invalid
// if an entry is refused (it is named), Exhausted if the disk is full or a limit is exceeded, or
// the error of Open and its stream.
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
		if err == nil || !joined || !callerSpecific(err) {
			return err
		}
		// Another caller's attempt failed; this one may succeed.
	}
}

// callerSpecific reports whether the failure may be due to the caller: its credentials, its
// repository, its cancellation.
func callerSpecific(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, fault.Unauthenticated) ||
		errors.Is(err, fault.PermissionDenied) || errors.Is(err, fault.NotFound)
}

// join waits for the fetch of b and starts it if it is not running.
func (s *Store) join(ctx context.Context, b Blob) (joined bool, err error) {
	f := s.enter(b.key())
	waitCtx, stopWaiting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWaiting()
	left := sync.OnceValue(func() (last bool) { return s.leave(b.key(), f) })
	gone := context.AfterFunc(ctx, func() {
		if last := left(); !last {
			stopWaiting() // others go on; this caller need not wait for them
		}
	})
	_, joined, err = s.flights.Do(waitCtx, b.key(), func(context.Context) (Info, error) {
		// Another fetch may have ended, successfully or not, since the last look.
		if s.Has(b.DiffID) {
			return Info{}, nil
		}
		f.fetched.Store(0)
		return s.unpack(f.ctx, b, &f.fetched, nil)
	})
	ended := !gone()
	left() // before the caller releases the layer: a layer with waiters is not pruned
	if ended && err != nil {
		return false, ctx.Err()
	}
	return joined, err
}

func (s *Store) enter(id blobKey) *fetch {
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

// leave removes a waiter from f and cancels the work after the last one.
func (s *Store) leave(id blobKey, f *fetch) (last bool) {
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

// inFlight reports whether somebody waits for the layer. The caller holds s.mu.
func (s *Store) inFlight(diffID digest.Digest) bool {
	for id := range s.fetches {
		if id.diffID == diffID {
			return true
		}
	}
	return false
}

// Fetched returns how many bytes of the blob the current fetch has received, or 0.
func (s *Store) Fetched(b Blob) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.fetches[b.key()]; f != nil {
		return f.fetched.Load()
	}
	return 0
}

// unpack turns the stream into the layer's directory in one pass. With replace (see
// [Store.Replace]) it takes the place of an existing layer.
func (s *Store) unpack(ctx context.Context, b Blob, fetched *atomic.Int64,
	replace func(swap func(holders int) error) error) (Info, error) {
	back := undo.New(ctx)
	defer back.Run()

	// 1. Create a temporary directory on the same filesystem.
	dir, err := os.MkdirTemp(s.tmp(), "layer-")
	if err != nil {
		return Info{}, DiskError(s.root, fmt.Errorf("unpack layer %s: %w", b.DiffID, err))
	}
	back.Add("remove the half-made layer", func(context.Context) error { return os.RemoveAll(dir) })
	failpoint.At("unpack layer: directory made")

	// 2. Unpack the stream, which is counted and hashed on both sides of the decompressor.
	out, err := s.stream(ctx, b, dir, fetched)
	if err != nil {
		return Info{}, DiskError(s.root, fmt.Errorf("unpack layer %s: %w", b.DiffID, err))
	}

	failpoint.At("unpack layer: files written")

	// 3. Write the record.
	info, err := s.describe(dir, Info{
		DiffID: b.DiffID, Bytes: 1 << 20, Inodes: 1 << 10, Opaque: out.opaque, BootID: s.bootID, Implied: out.implied,
		Whiteouts: out.holey,
		TarBytes:  out.tarBytes, Recipe: out.recipe,
	}, out)
	if err != nil {
		return Info{}, DiskError(s.root, fmt.Errorf("record layer %s: %w", b.DiffID, err))
	}

	failpoint.At("unpack layer: recorded")

	// 4. Rename it into place. Another blob with the same content may have been faster.
	if replace != nil {
		return info.summary(), replace(func(holders int) error { return s.swap(dir, info, holders, back) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if there, ok := s.layers[b.DiffID]; ok {
		return there, nil
	}
	return info.summary(), s.put(dir, info, back)
}

// put renames the directory into layers/. The caller holds s.mu and has checked that the layer does
// not exist.
func (s *Store) put(dir string, info Info, back *undo.Stack) error {
	if err := os.Rename(dir, s.dir(info.DiffID)); err != nil {
		return fmt.Errorf("put layer %s in its place: %w", info.DiffID, err)
	}
	failpoint.At("unpack layer: in its place")
	s.layers[info.DiffID] = info.summary()
	back.Release()
	return nil
}

// swap exchanges the directory with the existing layer, unless more than holders hold that one. The
// lock prevents new holders between the check and the exchange. The undo step removes the old
// layer.
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
	s.layers[info.DiffID] = info.summary()
	return nil
}

// describe computes the layer's checksum and usage and writes its record, whose own size counts
// too.
func (s *Store) describe(dir string, info Info, out unpackResult) (Info, error) {
	tree := treeSum{xattrs: out.xattrs, content: func(at int, name string, st *unix.Stat_t) (uint64, error) {
		if sum, ok := out.sums[st.Ino]; ok {
			return sum, nil
		}
		return readSum(at, name, st)
	}}
	var err error
	var u Usage
	if u, info.Sum, err = tree.walk(filepath.Join(dir, "fs")); err != nil {
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

// stream unpacks the blob into dir/fs and verifies its digests.
func (s *Store) stream(ctx context.Context, b Blob, dir string, fetched *atomic.Int64) (out unpackResult, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	body, err := b.Open(ctx)
	if err != nil {
		return out, err
	}
	defer body.Close()

	// Fetching, decompressing and writing files run in one goroutine each; hashing runs in the
	// background.
	packed := &countingReader{from: body, count: fetched}
	blobSum, packedTee := tee(b.Digest, packed)
	arriving := prefetch(packedTee, &s.buffers, &s.hasher)
	defer arriving.close()
	defer stop() // so that close does not wait for a hanging fetch
	plain, err := s.decoders.decompress(ctx, arriving)
	if err != nil {
		return out, packed.cause(err)
	}
	defer plain.Close()
	tarSum, plainTee := tee(b.DiffID, &ratioLimiter{from: plain, packed: fetched, limits: s.limits})
	unpacked := prefetch(plainTee, &s.buffers, &s.hasher)
	defer unpacked.close()
	defer stop()

	if out, err = s.untar(ctx, b, unpacked, dir); err == nil {
		_, err = io.Copy(io.Discard, arriving)
	}
	if err != nil {
		return out, packed.cause(err)
	}
	if b.Size >= 0 && fetched.Load() != b.Size {
		return out, fault.New(fault.Corrupt, "the blob %s has %d bytes, its manifest says %d", b.Digest, fetched.Load(),
			b.Size)
	}
	if got := blobSum(arriving); b.Digest != "" && got != b.Digest {
		return out, fault.New(fault.Corrupt,
			"the blob %s arrived with digest %s: it was changed on the way or in the registry; pull again, or ask "+
				"the registry's owner", b.Digest, got)
	}
	if got := tarSum(unpacked); got != b.DiffID && !b.Generated {
		return out, fault.New(fault.Corrupt,
			"the content of blob %s has digest %s, the image's config says %s: the image is built wrong", b.Digest, got,
			b.DiffID)
	}
	return out, nil
}

// tee returns the stream and a function that returns its digest at the end, with the algorithm of
// want. A prefetched stream has its sha256 anyway.
func tee(want digest.Digest, from io.Reader) (sum func(*prefetcher) digest.Digest, through io.Reader) {
	if want == "" || want.Algorithm() == digest.SHA256 {
		return (*prefetcher).digest, from
	}
	hash := want.Algorithm().Hash()
	return func(a *prefetcher) digest.Digest {
		<-a.done
		return digest.NewDigest(want.Algorithm(), hash)
	}, io.TeeReader(from, hash)
}

// untar reads the uncompressed tar to its end and writes dir/fs and the recipe.
func (s *Store) untar(ctx context.Context, b Blob, plain io.Reader, dir string) (out unpackResult, err error) {
	from := &tarSource{from: plain}
	if !b.Generated { // generated layers are never exported
		if from.recipe, err = newRecipe(dir); err != nil {
			return out, err
		}
		defer from.recipe.close()
	}
	if out, err = untar(ctx, from, filepath.Join(dir, "fs"), s.limits, &s.buffers); err != nil {
		return out, err
	}
	// Data after the end of the tar is part of both digests. Other runtimes ignore it, too.
	left, err := drain(from)
	if err != nil {
		return out, err
	}
	if left > 0 {
		slog.Warn("ignoring data after the end of a layer's tar", "layer", b.DiffID, "blob", b.Digest, "bytes", left)
	}
	if from.recipe != nil {
		out.tarBytes, out.recipe, err = from.recipe.finish()
	}
	return out, err
}

// drain reads a tar stream from its last entry to its end. It returns the number of bytes from the
// first non-zero byte on.
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

// countingReader counts bytes and remembers the error of its source.
type countingReader struct {
	from  io.Reader
	count *atomic.Int64
	err   atomic.Pointer[error] // of from, except io.EOF
}

func (m *countingReader) Read(p []byte) (int, error) {
	n, err := m.from.Read(p)
	m.count.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		m.err.Store(&err)
	}
	return n, err
}

// cause returns the source's own error if there is one, because errors of the decompressor and the
// tar reader say less.
func (m *countingReader) cause(err error) error {
	if own := m.err.Load(); own != nil {
		return *own
	}
	return err
}
