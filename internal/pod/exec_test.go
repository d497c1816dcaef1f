package pod

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestExecsTakeTurns(t *testing.T) { synctest.Test(t, testExecsTakeTurns) }

func testExecsTakeTurns(t *testing.T) {
	turns := newExecTurns(2)
	first, err := turns.take(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	second, err := turns.take(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}

	// One exec too many waits for its timeout, and its error says what to do.
	begin := time.Now()
	_, err = turns.take(t.Context(), 50*time.Millisecond)
	if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "pod.max_execs") ||
		time.Since(begin) < 50*time.Millisecond {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
	// Or it waits as long as its caller.
	gone, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err = turns.take(gone, time.Minute); !errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, fault.Exhausted) {
		t.Error(err)
	}

	// First come, first served.
	var order []int
	var wait sync.WaitGroup
	for n := range 5 {
		wait.Go(func() {
			done, err := turns.take(t.Context(), time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			order = append(order, n) // one at a time: second still has its turn
			done()
		})
		synctest.Wait() // it is in the queue
	}
	first()
	wait.Wait()
	for n, got := range order {
		if n != got {
			t.Errorf("served in the order %v", order)
			break
		}
	}
	second()
	if len(order) != 5 {
		t.Errorf("served: %v", order)
	}
}
