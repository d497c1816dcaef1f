package step

import "sync"

// History is a ring of the newest finished operations, in memory only. A nil History keeps nothing.
type History struct {
	mu   sync.Mutex
	kept []Report // at most size
	next int      // the slot to overwrite next, once the ring is full
	size int
}

// NewHistory returns a history of at most size operations.
func NewHistory(size int) *History { return &History{size: size} }

// Add stores an operation and drops the oldest one if the ring is full. The report must not be
// changed afterwards.
func (h *History) Add(r Report) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.kept) < h.size {
		h.kept = append(h.kept, r)
		return
	}
	h.kept[h.next] = r
	h.next = (h.next + 1) % h.size
}

// Find returns the operations for which wanted is true, in the order in which they ended.
func (h *History) Find(wanted func(Report) bool) []Report {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Report
	for i := range h.kept {
		if r := h.kept[(h.next+i)%len(h.kept)]; wanted(r) {
			out = append(out, r)
		}
	}
	return out
}
