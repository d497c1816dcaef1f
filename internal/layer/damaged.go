package layer

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// damagedMark separates the name of a layer from a number in the name of a directory whose
// layer.json cannot be read. Its files stay while a container may run on them: removing files below
// a mounted overlay removes them from the container.
const damagedMark = ".damaged-"

// damagedLayer is a layer whose directory was renamed because its record cannot be read.
type damagedLayer struct {
	id  digest.Digest
	dir string
}

// setAside renames the directory of an unreadable layer. Existing mounts keep working.
func (s *Store) setAside(id digest.Digest) {
	for n := 0; ; n++ {
		dir := fmt.Sprintf("%s%s%d", s.dir(id), damagedMark, n)
		err := os.Rename(s.dir(id), dir)
		switch {
		case err == nil:
			s.damaged = append(s.damaged, damagedLayer{id, dir})
			return
		// it only blocks a pull, which tries again
		case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY):
			slog.Error("an unreadable layer cannot be set aside", "layer", id, "err", err)
			return
		}
	}
}

// OpenHeld is like Open, but keeps all layers until settled is called, after images and containers
// have held theirs. settled then removes unheld layers that are unreadable or were unpacked before
// this boot.
func OpenHeld(root string) (s *Store, settled func(), err error) {
	if s, err = open(root); err != nil {
		return nil, nil, err
	}
	return s, s.holdAll(), nil
}

func (s *Store) holdAll() (settled func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Collect(maps.Keys(s.layers))
	for _, id := range ids {
		s.held[id]++
	}
	return func() {
		s.mu.Lock()
		for _, id := range ids {
			if s.held[id]--; s.held[id] == 0 {
				delete(s.held, id)
			}
		}
		s.mu.Unlock()
		s.PruneStale()
		s.pruneDamaged()
	}
}

// All returns all layers, including damaged ones.
func (s *Store) All() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Collect(maps.Keys(s.layers))
	for _, d := range s.damaged {
		all = append(all, d.id)
	}
	return all
}

// pruneDamaged removes damaged layers that nobody holds. The rest is tried again at the next start.
func (s *Store) pruneDamaged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.damaged {
		if s.held[d.id] > 0 {
			slog.Warn("keeping a damaged layer that a container uses", "dir", d.dir)
			continue
		}
		if err := os.RemoveAll(d.dir); err != nil {
			slog.Error("a damaged layer cannot be removed", "err", err)
		}
	}
	s.damaged = nil
}
