package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// OOMLedger tells how many processes of a container the kernel has killed for want of memory, also when the container's
// cgroup is gone before it can be asked: systemd removes a scope when its last process has ended, which is when we notice.
//
// On cgroup v2 a cgroup counts what is killed in it and in all that are and were below it. The kills of a removed one are
// those that its parent counts, less what the others below the parent count and what removed ones have been known to have.
// Two that vanish in the same moment cannot be told apart: each is told what is missing.
//
// On v1 a parent counts for itself alone, and the kills of a removed cgroup are unknown.
//
// It is safe for concurrent use. The zero value is empty.
type OOMLedger struct {
	mu      sync.Mutex // guards all below; held over reads of cgroup files, which do not hang
	parents map[string]*account
}

// account is of the cgroups below one parent. It is there while one of them is open.
type account struct {
	past  uint64              // kills of those that are gone
	known map[string]uint64   // kills of those that are there and are not open, when they were last read
	open  map[string]struct{} // those of containers that have not been told of
}

// Open begins to count for a container whose processes are in g, until [OOMLedger.Close].
func (l *OOMLedger) Open(g Group) error {
	if !g.files().oomBelow() || g.memory == "" {
		return nil
	}
	dir, name := filepath.Split(g.memory)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Stat(filepath.Join(dir, oomEventsV2)); errors.Is(err, fs.ErrNotExist) {
		return nil // the root does not count
	}
	total, below, err := killsBelow(dir)
	if err != nil {
		return err
	}
	a := l.parents[dir]
	if a == nil {
		a = &account{known: make(map[string]uint64), open: make(map[string]struct{})}
		if l.parents == nil {
			l.parents = make(map[string]*account)
		}
		l.parents[dir] = a
	}
	a.open[name] = struct{}{}
	a.see(below)
	if !a.lost(below) {
		// Whatever else the parent has counted was not ours.
		a.past += a.missing(total, below)
	}
	return nil
}

// Close returns how many processes of g the kernel has killed. It is called once, when all of them have ended. An error of
// kind NotFound says that g is gone and nothing else can tell.
func (l *OOMLedger) Close(g Group) (uint64, error) {
	dir, name := filepath.Split(g.memory)
	l.mu.Lock()
	defer l.mu.Unlock()
	kills, err := g.OOMKills()
	a := l.parents[dir]
	if a == nil {
		return kills, err
	}
	if _, open := a.open[name]; !open {
		return kills, err
	}
	delete(a.open, name)
	if len(a.open) == 0 {
		delete(l.parents, dir)
	}
	if !errors.Is(err, fault.NotFound) {
		a.known[name] = kills
		return kills, err
	}
	total, below, err := killsBelow(dir)
	if err != nil {
		return 0, err
	}
	a.see(below)
	kills = a.missing(total, below)
	if !a.lost(below) {
		a.past += kills
	}
	return kills, nil
}

// see takes down what is there and is not open, and what of that has gone.
func (a *account) see(below map[string]uint64) {
	for name, kills := range a.known {
		if _, there := below[name]; !there {
			a.past += kills
			delete(a.known, name)
		}
	}
	for name, kills := range below {
		if _, open := a.open[name]; !open {
			a.known[name] = kills
		}
	}
}

// missing is what the parent counts and nothing accounts for.
func (a *account) missing(total uint64, below map[string]uint64) uint64 {
	sum := a.past
	for _, kills := range below {
		sum += kills
	}
	return total - min(total, sum)
}

// lost tells whether an open cgroup is gone.
func (a *account) lost(below map[string]uint64) bool {
	for name := range a.open {
		if _, there := below[name]; !there {
			return true
		}
	}
	return false
}

// killsBelow reads the count of a v2 cgroup and those of the cgroups right below it, as they were at one moment.
func killsBelow(dir string) (total uint64, below map[string]uint64, err error) {
	const tries = 100 // each is some microseconds, and one in which something happens is rare
	for range tries {
		if total, err = readKills(dir, oomEventsV2); err != nil {
			return 0, nil, err
		}
		if below, err = childKills(dir); err != nil {
			return 0, nil, err
		}
		again, err := readKills(dir, oomEventsV2)
		if err != nil {
			return 0, nil, err
		}
		if again == total && below != nil {
			return total, below, nil
		}
	}
	return 0, nil, fault.New(fault.Unavailable, "the OOM kills below cgroup %s do not come to rest", dir)
}

// childKills reads the counts of the cgroups right below; nil when one has gone meanwhile.
func childKills(dir string) (map[string]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, gone(err)
	}
	below := make(map[string]uint64)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		kills, err := readKills(filepath.Join(dir, e.Name()), oomEventsV2)
		if errors.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		below[e.Name()] = kills
	}
	return below, nil
}

// OOMKills returns how many processes of the cgroup the kernel has killed for want of memory. An error of kind NotFound
// says that the cgroup is gone.
func (g Group) OOMKills() (uint64, error) {
	if g.memory == "" {
		return 0, nil
	}
	return readKills(g.memory, g.files().oomEvents())
}

// readKills reads the count from a file with lines "key number". Where the memory controller is not at work it is 0.
func readKills(dir, file string) (uint64, error) {
	body, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(filepath.Join(dir, "cgroup.procs")); serr == nil {
			return 0, nil
		}
	}
	if err != nil {
		return 0, gone(err)
	}
	for line := range strings.Lines(string(body)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.ParseUint(strings.TrimSpace(n), 10, 64)
		}
	}
	return 0, nil // before 4.13 the kernel did not count
}

// Gone reports whether the error of using a file of a cgroup says that the cgroup was removed. ENODEV: it was removed while
// the file was open.
func Gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// gone gives the error of reading a file of a removed cgroup its kind.
func gone(err error) error {
	if Gone(err) {
		return fault.As(fault.NotFound, fmt.Errorf("the cgroup is gone: %w", err))
	}
	return err
}
