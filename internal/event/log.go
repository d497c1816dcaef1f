package event

import "sync"

// Log holds the newest events of a sequence.
type Log[T any] struct {
	capacity int

	mu      sync.Mutex
	events  []T           // without gaps; the newest has the number last
	last    uint64        // number of the newest event, 0 for an empty log
	changed chan struct{} // closed at the next event; nil if nobody waits
}

// New returns an empty log that holds at most capacity events.
func New[T any](capacity int) *Log[T] { return &Log[T]{capacity: capacity} }

// Append adds an event and returns its number.
func (l *Log[T]) Append(e T) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == l.capacity {
		l.drop(1)
	}
	l.events = append(l.events, e)
	l.last++
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return l.last
}

// drop removes the n oldest events and clears them for the garbage collector. The caller holds mu.
func (l *Log[T]) drop(n int) {
	clear(l.events[:n])
	l.events = l.events[n:]
	if len(l.events) == 0 {
		l.events = nil
	}
}

// Last returns the number of the newest event, or 0 if there was no event yet.
func (l *Log[T]) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Since returns at most limit events after number n, oldest first. If there are no newer events, it
// returns a channel that is closed at the next one. lost reports that events after n have been
// dropped; then nothing else is returned.
func (l *Log[T]) Since(n uint64, limit int) (events []T, next <-chan struct{}, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.last - uint64(len(l.events)) + 1
	switch {
	case n >= l.last:
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		return nil, l.changed, false
	case n+1 < first:
		return nil, nil, true
	}
	rest := l.events[n+1-first:]
	return append([]T(nil), rest[:min(limit, len(rest))]...), nil, false
}

// Forget drops the events up to number n, which no reader will ask for.
func (l *Log[T]) Forget(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if first := l.last - uint64(len(l.events)) + 1; n >= first {
		l.drop(int(min(n, l.last) - first + 1))
	}
}
