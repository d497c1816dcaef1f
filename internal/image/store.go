package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/flight"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/registry"
	"github.com/kuri-cri/kuri/internal/verifier"
)

// recordVersion is the format version of an image's record.
const recordVersion = 1

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote the record of an image below root. It
// changes nothing.
func CheckFormats(root string) error {
	return record.Newer(recordVersion, root, "images/*.json")
}

// Options say where images are kept and how they are had.
type Options struct {
	Root      string       // the same as that of Layers; on one filesystem
	Layers    *layer.Store // stays the caller's, who closes it after the image store
	Registry  registry.Options
	MaxLayers int      // layers fetched and unpacked at once, over all pulls; 0: as many as serve this machine
	Pinned    []string // references of images that a kubelet must not collect, or patterns with * and ? (path.Match)

	Verifiers *verifier.Programs // that must accept an image before it is pulled; nil: none
}

// imageRecord is what is persisted of an image beside its config and manifest.
type imageRecord struct {
	ID       digest.Digest `json:"id"`
	Manifest digest.Digest `json:"manifest,omitempty"` // "" when it came without one, in a docker-archive
	// Documents are the indexes that led to the image, other manifests that it has had, the config of an artifact. With
	// them a saved image has its names with a digest. Another image may have the same.
	Documents []digest.Digest      `json:"documents,omitempty"`
	Patch     digest.Digest        `json:"patch,omitempty"` // layer on top that is not the image's own; see layer.Store.Patch
	Tags      map[string]time.Time `json:"tags"`            // names (see nameFor) with a tag, and when each was pointed here
	Digests   []string             `json:"digests"`         // names with a digest
}

// stack is the layers to mount, bottom first.
func (r *imageRecord) stack(cfg *imagespec.Image) []digest.Digest {
	if r.Patch == "" {
		return cfg.RootFS.DiffIDs
	}
	return append(slices.Clone(cfg.RootFS.DiffIDs), r.Patch)
}

// papers are the files of the image below blobs/.
func (r *imageRecord) papers() []digest.Digest {
	all := append([]digest.Digest{r.ID}, r.Documents...)
	if r.Manifest != "" {
		all = append(all, r.Manifest)
	}
	return all
}

// entry is an image that is recorded.
type entry struct {
	rec     imageRecord
	image   *Image
	release func() // of its layers
}

type pullKey struct {
	ref      registry.Reference
	platform string
	auth     registry.Auth
}

// Store is the images of one node. See [Open].
type Store struct {
	root      string
	layers    *layer.Store
	registry  registry.Options
	verifiers *verifier.Programs // nil: there are none
	pinned    []string           // references in full, or patterns
	slots     chan struct{}      // one for each layer that may be on its way

	life   context.Context // ends with Close
	end    context.CancelFunc
	pulls  flight.Group[pullKey, *Image]
	watch  watch
	counts counts         // of pulls
	later  sync.WaitGroup // what is done after pulls: layers of failed ones are kept for a while

	now atomic.Pointer[snapshot]

	mu      sync.Mutex // guards what follows and the files in images/
	entries map[digest.Digest]*entry
}

// Open opens the store. Records that cannot be read, and images whose files are not all there, are set aside with a word
// in the log; they never keep the store from opening. The caller closes it.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		root:      o.Root,
		layers:    o.Layers,
		registry:  o.Registry,
		verifiers: o.Verifiers,
		entries:   make(map[digest.Digest]*entry),
	}
	if o.MaxLayers <= 0 {
		o.MaxLayers = min(max(4, runtime.NumCPU()), 8) // each takes some 3 MiB
	}
	s.slots = make(chan struct{}, o.MaxLayers)
	for _, name := range o.Pinned {
		if strings.ContainsAny(name, "*?[") {
			if _, err := path.Match(name, ""); err != nil {
				return nil, fault.New(fault.Invalid, "pinned images: %q is not a pattern: %w", name, err)
			}
			s.pinned = append(s.pinned, name)
			continue
		}
		ref, err := registry.ParseReference(name)
		if err != nil {
			return nil, fmt.Errorf("pinned images: %w", err)
		}
		s.pinned = append(s.pinned, ref.String())
	}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := os.MkdirAll(s.blobs(), 0o700); err != nil { // a pull will say so; what is there can be served
		slog.Error("a directory of the image store cannot be made", "err", err)
	}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", s.root, err)
	}
	s.layers.PruneStale()
	return s, nil
}

