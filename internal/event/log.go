package event

import "sync"

// Log is the newest of a sequence of events.
type Log[T any] struct {
	most int

	mu      sync.Mutex
	events  []T           // without a gap; the last one has the number last
	last    uint64        // number of the newest event, 0 before the first
	changed chan struct{} // closed at the next event; nil when nobody waits
}

// New returns an empty log that keeps the newest most events.
func New[T any](most int) *Log[T] { return &Log[T]{most: most} }

// Append adds an event and returns its number.
func (l *Log[T]) Append(e T) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == l.most {
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

// drop takes the oldest n events away, so that what they refer to can be collected. The caller holds mu.
func (l *Log[T]) drop(n int) {
	clear(l.events[:n])
	l.events = l.events[n:]
	if len(l.events) == 0 {
		l.events = nil
	}
}

// Last returns the number of the newest event, 0 before the first.
func (l *Log[T]) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Since returns the events after number n, oldest first and at most limit of them. When there is none it returns a channel
// that is closed with the next one. Lost reports that events after n have been dropped; then nothing else is returned.
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

// Forget drops the events up to number n: nobody will ask for them.
func (l *Log[T]) Forget(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if first := l.last - uint64(len(l.events)) + 1; n >= first {
		l.drop(int(min(n, l.last) - first + 1))
	}
}
