package fault

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestKindSurvivesWrapping(t *testing.T) {
	err := fmt.Errorf("start pod a/b: %w", New(NotFound, "image %q: %w", "x", io.EOF))
	if !errors.Is(err, NotFound) || !errors.Is(err, io.EOF) || errors.Is(err, Invalid) {
		t.Fatalf("kind or cause lost: %v", err)
	}
	if got := err.Error(); got != `start pod a/b: image "x": EOF` {
		t.Fatalf("text %q", got)
	}
	if Of(err) != NotFound {
		t.Fatalf("Of = %q", Of(err))
	}
}

func TestAsKeepsTheFirstKind(t *testing.T) {
	if As(Invalid, nil) != nil {
		t.Fatal("nil became an error")
	}
	err := As(Unavailable, As(Exhausted, io.ErrShortWrite))
	if Of(err) != Exhausted || errors.Is(err, Unavailable) {
		t.Fatalf("Of = %q", Of(err))
	}
	if Of(io.EOF) != "" {
		t.Fatal("an ordinary error has a kind")
	}
}
