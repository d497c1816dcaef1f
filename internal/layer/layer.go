package layer

import (
	"context"
	_ "crypto/sha512" // for digests that are not sha256
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/flight"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/sha256"
)

// recordVersion is the format version of layer.json.
const recordVersion = 1

// CheckFormats returns an error of kind Precondition if a layer below root was recorded by a newer
// version of Kuri. It changes nothing.
func CheckFormats(root string) error {
	return record.Newer(recordVersion, root, "layers/*/layer.json")
}

// Info is the content of layer.json.
type Info struct {
	DiffID digest.Digest `json:"diff_id"`
	Bytes  int64         `json:"bytes"`   // allocated blocks of the layer's directory and everything below it
	Inodes int64         `json:"inodes"`  // files and directories, including the layer's directory and layer.json
	Opaque bool          `json:"opaque"`  // hides all layers below
	BootID string        `json:"boot_id"` // the boot in which it was unpacked
	Sum    digest.Digest `json:"sum"`     // of the tree; see checksum.go. Not kept in memory

	TarBytes int64         `json:"tar_bytes,omitempty"` // size of the original tar; 0: it cannot be written again
	Recipe   digest.Digest `json:"recipe,omitempty"`    // digest of the recipe; see recipe.go. Not kept in memory

	// Implied lists the directories without an entry of their own, sorted; see implied.go. Not kept
	// in memory.
	Implied []string `json:"implied,omitempty"`
	// Whiteouts lists the directories with whiteouts in them, sorted; see implied.go. Not kept in
	// memory.
	Whiteouts []string `json:"whiteouts,omitempty"`
}

// summary returns the part of Info that is kept in memory.
func (i Info) summary() Info {
	i.Implied, i.Whiteouts, i.Sum, i.Recipe = nil, nil, "", ""
	return i
}

// Store is the set of layers below one root directory. See [Open].
type Store struct {
	root   string
	bootID string
	limits limits

	life context.Context // cancelled by Close; stops all unpacking
	end  context.CancelFunc

	flights  flight.Group[blobKey, Info]
	decoders *decoders
	buffers  bufferPool
	hasher   sha256.Hasher

	mu      sync.Mutex // guards the fields below
	layers  map[digest.Digest]Info
	held    map[digest.Digest]int
	damaged []damagedLayer
	fetches map[blobKey]*fetch
}

// Open opens the store at root, creating it if missing, and removes unfinished and unreadable
// layers. The caller closes the store. A store whose layers containers may be using is opened with
// [OpenHeld].
func Open(root string) (*Store, error) {
	s, err := open(root)
	if err == nil {
		s.pruneDamaged()
	}
	return s, err
}

func open(root string) (*Store, error) {
	s := &Store{
		root:     root,
		limits:   defaultLimits,
		decoders: newDecoders(true),
		layers:   make(map[digest.Digest]Info),
		held:     make(map[digest.Digest]int),
		fetches:  make(map[blobKey]*fetch),
	}
	s.life, s.end = context.WithCancel(context.Background())
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open layer store %s: %w", root, err)
	}
	s.bootID = string(boot)
	// A full or read-only disk must not stop the daemon from serving existing layers; pulls will
	// report it.
	if err := os.RemoveAll(s.tmp()); err != nil {
		slog.Error("unfinished layers of a killed daemon cannot be removed", "dir", s.tmp(), "err", err)
	}
	for _, dir := range []string{s.tmp(), filepath.Join(root, "layers")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			slog.Error("a directory of the layer store cannot be created", "err", err)
		}
	}
	return s, s.scan()
}

// scan reads the existing layers. A directory without a readable record is set aside, because a
// container may run on it.
func (s *Store) scan() error {
	entries, err := os.ReadDir(filepath.Join(s.root, "layers"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open layer store %s: %w", s.root, err)
	}
	for _, e := range entries {
		if name, _, ok := strings.Cut(e.Name(), damagedMark); ok {
			s.damaged = append(s.damaged, damagedLayer{idOf(name), filepath.Join(s.root, "layers", e.Name())})
			continue
		}
		id := idOf(e.Name())
		var info Info
		err := record.Read(filepath.Join(s.root, "layers", e.Name(), "layer.json"), recordVersion, &info)
		if err == nil && info.DiffID != id {
			err = fault.New(fault.Corrupt, "layer.json belongs to %s", info.DiffID)
		}
		if err != nil {
			slog.Warn("setting aside an unreadable layer; its images must be pulled again", "layer", e.Name(), "err",
				err)
			s.setAside(id)
			continue
		}
		s.layers[id] = info.summary()
	}
	return nil
}

// idOf returns the diffID of a layer directory. The number of digits determines the algorithm.
func idOf(name string) digest.Digest {
	for _, a := range []digest.Algorithm{digest.SHA384, digest.SHA512} {
		if len(name) == 2*a.Size() {
			return digest.NewDigestFromEncoded(a, name)
		}
	}
	return digest.NewDigestFromEncoded(digest.SHA256, name)
}

// Close stops all unpacking and waits for it. Layers stay.
func (s *Store) Close() {
	s.end()
	s.flights.Wait()
}

// Has reports whether the layer is unpacked. A held layer stays.
func (s *Store) Has(diffID digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.layers[diffID]
	return ok
}

// Lowerdirs returns the overlayfs lowerdirs, topmost first, of layers given bottom first, as in an
// image's config. A layer that is listed several times counts only at its topmost place: overlayfs
// refuses duplicate directories, and the upper one hides the lower one completely. The caller holds
// the layers. The error is of kind NotFound and names the missing layer.
func (s *Store) Lowerdirs(diffIDs []digest.Digest) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dirs := make([]string, 0, len(diffIDs))
	seen := make(map[digest.Digest]bool, len(diffIDs))
	for i := len(diffIDs) - 1; i >= 0; i-- {
		if seen[diffIDs[i]] {
			continue
		}
		seen[diffIDs[i]] = true
		info, ok := s.layers[diffIDs[i]]
		if !ok {
			return nil, fault.New(fault.NotFound, "layer %s is missing from %s: remove the image and pull it again",
				diffIDs[i], s.root)
		}
		dirs = append(dirs, filepath.Join(s.dir(diffIDs[i]), "fs"))
		if info.Opaque {
			break
		}
	}
	return dirs, nil
}

