package image

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

// Stored is an image according to its files.
type Stored struct {
	Record  string // path
	ID      string // "" if the record cannot be read
	Names   []string
	Layers  []digest.Digest // the layers to mount, bottom first
	Aside   bool            // the record was set aside
	Problem error           // why it cannot be read
}

// ReadStored lists the images with a record below root. It changes nothing and does not check
// layers.
func ReadStored(root string) ([]Stored, error) {
	look := &Store{root: root}
	files, err := os.ReadDir(look.dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the images: %w", err)
	}
	var all []Stored
	for _, f := range files {
		path := filepath.Join(look.dir(), f.Name())
		switch {
		case strings.HasPrefix(f.Name(), "."):
		case strings.HasSuffix(f.Name(), ".json.damaged"):
			all = append(all, Stored{Record: path, Aside: true})
		case strings.HasSuffix(f.Name(), ".json"):
			all = append(all, look.readStored(path))
		}
	}
	return all, nil
}

func (s *Store) readStored(path string) Stored {
	out := Stored{Record: path}
	var rec imageRecord
	if out.Problem = record.Read(path, recordVersion, &rec); out.Problem != nil {
		return out
	}
	if rec.ID.Validate() != nil {
		out.Problem = fault.New(fault.Corrupt, "record %s has no image id", path)
		return out
	}
	out.ID, out.Names = rec.ID.String(), tagsOf(rec)
	raw, err := os.ReadFile(s.blob(rec.ID))
	if err != nil {
		out.Problem = fault.New(fault.Corrupt, "the image's config is missing: %w", err)
		return out
	}
	cfg, err := parseConfig(raw)
	if err != nil {
		out.Problem = err
		return out
	}
	out.Layers = rec.stack(cfg)
	return out
}
