package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
)

// documents are a config and manifests in temporary files.
type documents struct {
	store *Store
	files map[digest.Digest]string // by their digest, which will be their name
}

// stage writes the bodies that are not nil, each once, to temporary files. The caller calls
// discard.
func (s *Store) stage(bodies ...[]byte) (*documents, error) {
	d := &documents{s, make(map[digest.Digest]string)}
	for _, body := range bodies {
		if body == nil {
			continue
		}
		id := digest.FromBytes(body)
		if d.files[id] != "" {
			continue
		}
		if err := d.write(id, body); err != nil {
			d.discard()
			return nil, layer.DiskError(s.root, fmt.Errorf("write %s: %w", id, err))
		}
	}
	return d, nil
}

func (d *documents) write(id digest.Digest, body []byte) error {
	f, err := os.CreateTemp(d.store.blobs(), ".new-")
	if err != nil {
		return err
	}
	d.files[id] = f.Name()
	_, err = f.Write(body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// place renames the documents, which have been synced, to their final names and syncs the
// directory. The caller holds the store's mu.
func (d *documents) place() error {
	for id, file := range d.files {
		if err := os.Rename(file, d.store.blob(id)); err != nil {
			return layer.DiskError(d.store.root, fmt.Errorf("put %s in its place: %w", id, err))
		}
	}
	return layer.DiskError(d.store.root, syncFile(d.store.blobs()))
}

// discard removes the temporary files that are left.
func (d *documents) discard() {
	for _, file := range d.files {
		os.Remove(file)
	}
}

// keepBlob writes a config or manifest of an existing image, which may be damaged.
func (s *Store) keepBlob(id digest.Digest, body []byte) error {
	if got := digest.FromBytes(body); got != id {
		return fault.New(fault.Corrupt,
			"the replacement for %s has digest %s: remove the image and pull it again", id, got)
	}
	d, err := s.stage(body)
	if err != nil {
		return err
	}
	defer d.discard()
	for _, file := range d.files {
		if err := syncFile(file); err != nil {
			return layer.DiskError(s.root, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.place()
}

// removeBlobs removes the blobs of an image without a record, except for those that another image
// uses. The caller holds the store's mu.
func (s *Store) removeBlobs(rec imageRecord) {
	for _, id := range rec.blobIDs() {
		if !s.inUse(id) {
			os.Remove(s.blob(id))
		}
	}
}

// inUse reports whether a record names the blob. The caller holds the store's mu.
func (s *Store) inUse(id digest.Digest) bool {
	for _, e := range s.entries {
		if slices.Contains(e.rec.blobIDs(), id) {
			return true
		}
	}
	return false
}

// syncFile flushes a file or directory to disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// fileBytes returns the allocated size of a file in bytes, or 0 if it does not exist.
func fileBytes(path string) int64 {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

func (s *Store) blobs() string                { return filepath.Join(s.dir(), "blobs", "sha256") }
func (s *Store) blob(id digest.Digest) string { return filepath.Join(s.blobs(), id.Encoded()) }
