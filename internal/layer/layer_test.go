package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestAllCompressionFormatsUnpack(t *testing.T) {
	needRoot(t)
	plain := tarOf(t, reg("a", "content"))
	var z bytes.Buffer
	w, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, z.Bytes()...)
	half := len(plain) / 2
	for name, packed := range map[string][]byte{
		"plain": plain, "gzip": gzipped(t, plain), "zstd": z.Bytes(), "zstd behind a skippable frame": skippable,
		"gzip of two members": append(gzipped(t, plain[:half]), gzipped(t, plain[half:])...),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			b := blobOf(plain, packed)
			s.Hold([]digest.Digest{b.DiffID})
			if err := s.Unpack(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(s.dir(b.DiffID), "fs/a")); err != nil || string(got) != "content" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestMismatchIsRefused(t *testing.T) {
	needRoot(t)
	plain := tarOf(t, reg("a", strings.Repeat("content", 1000)))
	packed := gzipped(t, plain)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)/2] ^= 0x10
	serve := func(body []byte) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	good := blobOf(plain, packed)
	for name, change := range map[string]func(*Blob){
		"blob digest":    func(b *Blob) { b.Digest = digest.FromString("other") },
		"diffID":         func(b *Blob) { b.DiffID = digest.FromString("other") },
		"size":           func(b *Blob) { b.Size++ },
		"a flipped bit":  func(b *Blob) { b.Open = serve(flipped) },
		"cut off":        func(b *Blob) { b.Open = serve(packed[:len(packed)/2]) },
		"something else": func(b *Blob) { b.Open = serve([]byte(strings.Repeat("<html>no tar</html>", 100))) },
		"a tail":         func(b *Blob) { b.Open = serve(append(bytes.Clone(packed), packed...)) },
		"a cut-off tar":  func(b *Blob) { *b = blobOf(plain[:1000], plain[:1000]) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			b := good
			change(&b)
			if err := s.Unpack(t.Context(), b); !errors.Is(err, fault.Corrupt) {
				t.Errorf("error %v, kind %q", err, fault.Of(err))
			}
			nothingLeft(t, s)
		})
	}
}

// overlay mounts the layers as a container's root and returns its path.
func overlay(t *testing.T, s *Store, diffIDs ...digest.Digest) string {
	t.Helper()
	lower, err := s.Lowerdirs(diffIDs)
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", 0,
		"lowerdir="+strings.Join(lower, ":")+":"+t.TempDir()); err != nil {
		t.Skipf("overlayfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestWhiteoutsWorkInOverlayfs(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	add := func(entries ...ent) digest.Digest {
		t.Helper()
		body := tarOf(t, entries...)
		b := blobOf(body, gzipped(t, body))
		s.Hold([]digest.Digest{b.DiffID})
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		return b.DiffID
	}
	below := add(
		reg("keep", "below"), reg("gone", "below"), reg("replaced", "below"),
		dir("dir"), reg("dir/gone", "below"), reg("dir/keep", "below"),
		dir("opaque"), reg("opaque/old", "below"), dir("opaque/sub"), reg("opaque/sub/old", "below"),
		dir("wiped"), reg("wiped/old", "below"),
		dir("again"), reg("again/old", "below"),
		dir("late"), reg("late/old", "below"),
		dir("implied"), reg("implied/old", "below"),
	)
	above := add(
		reg(".wh.gone", ""), reg("replaced", "above"),
		reg("dir/.wh.gone", ""), reg("dir/new", "above"), reg(".wh..wh.plnk", ""),
		dir("opaque"), reg("opaque/.wh..wh..opq", ""), reg("opaque/new", "above"),
		reg(".wh.wiped", ""),
		reg(".wh.again", ""), dir("again"), reg("again/new", "above"), // removed and recreated
		dir("late"), reg("late/new", "above"), reg(".wh.late", ""), // the same in reverse order
		reg(".wh.implied", ""), reg("implied/new", "above"), // the same without an entry for the directory
		reg(".wh.never-there", ""),
	)
	root := overlay(t, s, below, above)
	for name, want := range map[string]string{
		"keep": "below", "replaced": "above", "dir/keep": "below", "dir/new": "above", "opaque/new": "above",
		"again/new": "above", "late/new": "above", "implied/new": "above",
		"gone": "", "dir/gone": "", "opaque/old": "", "opaque/sub": "", "wiped": "", "again/old": "", "late/old": "",
		"implied/old": "",
	} {
		got, err := os.ReadFile(filepath.Join(root, name))
		if want == "" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %q, %v", name, got, err)
		}
		if want != "" && string(got) != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 7 {
		t.Errorf("listing %v, %v", entries, err)
	}

	all := add(reg(".wh..wh..opq", ""), reg("only", "top"))
	root = overlay(t, s, below, above, all)
	if entries, _ := os.ReadDir(root); len(entries) != 1 || entries[0].Name() != "only" {
		t.Errorf("a layer that hides all below shows %v", entries)
	}
}

