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

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote the record of a layer below root. It
// changes nothing.
func CheckFormats(root string) error {
	return record.Newer(recordVersion, root, "layers/*/layer.json")
}

// Info is what layer.json says of a layer.
type Info struct {
	DiffID digest.Digest `json:"diff_id"`
	Bytes  int64         `json:"bytes"`   // on the disk: allocated blocks of the layer's directory and all in it
	Inodes int64         `json:"inodes"`  // files and directories, the layer's directory and layer.json with them
	Opaque bool          `json:"opaque"`  // nothing of the layers below shows
	BootID string        `json:"boot_id"` // the boot in which it was unpacked
	Sum    digest.Digest `json:"sum"`     // checksum of the tree; see survey.go. On the disk alone

	TarBytes int64         `json:"tar_bytes,omitempty"` // of the tar that it came as; 0: that cannot be made again
	Recipe   digest.Digest `json:"recipe,omitempty"`    // digest of the file; see recipe.go. On the disk alone

	// Implied are the directories without an entry of their own, in order; see implied.go. On the disk alone.
	Implied []string `json:"implied,omitempty"`
}

// brief is what of it is kept in memory.
func (i Info) brief() Info {
	i.Implied, i.Sum, i.Recipe = nil, "", ""
	return i
}

// Store is the layers under one root directory. See [Open].
type Store struct {
	root   string
	bootID string
	limits limits

	life context.Context // ends with Close; unpacking stops then
	end  context.CancelFunc

	flights  flight.Group[identity, Info]
	decoders *decoders
	blocks   blocks
	hasher   sha256.Hasher

	mu      sync.Mutex // guards what follows
	layers  map[digest.Digest]Info
	held    map[digest.Digest]int
	damaged []damagedLayer
	fetches map[identity]*fetch
}

// Open opens the store under root, which is created when missing, and removes what a killed daemon left half-made, and
// what cannot be read. The caller closes the store. Where containers may run on the layers, [OpenHeld] opens it.
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
		fetches:  make(map[identity]*fetch),
	}
	s.life, s.end = context.WithCancel(context.Background())
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open layer store %s: %w", root, err)
	}
	s.bootID = string(boot)
	// A disk that is full, or can only be read, is no reason not to serve what is there: pulls will say what is wrong.
	if err := os.RemoveAll(s.tmp()); err != nil {
		slog.Error("what a killed daemon left of layers cannot be removed", "dir", s.tmp(), "err", err)
	}
	for _, dir := range []string{s.tmp(), filepath.Join(root, "layers")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			slog.Error("a directory of the layer store cannot be made", "err", err)
		}
	}
	return s, s.scan()
}

// scan reads the layers that are there. A directory without a readable record is no layer; it is set aside, for a
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
			err = fault.New(fault.Corrupt, "layer.json is of %s", info.DiffID)
		}
		if err != nil {
			slog.Warn("a layer cannot be read and is set aside; its images must be pulled again", "layer", e.Name(), "err", err)
			s.setAside(id)
			continue
		}
		s.layers[id] = info.brief()
	}
	return nil
}

// idOf returns the diffID whose layer has a directory of this name. The number of digits says what made the digest.
func idOf(name string) digest.Digest {
	for _, a := range []digest.Algorithm{digest.SHA384, digest.SHA512} {
		if len(name) == 2*a.Size() {
			return digest.NewDigestFromEncoded(a, name)
		}
	}
	return digest.NewDigestFromEncoded(digest.SHA256, name)
}

// Close stops what is being unpacked and waits for it. The layers stay.
func (s *Store) Close() {
	s.end()
	s.flights.Wait()
}

// Has tells whether the layer is there, whole. It stays while it is held.
func (s *Store) Has(diffID digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.layers[diffID]
	return ok
}

// Lowerdirs returns the directories to mount as overlayfs lowerdirs, topmost first, for the layers given bottom first
// as an image's config lists them. A layer that the list has several times counts at its topmost place only: overlayfs
// refuses the same directory twice, and a layer hides the same layer further down completely. The caller holds the
// layers. The error is of kind NotFound and names the layer that is missing.
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
			return nil, fault.New(fault.NotFound, "layer %s is missing from %s: remove the image and pull it again", diffIDs[i], s.root)
		}
		dirs = append(dirs, filepath.Join(s.dir(diffIDs[i]), "fs"))
		if info.Opaque {
			break
		}
	}
	return dirs, nil
}

