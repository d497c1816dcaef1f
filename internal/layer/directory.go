package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
)

// Directory is one directory below layers/.
type Directory struct {
	ID    digest.Digest
	Path  string
	Bytes int64 // disk usage according to its record
	Aside bool  // set aside because its record is unreadable
	// Problem is nil for an apparently complete layer. The files are not read; see [Store.Check].
	Problem error
}

// Directories lists the directories below <root>/layers, complete or not. It changes nothing.
func Directories(root string) ([]Directory, error) {
	top := filepath.Join(root, "layers")
	entries, err := os.ReadDir(top)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the layers: %w", err)
	}
	var all []Directory
	for _, e := range entries {
		name, _, aside := strings.Cut(e.Name(), damagedMark)
		d := Directory{ID: idOf(name), Path: filepath.Join(top, e.Name()), Aside: aside}
		if !aside {
			d.Bytes, d.Problem = quickCheck(d)
		}
		all = append(all, d)
	}
	return all, nil
}

// quickCheck compares a directory with its record without reading files.
func quickCheck(d Directory) (bytes int64, err error) {
	var info Info
	if err := record.Read(filepath.Join(d.Path, "layer.json"), recordVersion, &info); err != nil {
		return 0, err
	}
	if info.DiffID != d.ID {
		return 0, fault.New(fault.Corrupt, "layer.json belongs to %s", info.DiffID)
	}
	if st, err := os.Stat(filepath.Join(d.Path, "fs")); err != nil || !st.IsDir() {
		return info.Bytes, fault.New(fault.Corrupt, "the layer's files are gone: %s does not exist",
			filepath.Join(d.Path, "fs"))
	}
	if info.Recipe != "" {
		if _, err := os.Stat(filepath.Join(d.Path, recipeFile)); err != nil {
			return info.Bytes, fault.New(fault.Corrupt, "%s is gone: the layer cannot be saved as it was pulled",
				recipeFile)
		}
	}
	return info.Bytes, nil
}

// Idle reports whether nobody holds the layer or waits for it.
func (s *Store) Idle(id digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[id] == 0 && !s.inFlight(id)
}

// Discard removes an unheld layer. A layer that is held or missing is left alone.
func (s *Store) Discard(id digest.Digest) {
	s.prune(func(Info) bool { return true }, []digest.Digest{id})
}
