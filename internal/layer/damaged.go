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

// damagedMark follows the name of a layer in that of its directory when layer.json cannot be read, with a number. Its files
// stay as long as a container may run on them: what is removed below a mounted overlay is gone from the container.
const damagedMark = ".damaged-"

// damagedLayer is a layer whose directory is set aside.
type damagedLayer struct {
	id  digest.Digest
	dir string
}

// setAside gives the directory of a layer that cannot be read another name, under which a mount keeps it.
func (s *Store) setAside(id digest.Digest) {
	for n := 0; ; n++ {
		dir := fmt.Sprintf("%s%s%d", s.dir(id), damagedMark, n)
		err := os.Rename(s.dir(id), dir)
		switch {
		case err == nil:
			s.damaged = append(s.damaged, damagedLayer{id, dir})
			return
		case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY): // it is in nobody's way but a pull's, which tries again
			slog.Error("a layer that cannot be read cannot be set aside", "layer", id, "err", err)
			return
		}
	}
}

// OpenHeld is Open, but keeps every layer from being removed until settled is called: when images and containers have
// said which they use. Then what nobody holds goes that was unpacked before this boot, or cannot be read.
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

// All returns the layers that are there, the damaged ones with them.
func (s *Store) All() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Collect(maps.Keys(s.layers))
	for _, d := range s.damaged {
		all = append(all, d.id)
	}
	return all
}

// pruneDamaged removes the damaged layers that nobody holds. The others are looked at again at the next start.
func (s *Store) pruneDamaged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.damaged {
		if s.held[d.id] > 0 {
			slog.Warn("a damaged layer is kept, for a container uses it", "dir", d.dir)
			continue
		}
		if err := os.RemoveAll(d.dir); err != nil {
			slog.Error("a damaged layer cannot be removed", "err", err)
		}
	}
	s.damaged = nil
}