// awaitWaiters returns when n callers wait for the blob.
func awaitWaiters(s *Store, b Blob, n int) {
	for have := -1; have != n; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		have = 0
		if f := s.fetches[b.key()]; f != nil {
			have = f.waiters
		}
		s.mu.Unlock()
	}
}

func TestConcurrentCallersShareOneFetch(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", "x"))
	b := blobOf(plain, plain)
	release := s.Hold([]digest.Digest{b.DiffID})
	var opened atomic.Int32
	gate := make(chan struct{})
	b.Open = func(context.Context) (io.ReadCloser, error) {
		opened.Add(1)
		<-gate
		return io.NopCloser(bytes.NewReader(plain)), nil
	}
	impatient, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 10 {
		ctx := t.Context()
		if i == 0 {
			ctx = impatient
		}
		wg.Go(func() {
			if err := s.Unpack(ctx, b); (err != nil) != (i == 0) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	awaitWaiters(s, b, 10)
	leave() // one gives up; the work goes on for the others
	awaitWaiters(s, b, 9)
	close(gate)
	wg.Wait()
	if opened.Load() != 1 || !s.Has(b.DiffID) {
		t.Errorf("opened %d times, there: %v", opened.Load(), s.Has(b.DiffID))
	}
	release()
	nothingLeft(t, s)
}

// A caller that is too late to join a finished fetch finds the layer and does not start again.
func TestCallersAtTheEndOfAFetch(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	for n := range 150 {
		plain := tarOf(t, reg("a", strconv.Itoa(n)))
		b := blobOf(plain, plain)
		release := s.Hold([]digest.Digest{b.DiffID})
		var opened atomic.Int32
		b.Open = func(context.Context) (io.ReadCloser, error) {
			opened.Add(1)
			return io.NopCloser(bytes.NewReader(plain)), nil
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range i * 50 { // at different times
					s.Fetched(b)
				}
				if err := s.Unpack(t.Context(), b); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if opened.Load() != 1 {
			t.Fatalf("opened %d times", opened.Load())
		}
		release()
	}
}

// stuckStream delivers some data and then blocks until its context ends.
type stuckStream struct {
	ctx   context.Context
	begin io.Reader
}

func (s *stuckStream) Read(p []byte) (int, error) {
	if n, err := s.begin.Read(p); err == nil {
		return n, nil
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}
func (s *stuckStream) Close() error { return nil }

func TestLastCallerToLeaveStopsTheFetch(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", strings.Repeat("x", 1<<20)))
	b := blobOf(plain, plain)
	reading := make(chan struct{})
	b.Open = func(ctx context.Context) (io.ReadCloser, error) {
		close(reading)
		return &stuckStream{ctx, bytes.NewReader(plain[:len(plain)/2])}, nil
	}
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-reading
		leave()
	}()
	if err := s.Unpack(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)

	// The next caller starts again.
	if err := s.Unpack(t.Context(), blobOf(plain, plain)); err != nil {
		t.Fatal(err)
	}
}

func TestAFailedFetchDoesNotFailOtherCallers(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", "x"))
	mine := blobOf(plain, plain)
	release := s.Hold([]digest.Digest{mine.DiffID})
	defer release()
	theirs := mine
	opened, gate := make(chan struct{}), make(chan struct{})
	theirs.Open = func(context.Context) (io.ReadCloser, error) {
		close(opened)
		<-gate
		return nil, fault.New(fault.Unauthenticated, "not with these credentials")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Unpack(t.Context(), theirs); !errors.Is(err, fault.Unauthenticated) {
			t.Errorf("theirs: %v", err)
		}
	})
	<-opened
	wg.Go(func() {
		if err := s.Unpack(t.Context(), mine); err != nil {
			t.Errorf("mine: %v", err)
		}
	})
	awaitWaiters(s, mine, 2)
	close(gate)
	wg.Wait()
}

func TestHeldLayersStay(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", "x"))
	b := blobOf(plain, plain)
	ids := []digest.Digest{b.DiffID}
	image, container := s.Hold(ids), s.Hold(ids)
	if err := s.Unpack(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	image()
	image() // a second call does nothing
	s.Prune()
	if _, err := s.Lowerdirs(ids); err != nil {
		t.Fatal(err)
	}
	container()
	if _, err := s.Lowerdirs(ids); !errors.Is(err, fault.NotFound) ||
		!strings.Contains(err.Error(), b.DiffID.String()) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)
}

func TestOpenAfterAKill(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := openStore(t, root)
	fs, err := unpacked(t, s, reg("a", strings.Repeat("x", 5000)), dir("d"), link("h", "a"))
	if err != nil {
		t.Fatal(err)
	}
	before := s.Usage()
	whole := filepath.Base(filepath.Dir(fs))
	for name, record := range map[string]string{
		strings.Repeat("a", 64): "",
		strings.Repeat("b", 64): `{"version":1,"data":`,
		strings.Repeat("c", 64): `{"version":1,"data":{"diff_id":"sha256:` + whole + `"}}`,
		"not-a-digest":          "",
	} {
		if err := os.MkdirAll(filepath.Join(root, "layers", name, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if record != "" {
			if err := os.WriteFile(filepath.Join(root, "layers", name, "layer.json"), []byte(record),
				0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, left := range []string{"layer-1/fs/some/dir", "removed-2"} {
		if err := os.MkdirAll(filepath.Join(root, "tmp", left), 0o700); err != nil {
			t.Fatal(err)
		}
	}

	s = openStore(t, root)
	if left, _ := os.ReadDir(filepath.Join(root, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Join(root, "layers")); len(left) != 1 || left[0].Name() != whole {
		t.Errorf("layers: %v", left)
	}
	if got := s.Usage(); got != before {
		t.Errorf("usage %+v, was %+v", got, before)
	}
	real, err := measure(filepath.Join(root, "layers", whole))
	if err != nil || real != before {
		t.Errorf("usage is %+v, measured %+v, %v", before, real, err)
	}
	s.PruneStale()
	if !s.Has(digest.NewDigestFromEncoded("sha256", whole)) {
		t.Error("a layer of this boot was taken for stale")
	}
	s.bootID = "another"
	s.PruneStale()
	nothingLeft(t, s)
}

func TestFullDisk(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	s := openStore(t, root)
	random := make([]byte, 4<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	plain := tarOf(t, reg("small", "x"), reg("big", string(random)))
	err := s.Unpack(t.Context(), blobOf(plain, plain))
	if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Bfree*uint64(st.Bsize) < 2<<20-64<<10 {
		t.Errorf("%d bytes are free again, %v", st.Bfree*uint64(st.Bsize), err)
	}
}

// panicStream panics when it is read.
type panicStream struct{}

func (panicStream) Read([]byte) (int, error) { panic("a bug") }
func (panicStream) Close() error             { return nil }

func TestPanicInAStreamFailsOnlyItsLayer(t *testing.T) {
	needRoot(t)
	s := openStore(t, t.TempDir())
	plain := tarOf(t, reg("f", "x"))
	good := blobOf(plain, gzipped(t, plain))
	bad := good
	bad.Open = func(context.Context) (io.ReadCloser, error) { return panicStream{}, nil }
	defer s.Hold([]digest.Digest{good.DiffID})()
	if err := s.Unpack(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "a bug in Kuri") {
		t.Errorf("Unpack: %v", err)
	}
	nothingLeft(t, s)
	if err := s.Unpack(t.Context(), good); err != nil {
		t.Errorf("Unpack after it: %v", err)
	}
}

// A caller waits while all decoders are in use, and can give up.
func TestDecodersAreBounded(t *testing.T) {
	d := newDecoders(true)
	plain := bytes.Repeat([]byte("layer"), 1000)
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open := func(ctx context.Context) (io.ReadCloser, error) {
		return d.decompress(ctx, bytes.NewReader(packed.Bytes()))
	}
	var held []io.ReadCloser
	for range cap(d.usual) {
		r, err := open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, r)
	}
	impatient, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := open(impatient); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one more than there are: %v", err)
	}
	d.drop() // does not close a decoder in use
	for _, r := range held {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		r.Close()
	}
	d.drop()
	for range 2 * cap(d.usual) { // used and dropped ones
		r, err := open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		r.Close()
	}
}

// A layer with many files needs few descriptors, even if the files are empty and reached through a
// symlink, which makes them be written one by one.
func TestDescriptorsAreFew(t *testing.T) {
	needRoot(t)
	entries := []ent{dir("usr"), symlink("alias", "usr")}
	for n := range 1000 {
		entries = append(entries, reg(fmt.Sprint("alias/", n), ""))
	}
	body := tarOf(t, entries...)
	s := openStore(t, t.TempDir())
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 400, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	if err := s.Unpack(t.Context(), blobOf(body, body)); err != nil {
		t.Error(err)
	}
}