// Hold protects the layers from removal until release is called, whether they are unpacked yet or
// not. release removes those that nobody else holds; further calls do nothing.
func (s *Store) Hold(diffIDs []digest.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range diffIDs {
		s.held[id]++
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		for _, id := range diffIDs {
			if s.held[id]--; s.held[id] == 0 {
				delete(s.held, id)
			}
		}
		s.mu.Unlock()
		s.prune(func(Info) bool { return true }, diffIDs)
	})
}

// Prune removes all unheld layers, such as those of a failed pull.
func (s *Store) Prune() { s.prune(func(Info) bool { return true }, s.all()) }

// PruneStale removes unheld layers that were unpacked before this boot, because their files may not
// have reached the disk.
func (s *Store) PruneStale() {
	s.prune(func(i Info) bool { return i.BootID != s.bootID }, s.all())
}

func (s *Store) all() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]digest.Digest, 0, len(s.layers))
	for id := range s.layers {
		ids = append(ids, id)
	}
	return ids
}

// prune removes the layers among ids that exist, are unheld, are not being waited for, and match
// gone.
func (s *Store) prune(gone func(Info) bool, ids []digest.Digest) {
	for _, id := range ids {
		s.mu.Lock()
		info, there := s.layers[id]
		if !there || s.held[id] > 0 || s.inFlight(id) || !gone(info) {
			s.mu.Unlock()
			continue
		}
		delete(s.layers, id)
		trash, err := s.moveToTrash(s.dir(id))
		s.mu.Unlock()
		failpoint.At("remove layer: buried")
		if err == nil {
			err = os.RemoveAll(trash)
		}
		failpoint.At("remove layer: removed")
		if err != nil {
			slog.Error("an unused layer cannot be removed", "layer", id, "err", err)
		}
	}
}

// moveToTrash moves a layer's directory out of layers/, which is quick, so that it can be deleted
// without the lock. If the disk is too full for that, the directory is deleted in place, which
// frees space.
func (s *Store) moveToTrash(dir string) (string, error) {
	trash, err := os.MkdirTemp(s.tmp(), "removed-")
	if err == nil {
		if err = os.Rename(dir, filepath.Join(trash, filepath.Base(dir))); err == nil {
			return trash, nil
		}
		os.Remove(trash)
	}
	// Without its record, the rest is not a layer even if the daemon is killed now.
	if rerr := os.Remove(filepath.Join(dir, "layer.json")); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return "", errors.Join(err, rerr)
	}
	return dir, os.RemoveAll(dir)
}

// Usage is disk space: bytes of allocated blocks, and inodes.
type Usage struct{ Bytes, Inodes int64 }

// Count returns the number of layers.
func (s *Store) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.layers)
}

// Usage returns the disk space of all layers.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var u Usage
	for _, info := range s.layers {
		u.Bytes += info.Bytes
		u.Inodes += info.Inodes
	}
	return u
}

// Size returns the allocated bytes of the given layers, each counted once.
func (s *Store) Size(diffIDs []digest.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var size int64
	seen := make(map[digest.Digest]bool)
	for _, id := range diffIDs {
		if !seen[id] {
			seen[id] = true
			size += s.layers[id].Bytes
		}
	}
	return size
}

// WriteSession covers writes that Sync makes durable.
type WriteSession struct {
	dir  *os.File
	root string
}

// BeginWrite begins a session. Its Sync reports any disk error since now, even one that the kernel
// met long before, during writeback. The caller closes the session.
func (s *Store) BeginWrite() (*WriteSession, error) {
	dir, err := os.Open(s.root)
	if err != nil {
		return nil, fmt.Errorf("write layers: %w", err)
	}
	return &WriteSession{dir, s.root}, nil
}

// Sync makes everything written durable. It may take seconds. It reports errors since the session
// began (syncfs(2), "Reporting of errors").
func (w *WriteSession) Sync() error {
	if err := unix.Syncfs(int(w.dir.Fd())); err != nil {
		return DiskError(w.root, fmt.Errorf("sync layers in %s: %w", w.root, err))
	}
	return nil
}

// Close ends the session.
func (w *WriteSession) Close() { w.dir.Close() }

func (s *Store) dir(id digest.Digest) string { return filepath.Join(s.root, "layers", id.Encoded()) }
func (s *Store) tmp() string                 { return filepath.Join(s.root, "tmp") }

// DiskError gives the error of a full disk or quota below dir its kind and adds advice. A
// filesystem without free inodes also returns ENOSPC.
func DiskError(dir string, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) == nil && s.Files > 0 && s.Ffree == 0 {
		return fault.As(fault.Exhausted,
			fmt.Errorf("%w: all %d inodes of the filesystem of %s are in use; remove files there, or images that are "+
				"not used", err, s.Files, dir))
	}
	return fault.As(fault.Exhausted,
		fmt.Errorf("%w; free space on the filesystem of %s, or remove images that are not used", err, dir))
}
