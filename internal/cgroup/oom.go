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

// OOMLedger counts the OOM kills of containers, even if a container's cgroup is removed before it
// can be read. systemd removes a scope when its last process has ended, at the moment when the end
// is noticed.
//
// On cgroup v2 a cgroup counts kills in itself and in all cgroups that are or were below it. The
// kills of a removed cgroup are the parent's count, less the counts of the other cgroups below the
// parent, less the known kills of removed ones. If two disappear at the same time, each gets the
// sum of both.
//
// On v1 a parent counts only for itself, and the kills of a removed cgroup are unknown.
//
// It is safe for concurrent use. The zero value is empty.
type OOMLedger struct {
	mu      sync.Mutex // guards parents; held over reads of cgroup files, which do not hang
	parents map[string]*account
}

// account is for the cgroups below one parent. It exists while one of them is open.
type account struct {
	past  uint64              // kills of removed cgroups
	known map[string]uint64   // last count of existing cgroups that are not open
	open  map[string]struct{} // cgroups between Open and Close
}

// Open starts counting for a container with the processes of g, until [OOMLedger.Close].
func (l *OOMLedger) Open(g Group) error {
	if !g.files().oomBelow() || g.memory == "" {
		return nil
	}
	dir, name := filepath.Split(g.memory)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Stat(filepath.Join(dir, oomEventsV2)); errors.Is(err, fs.ErrNotExist) {
		return nil // the root has no count
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
		// Other kills that the parent has counted are not the container's.
		a.past += a.missing(total, below)
	}
	return nil
}

// Close returns the number of OOM kills in g. It must be called once, after all processes have
// ended. The error is of kind NotFound if g is gone and its kills are unknown.
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

// see stores the counts of cgroups that are not open, and moves those of removed ones to past.
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

// missing returns the kills in the parent's count that belong to no known cgroup.
func (a *account) missing(total uint64, below map[string]uint64) uint64 {
	sum := a.past
	for _, kills := range below {
		sum += kills
	}
	return total - min(total, sum)
}

// lost reports whether an open cgroup is gone.
func (a *account) lost(below map[string]uint64) bool {
	for name := range a.open {
		if _, there := below[name]; !there {
			return true
		}
	}
	return false
}

// killsBelow reads the count of a v2 cgroup and those of its children, as of one moment.
func killsBelow(dir string) (total uint64, below map[string]uint64, err error) {
	const tries = 100 // one takes some microseconds, and rarely has to be repeated
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

// childKills reads the counts of the children of a cgroup. It returns nil if one was removed
// meanwhile.
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

// OOMKills returns the number of OOM kills in the cgroup. The error is of kind NotFound if the
// cgroup is gone.
func (g Group) OOMKills() (uint64, error) {
	if g.memory == "" {
		return 0, nil
	}
	return readKills(g.memory, g.files().oomEvents())
}

// readKills reads the count from a file with lines "key number". It is 0 without the memory
// controller.
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
	return 0, nil // kernels before 4.13 have no count
}

// Gone reports whether an error of a cgroup file means that the cgroup was removed. ENODEV: it was
// removed while the file was open.
func Gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// gone gives an error the kind NotFound if the cgroup was removed.
func gone(err error) error {
	if Gone(err) {
		return fault.As(fault.NotFound, fmt.Errorf("the cgroup is gone: %w", err))
	}
	return err
}
