package event

import (
	"slices"
	"sync"
	"testing"
)

func TestSince(t *testing.T) {
	l := New[int](4)
	if events, next, lost := l.Since(0, 9); events != nil || next == nil || lost || l.Last() != 0 {
		t.Errorf("an empty log: %v, %t", events, lost)
	}
	for i := 1; i <= 6; i++ {
		if n := l.Append(10 * i); n != uint64(i) {
			t.Errorf("event %d has number %d", i, n)
		}
	}
	for _, test := range []struct {
		after uint64
		limit int
		want  []int
		lost  bool
	}{
		{0, 9, nil, true}, {1, 9, nil, true},
		{2, 9, []int{30, 40, 50, 60}, false}, {2, 1, []int{30}, false}, {5, 9, []int{60}, false},
		{6, 9, nil, false}, {7, 9, nil, false},
	} {
		events, next, lost := l.Since(test.after, test.limit)
		if !slices.Equal(events, test.want) || lost != test.lost || (next != nil) != (test.after >= 6) {
			t.Errorf("after %d: %v, lost %t, waits %t", test.after, events, lost, next != nil)
		}
	}
	l.Forget(4)
	if _, _, lost := l.Since(3, 9); !lost {
		t.Error("a forgotten event is not lost")
	}
	if events, _, _ := l.Since(4, 9); !slices.Equal(events, []int{50, 60}) {
		t.Errorf("after 4: %v", events)
	}
	l.Forget(3) // again
	l.Forget(99)
	if _, next, lost := l.Since(6, 9); lost || next == nil {
		t.Error("a reader that is up to date has lost something")
	}
	if l.Append(70); l.Last() != 7 {
		t.Errorf("the last is %d", l.Last())
	}
	if events, _, lost := l.Since(6, 9); lost || !slices.Equal(events, []int{70}) {
		t.Errorf("after 6: %v, %t", events, lost)
	}
}

func TestReadersSeeAllInOrder(t *testing.T) {
	const count = 50_000
	l := New[int](count)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for seen := 0; seen < count; {
				events, next, lost := l.Since(uint64(seen), 100)
				if lost {
					t.Error("lost")
					return
				}
				if len(events) == 0 {
					<-next
				}
				for _, e := range events {
					if e != seen {
						t.Errorf("%d after %d", e, seen-1)
						return
					}
					seen++
				}
			}
		})
	}
	for i := range count {
		l.Append(i)
	}
	readers.Wait()
}
