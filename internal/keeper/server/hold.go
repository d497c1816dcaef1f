package server

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
)

// keep is the holder as this keeper uses it: it keeps descriptors by name and exit statuses for a
// successor. If there is no holder, nothing fails; the only loss is the state that ends with this
// process.
type keep struct {
	client *holder.Client // nil in tests: keeps nothing
	// rests is when a hanging holder is called again, so that no start waits for it; nil: at once.
	rests *atomic.Pointer[time.Time]
	own   *ledger // nil if client is nil
}

// ledger is a copy of what the holder has of this keeper, for the next holder if that one dies:
// duplicates of the descriptors by name, and the watched processes. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex // guards both
	files   map[string]int
	watched map[int]struct{}
}

func newLedger() *ledger {
	return &ledger{files: make(map[string]int), watched: make(map[int]struct{})}
}

// add stores a duplicate of a descriptor, and replaces one with the same name.
func (l *ledger) add(name string, f *os.File) error {
	return control(f, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if old, ok := l.files[name]; ok {
			unix.Close(old)
		}
		l.files[name] = dup
		return nil
	})
}

func (l *ledger) remove(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if fd, ok := l.files[name]; ok {
		unix.Close(fd)
		delete(l.files, name)
	}
}

func (l *ledger) watch(pid int, on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if on {
		l.watched[pid] = struct{}{}
	} else {
		delete(l.watched, pid)
	}
}

// A holder that does not answer within slow is considered hanging, and is called again after rest.
const (
	slow = time.Second
	rest = time.Minute
)

func newKeep(state string) keep {
	return keep{holder.Connect(state), new(atomic.Pointer[time.Time]), newLedger()}
}

// ask calls the holder, unless it is known to hang.
func (k keep) ask(what, name string, call func() error) {
	if k.client == nil {
		return
	}
	begun := time.Now()
	if until := k.rests.Load(); until != nil && begun.Before(*until) {
		return
	}
	err := call()
	if took := time.Since(begun); err != nil && took > slow {
		k.rests.Store(new(time.Now().Add(rest)))
		slog.Error("the holder hangs; what is begun now is lost if the keeper ends before it goes on", "took", took,
			"err", err)
	}
	k.complain(what, name, err)
}

// shmName is the name of the mount namespace in which the pods' /dev/shm are mounted.
const shmName = "keeper/shm"

func containerName(id, what string) string { return "container/" + id + "/" + what }
func sandboxName(id, what string) string   { return "sandbox/" + id + "/" + what }

// put stores a descriptor in the holder under that name.
func (k keep) put(name string, f *os.File) {
	if f != nil {
		k.putAll(map[string]*os.File{name: f})
	}
}

// putAll stores descriptors by name in the holder, and waits only once for it.
func (k keep) putAll(files map[string]*os.File) {
	if len(files) == 0 {
		return
	}
	for name, f := range files {
		k.note(name, f)
	}
	k.ask("descriptors are not kept outside the keeper, whose end would lose them", names(files),
		func() error { return k.client.PutAll(files) })
}

// names lists names for the log.
func names(files map[string]*os.File) string {
	return strings.Join(slices.Sorted(maps.Keys(files)), " ")
}

// note adds a descriptor that the holder has to the ledger, for the next holder.
func (k keep) note(name string, f *os.File) {
	if k.own == nil {
		return
	}
	if err := k.own.add(name, f); err != nil {
		slog.Warn("a descriptor is kept by this holder alone, whose end would lose it", "name", name, "err", err)
	}
}

// drop removes descriptors from the holder, and waits only once for it.
func (k keep) drop(names ...string) {
	if len(names) == 0 {
		return
	}
	for _, name := range names {
		if k.own != nil {
			k.own.remove(name)
		}
	}
	k.ask("descriptors that nobody needs are still kept", strings.Join(names, " "),
		func() error { return k.client.Drop(names...) })
}

// watch makes the holder keep the exit status of a process, in case this keeper dies first.
func (k keep) watch(pid int) {
	if k.own != nil {
		k.own.watch(pid, true)
	}
	k.ask("an exit status is not kept outside the keeper, whose end would lose it", "",
		func() error { return k.client.Watch(pid) })
}

func (k keep) forget(pid int) {
	if k.own != nil {
		k.own.watch(pid, false)
	}
	k.ask("an exit status that is known is still kept", "", func() error { return k.client.Forget(pid) })
}

func (k keep) complain(what, name string, err error) {
	switch {
	case err == nil:
	case errors.Is(err, fault.Unavailable): // there is no holder
		slog.Debug(what, "name", name, "err", err)
	default:
		slog.Warn(what, "name", name, "err", err)
	}
}

// inheritance is the set of descriptors that the holder kept for the previous keeper.
type inheritance struct {
	keep
	names map[string]bool // true once taken
}

func (k keep) inheritance() inheritance {
	in := inheritance{keep: k, names: make(map[string]bool)}
	if k.client == nil {
		return in
	}
	names, err := k.client.Names()
	if err != nil {
		slog.Warn("the holder does not say what it has; what the kernel has is adopted", "err", err)
	}
	for _, name := range names {
		in.names[name] = false
	}
	return in
}

// take returns the descriptor with that name, or nil if there is none.
func (in inheritance) take(name string) *os.File {
	if _, ok := in.names[name]; !ok {
		return nil
	}
	in.names[name] = true
	f, err := in.client.Get(name)
	if err != nil {
		slog.Error("get back what the holder has", "name", name, "err", err)
		return nil
	}
	in.note(name, f)
	return f
}

// closeRest drops the descriptors that were not taken. Names that belong to no keeper stay.
func (in inheritance) closeRest() {
	for name, taken := range in.names {
		room, _, _ := strings.Cut(name, "/")
		if !taken && (room == "container" || room == "sandbox" || room == "keeper") {
			slog.Warn("the holder had a descriptor of something that is gone; it is closed", "name", name)
			in.drop(name)
		}
	}
}
