package flight

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestCallersOfOneKeyShareOneRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		runs := 0
		gate := make(chan struct{})
		for range 20 {
			go func() {
				v, _, err := g.Do(t.Context(), "pod", func(context.Context) (int, error) {
					<-gate
					runs++
					return runs, nil
				})
				if v != 1 || err != nil {
					t.Errorf("got %d, %v", v, err)
				}
			}()
		}
		synctest.Wait() // all twenty callers wait for the one run
		if !g.Flying("pod") {
			t.Fatal("nothing is in flight")
		}
		// Callers with another key are not blocked.
		if v, joined, _ := g.Do(t.Context(), "other", func(context.Context) (int, error) { return 7, nil }); v != 7 ||
			joined {
			t.Fatal("another key was affected")
		}
		close(gate)
		g.Wait()
	})
}

func TestCallerThatTimesOutJoinsItsOwnRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, string]
		gate := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err := g.Do(ctx, "k", func(ctx context.Context) (string, error) {
			<-gate
			return "made", ctx.Err() // the run must not see its caller's cancellation
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("err = %v", err)
		}
		go func() {
			v, joined, err := g.Do(t.Context(), "k", func(context.Context) (string, error) { return "made twice", nil })
			if v != "made" || !joined || err != nil {
				t.Errorf("%q, joined %v, err %v", v, joined, err)
			}
		}()
		synctest.Wait()
		close(gate)
		g.Wait()
	})
}

func TestPanicBecomesAnError(t *testing.T) {
	var g Group[int, int]
	_, _, err := g.Do(context.Background(), 1, func(context.Context) (int, error) { panic("oh") })
	if err == nil || !strings.Contains(err.Error(), "panic: oh") {
		t.Fatalf("err = %v", err)
	}
	if g.Flying(1) {
		t.Fatal("still flying")
	}
}
