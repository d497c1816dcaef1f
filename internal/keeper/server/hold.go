package server

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
)

// keep is what the holder keeps for this keeper, so that a successor finds it: descriptors by name, and exit statuses. The
// holder may be gone: then nothing fails, and only what dies with this process as well is lost.
type keep struct {
	client *holder.Client // nil in tests: keeps nothing
	// rests is until when, in nanoseconds since the epoch, a holder that hangs is asked nothing: no start is to wait for it.
	rests *atomic.Int64
	own   *ledger // nil with client
}

// ledger is what the holder has of this keeper, for the next holder when that one dies: duplicates of the descriptors by
// name, and the processes that are watched. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex // guards both
	files   map[string]int
	watched map[int]struct{}
}

func newLedger() *ledger {
	return &ledger{files: make(map[string]int), watched: make(map[int]struct{})}
}

// add notes a descriptor, in place of one of that name.
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

// A holder that takes longer than slow to answer hangs, and is asked again after rest.
const (
	slow = time.Second
	rest = time.Minute
)

func newKeep(state string) keep { return keep{holder.Connect(state), new(atomic.Int64), newLedger()} }

// ask makes a call to the holder, unless that is known to hang.
func (k keep) ask(what, name string, call func() error) {
	begun := time.Now()
	if k.client == nil || begun.UnixNano() < k.rests.Load() {
		return
	}
	err := call()
	if took := time.Since(begun); err != nil && took > slow {
		k.rests.Store(time.Now().Add(rest).UnixNano())
		slog.Error("the holder hangs; what is begun now is lost if the keeper ends before it goes on", "took", took, "err", err)
	}
	k.complain(what, name, err)
}

// shmName is the name of the mount namespace in which the pods' /dev/shm are mounted.
const shmName = "keeper/shm"

func containerName(id, what string) string { return "container/" + id + "/" + what }
func sandboxName(id, what string) string   { return "sandbox/" + id + "/" + what }

// put has a descriptor kept under that name.
func (k keep) put(name string, f *os.File) {
	if f == nil {
		return
	}
	k.note(name, f)
	k.ask("a descriptor is not kept outside the keeper, whose end would lose it", name, func() error { return k.client.Put(name, f) })
}

// note has a descriptor that the holder has given to the next one, should that one die.
func (k keep) note(name string, f *os.File) {
	if k.own == nil {
		return
	}
	if err := k.own.add(name, f); err != nil {
		slog.Warn("a descriptor is kept by this holder alone, whose end would lose it", "name", name, "err", err)
	}
}

// drop has descriptors kept no longer.
func (k keep) drop(names ...string) {
	for _, name := range names {
		if k.own != nil {
			k.own.remove(name)
		}
		k.ask("a descriptor that nobody needs is still kept", name, func() error { return k.client.Drop(name) })
	}
}

// watch has the exit status of a process kept, should this keeper not live to see it.
func (k keep) watch(pid int) {
	if k.own != nil {
		k.own.watch(pid, true)
	}
	k.ask("an exit status is not kept outside the keeper, whose end would lose it", "", func() error { return k.client.Watch(pid) })
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

// inheritance is what the holder kept for the keeper before this one.
type inheritance struct {
	keep
	names map[string]bool // true once it has been taken
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

// take returns the descriptor of that name, nil when there is none.
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

// closeRest drops what nobody has taken. Names of others than keepers stay.
func (in inheritance) closeRest() {
	for name, taken := range in.names {
		room, _, _ := strings.Cut(name, "/")
		if !taken && (room == "container" || room == "sandbox" || room == "keeper") {
			slog.Warn("the holder had a descriptor of something that is gone; it is closed", "name", name)
			in.drop(name)
		}
	}
}
