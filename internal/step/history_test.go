package step

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestHistoryKeepsTheNewest(t *testing.T) {
	h := NewHistory(3)
	all := func() string {
		var kinds []string
		for _, r := range h.Find(func(Report) bool { return true }) {
			kinds = append(kinds, r.Kind)
		}
		return strings.Join(kinds, " ")
	}
	if got := all(); got != "" {
		t.Errorf("an empty history has %q", got)
	}
	for i, want := range []string{"0", "0 1", "0 1 2", "1 2 3", "2 3 4", "3 4 5", "4 5 6"} {
		h.Add(Report{Kind: fmt.Sprint(i)})
		if got := all(); got != want {
			t.Errorf("after %d: %q, want %q", i, got, want)
		}
	}
	if got := h.Find(func(r Report) bool { return r.Kind == "5" }); len(got) != 1 || got[0].Kind != "5" {
		t.Errorf("%v", got)
	}
}

func TestHistoryIsSafeForConcurrentUse(t *testing.T) {
	h := NewHistory(10)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				h.Add(Report{})
				h.Find(func(Report) bool { return true })
			}
		})
	}
	wg.Wait()
	if n := len(h.Find(func(Report) bool { return true })); n != 10 {
		t.Errorf("%d are kept", n)
	}
}
