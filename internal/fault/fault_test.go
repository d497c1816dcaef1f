package fault

import (
	"errors"
	"fmt"
	"io"
	"syscall"
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

func TestErrnosOfTheNode(t *testing.T) {
	for errno, want := range map[syscall.Errno]Kind{
		syscall.EMFILE: Exhausted, syscall.ENFILE: Exhausted, syscall.ENOSPC: Exhausted, syscall.EDQUOT: Exhausted,
		syscall.ENOMEM: Exhausted,
		syscall.EIO:    Unavailable, syscall.ENOENT: "", syscall.EACCES: "",
	} {
		err := fmt.Errorf("open x: %w", errno)
		if got := OfErrno(err); got != want || Of(err) != "" {
			t.Errorf("%v: kind %q, want %q", errno, got, want)
		}
		if named := Hint(err) != ""; named != (errno == syscall.EMFILE || errno == syscall.ENFILE ||
			errno == syscall.EIO) {
			t.Errorf("%v: hint %q", errno, Hint(err))
		}
	}
	if OfErrno(io.EOF) != "" || OfErrno(nil) != "" || Hint(nil) != "" {
		t.Error("an error that is not the kernel's has a kind or a hint")
	}
}