// Hold keeps the layers from being removed until release is called, be they there already or still to come. release
// removes those that nobody else holds; calling it again does nothing.
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

// Prune removes the layers that nobody holds: those of a pull that failed or was killed.
func (s *Store) Prune() { s.prune(func(Info) bool { return true }, s.all()) }

// PruneStale removes the layers that nobody holds and that were unpacked before this boot: whether all of their files
// had reached the disk is not known.
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

// prune removes those of ids that are there, held by nobody, not being waited for, and wanted gone.
func (s *Store) prune(gone func(Info) bool, ids []digest.Digest) {
	for _, id := range ids {
		s.mu.Lock()
		info, there := s.layers[id]
		if !there || s.held[id] > 0 || s.wanted(id) || !gone(info) {
			s.mu.Unlock()
			continue
		}
		delete(s.layers, id)
		grave, err := s.bury(s.dir(id))
		s.mu.Unlock()
		failpoint.At("remove layer: buried")
		if err == nil {
			err = os.RemoveAll(grave)
		}
		failpoint.At("remove layer: removed")
		if err != nil {
			slog.Error("a layer that is no longer used cannot be removed", "layer", id, "err", err)
		}
	}
}

// bury moves a layer's directory out of layers/, which is quick, so that it can be deleted without the lock. Where the disk
// has no room for that, it is deleted where it is: a layer that goes makes room.
func (s *Store) bury(dir string) (string, error) {
	grave, err := os.MkdirTemp(s.tmp(), "removed-")
	if err == nil {
		if err = os.Rename(dir, filepath.Join(grave, filepath.Base(dir))); err == nil {
			return grave, nil
		}
		os.Remove(grave)
	}
	// Without its record what is left is no layer, should we be killed meanwhile.
	if rerr := os.Remove(filepath.Join(dir, "layer.json")); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return "", errors.Join(err, rerr)
	}
	return dir, os.RemoveAll(dir)
}

// Usage is disk space: bytes of allocated blocks, and inodes.
type Usage struct{ Bytes, Inodes int64 }

// Count returns how many layers there are.
func (s *Store) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.layers)
}

// Usage is what all layers take together.
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

// Size is what the given layers take together, each counted once, in bytes of allocated blocks.
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

// Writing is a time in which files are written that are to be durable at its end.
type Writing struct {
	dir  *os.File
	root string
}

// BeginWriting begins one: an error that the disk has from now on is told by its Sync, though it may be met long before,
// while the kernel writes back. The caller closes it.
func (s *Store) BeginWriting() (*Writing, error) {
	dir, err := os.Open(s.root)
	if err != nil {
		return nil, fmt.Errorf("write layers: %w", err)
	}
	return &Writing{dir, s.root}, nil
}

// Sync makes all that has been written durable. It may take seconds. It knows of errors since the writing began
// (syncfs(2), "Reporting of errors").
func (w *Writing) Sync() error {
	if err := unix.Syncfs(int(w.dir.Fd())); err != nil {
		return DiskError(w.root, fmt.Errorf("sync layers in %s: %w", w.root, err))
	}
	return nil
}

// Close ends the writing.
func (w *Writing) Close() { w.dir.Close() }

func (s *Store) dir(id digest.Digest) string { return filepath.Join(s.root, "layers", id.Encoded()) }
func (s *Store) tmp() string                 { return filepath.Join(s.root, "tmp") }

// DiskError gives an error of a full disk or quota, met while something was written below dir, its kind, and says what to
// do. A filesystem without free inodes says that it has no space, too.
func DiskError(dir string, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) == nil && s.Files > 0 && s.Ffree == 0 {
		return fault.As(fault.Exhausted, fmt.Errorf("%w: all %d inodes of the filesystem of %s are in use; remove files there, or images that are not used", err, s.Files, dir))
	}
	return fault.As(fault.Exhausted, fmt.Errorf("%w; free space on the filesystem of %s, or remove images that are not used", err, dir))
}
