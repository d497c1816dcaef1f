package server

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestAPanicInASessionIsItsError(t *testing.T) {
	var none map[string]int
	err := contained("a session", func() error {
		none["x"] = 1
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "a bug in Kuri") || !strings.Contains(err.Error(), "nil map") {
		t.Errorf("%v", err)
	}
	if err := contained("a session", func() error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}
