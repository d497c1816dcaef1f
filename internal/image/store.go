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

// CheckFormats returns an error of kind Precondition if an image below root was recorded by a newer
// version of Kuri. It changes nothing.
func CheckFormats(root string) error {
	return record.Newer(recordVersion, root, "images/*.json")
}

// Options configure the store.
type Options struct {
	Root      string       // the root of Layers, on the same filesystem
	Layers    *layer.Store // owned by the caller, who closes it after the image store
	Registry  registry.Options
	MaxLayers int      // maximum of layers unpacked at once, over all pulls; 0: depends on the machine
	Pinned    []string // references of images that the kubelet must not collect, or patterns with * and ? (path.Match)

	Verifiers *verifier.Programs // must accept an image before it is pulled; may be nil
}

// imageRecord is the content of an image's record.
type imageRecord struct {
	ID       digest.Digest `json:"id"`
	Manifest digest.Digest `json:"manifest,omitempty"` // "": loaded from a docker-archive without one
	// Documents are the indexes that led to the image, its former manifests, and the config of an
	// artifact. They prove the digest references of a saved image. Images can share them.
	Documents []digest.Digest      `json:"documents,omitempty"`
	Patch     digest.Digest        `json:"patch,omitempty"` // patch layer on top; see layer.Store.Patch
	Tags      map[string]time.Time `json:"tags"`            // names with a tag (see nameFor) and when each was set
	Digests   []string             `json:"digests"`         // names with a digest
}

// stack returns the layers to mount, bottom first.
func (r *imageRecord) stack(cfg *imagespec.Image) []digest.Digest {
	if r.Patch == "" {
		return cfg.RootFS.DiffIDs
	}
	return append(slices.Clone(cfg.RootFS.DiffIDs), r.Patch)
}

// blobIDs returns the image's files below blobs/.
func (r *imageRecord) blobIDs() []digest.Digest {
	all := append([]digest.Digest{r.ID}, r.Documents...)
	if r.Manifest != "" {
		all = append(all, r.Manifest)
	}
	return all
}

// entry is a recorded image.
type entry struct {
	rec     imageRecord
	image   *Image
	release func() // releases its layers
}

type pullKey struct {
	ref      registry.Reference
	platform string
	auth     registry.Auth
}

// Store is the set of images of one node. See [Open].
type Store struct {
	root      string
	layers    *layer.Store
	registry  registry.Options
	verifiers *verifier.Programs // may be nil
	pinned    []string           // full references, or patterns
	slots     chan struct{}      // one for each layer that may be fetched at once

	life   context.Context // cancelled by Close
	end    context.CancelFunc
	pulls  flight.Group[pullKey, *Image]
	watch  watch
	counts counts         // of pulls
	later  sync.WaitGroup // work after pulls: delayed release of layers, returning memory

	now atomic.Pointer[snapshot]

	mu      sync.Mutex // guards the fields below and the files in images/
	entries map[digest.Digest]*entry
}

// Open opens the store. Unreadable records, and images with missing files, are set aside and
// logged; they never prevent the store from opening. The caller closes it.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		root:      o.Root,
		layers:    o.Layers,
		registry:  o.Registry,
		verifiers: o.Verifiers,
		entries:   make(map[digest.Digest]*entry),
	}
	if o.MaxLayers <= 0 {
		o.MaxLayers = min(max(4, runtime.NumCPU()), 8) // each takes about 3 MiB
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
	if err := os.MkdirAll(s.blobs(), 0o700); err != nil { // pulls will report it; existing images can be served
		slog.Error("a directory of the image store cannot be created", "err", err)
	}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", s.root, err)
	}
	s.layers.PruneStale()
	return s, nil
}

// Close stops all pulls and waits for them. Pulled images stay.
func (s *Store) Close() {
	s.end()
	s.pulls.Wait()
	s.later.Wait()
	s.watch.wait()
}

// recover reads the existing records.
func (s *Store) recover() error {
	files, err := os.ReadDir(s.dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range files {
		file := filepath.Join(s.dir(), f.Name())
		switch {
		case strings.HasPrefix(f.Name(), "."): // temporary file of a record from a killed daemon
			os.Remove(file)
		case strings.HasSuffix(f.Name(), ".json"):
			if err := s.recoverOne(file); err != nil {
				slog.Error("setting aside an image's record; pull the image again", "record", file, "err", err)
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
	if rec.ID.Validate() != nil || rec.Manifest != "" && rec.Manifest.Validate() != nil ||
		rec.ID.Encoded()+".json" != filepath.Base(file) {
		return fault.New(fault.Corrupt, "the record belongs to another image, %q", rec.ID)
	}
	for _, id := range rec.Documents {
		if id.Validate() != nil || id.Algorithm() != digest.SHA256 {
			return fault.New(fault.Corrupt, "the record names a document with the invalid digest %q", id)
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
		return fault.New(fault.Corrupt, "the record names a layer with the invalid digest %q", rec.Patch)
	}
	for _, id := range rec.stack(cfg) {
		if !s.layers.Has(id) {
			return fault.New(fault.NotFound, "the image's layer %s is missing", id)
		}
	}
	s.entries[rec.ID] = &entry{rec: rec, image: s.describe(rec, cfg), release: s.layers.Hold(rec.stack(cfg))}
	return nil
}

// settleTags assigns a tag that two records claim to the later owner: the daemon was killed between
// the two writes.
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
		e.image = s.withNames(e)
	}
}

// dropBlobs removes the configs and manifests that no record names.
func (s *Store) dropBlobs() {
	used := make(map[string]bool)
	for _, e := range s.entries {
		for _, id := range e.rec.blobIDs() {
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
