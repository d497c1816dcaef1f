package server_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/profile"
)

// A keeper that is built with profiles serves each of them.
func TestProfilesOfTheKeeper(t *testing.T) {
	n := newNode(t)
	for _, name := range profile.All {
		var out bytes.Buffer
		if err := n.Profile(t.Context(), profile.Request{Name: name, Seconds: 1}, &out); err != nil ||
			!bytes.HasPrefix(out.Bytes(), []byte{0x1f, 0x8b}) {
			t.Errorf("%s: %d bytes, %v", name, out.Len(), err)
		}
	}
	var out bytes.Buffer
	if err := n.Profile(t.Context(), profile.Request{Name: "goroutine", Seconds: 1, Debug: 2}, &out); err != nil ||
		!bytes.Contains(out.Bytes(), []byte("internal/keeper/server.(*Server).Profile(")) {
		t.Errorf("%s, %v", out.String(), err)
	}
	if err := n.Profile(t.Context(), profile.Request{Name: "heap", Seconds: 0}, &out); !errors.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}