// Close stops the pulls under way and waits for them. What has been pulled stays.
func (s *Store) Close() {
	s.end()
	s.pulls.Wait()
	s.later.Wait()
	s.watch.wait()
}

// recover reads the records that are there.
func (s *Store) recover() error {
	files, err := os.ReadDir(s.dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range files {
		file := filepath.Join(s.dir(), f.Name())
		switch {
		case strings.HasPrefix(f.Name(), "."): // a record that was being written when the daemon was killed
			os.Remove(file)
		case strings.HasSuffix(f.Name(), ".json"):
			if err := s.recoverOne(file); err != nil {
				slog.Error("an image's record is set aside; pull the image again", "record", file, "err", err)
				if err := record.SetAside(file); err != nil {
					slog.Error("a damaged record cannot be set aside", "err", err)
				}
			}
		}
	}
	s.settleTags()
	s.dropBlobs()
	s.publish()
	return nil
}

func (s *Store) recoverOne(file string) error {
	var rec imageRecord
	if err := record.Read(file, recordVersion, &rec); err != nil {
		return err
	}
	if rec.ID.Validate() != nil || rec.Manifest != "" && rec.Manifest.Validate() != nil || rec.ID.Encoded()+".json" != filepath.Base(file) {
		return fault.New(fault.Corrupt, "the record is of another image, %q", rec.ID)
	}
	for _, id := range rec.Documents {
		if id.Validate() != nil || id.Algorithm() != digest.SHA256 {
			return fault.New(fault.Corrupt, "the record names no document with %q", id)
		}
	}
	raw, err := os.ReadFile(s.blob(rec.ID))
	if err != nil {
		return err
	}
	if got := digest.FromBytes(raw); got != rec.ID {
		return fault.New(fault.Corrupt, "the image's config has digest %s", got)
	}
	cfg, err := parseConfig(raw)
	if err != nil {
		return err
	}
	if rec.Patch != "" && rec.Patch.Validate() != nil {
		return fault.New(fault.Corrupt, "the record names no layer with %q", rec.Patch)
	}
	for _, id := range rec.stack(cfg) {
		if !s.layers.Has(id) {
			return fault.New(fault.NotFound, "the image's layer %s is not there", id)
		}
	}
	s.entries[rec.ID] = &entry{rec: rec, image: s.describe(rec, cfg), release: s.layers.Hold(rec.stack(cfg))}
	return nil
}

// settleTags leaves a tag that two records claim with the one that got it later: the daemon was killed in between.
func (s *Store) settleTags() {
	owner := make(map[string]*entry)
	for _, e := range s.entries {
		for tag, at := range e.rec.Tags {
			if other := owner[tag]; other == nil || other.rec.Tags[tag].Before(at) {
				owner[tag] = e
			}
		}
	}
	for _, e := range s.entries {
		e.rec.Tags = maps.Clone(e.rec.Tags)
		maps.DeleteFunc(e.rec.Tags, func(tag string, _ time.Time) bool { return owner[tag] != e })
		e.image = s.renamed(e)
	}
}

// dropBlobs removes the configs and manifests that no record names.
func (s *Store) dropBlobs() {
	used := make(map[string]bool)
	for _, e := range s.entries {
		for _, id := range e.rec.papers() {
			used[id.Encoded()] = true
		}
	}
	files, _ := os.ReadDir(s.blobs())
	for _, f := range files {
		if !used[f.Name()] {
			os.Remove(filepath.Join(s.blobs(), f.Name()))
		}
	}
}
