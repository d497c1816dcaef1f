package step

import "sync"

// History keeps the newest operations that have ended: a ring of a fixed size, in memory alone. A nil
// history keeps nothing.
type History struct {
	mu   sync.Mutex
	kept []Report // at most size
	next int      // where the next one goes, once all places are taken
	size int
}

// NewHistory returns a history of up to size operations.
func NewHistory(size int) *History { return &History{size: size} }

// Add keeps an operation, in place of the oldest one when there is no room. The report must not be changed later.
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

// Find returns the operations that are wanted, the first that ended first.
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
