package undo

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestRunGoesBackwardsAndContinuesAfterAFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var ran []string
	s := New(ctx)
	for _, name := range []string{"a", "b", "c"} {
		s.Add(name, func(ctx context.Context) error {
			ran = append(ran, name)
			if name == "b" {
				return errors.New("stuck")
			}
			return ctx.Err()
		})
	}
	cancel() // the caller gives up: undoing goes on
	s.Run()
	if want := []string{"c", "b", "a"}; !slices.Equal(ran, want) {
		t.Fatalf("ran %v, want %v", ran, want)
	}
	s.Run()
	if len(ran) != 3 {
		t.Fatal("a second Run undid again")
	}
}

func TestReleaseDropsTheSteps(t *testing.T) {
	s := New(context.Background())
	s.Add("never", func(context.Context) error { t.Error("ran"); return nil })
	s.Release()
	s.Run()
}
