package server

import (
	"errors"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

// A container whose sandbox is lost keeps the keeper from exiting, and its pod from being removed.
func TestAContainerWithoutASandboxIsHeld(t *testing.T) {
	s := &Server{sandboxes: map[string]*sandbox{}, containers: map[string]*container{"c": {id: "c", sandboxID: "lost"}}}
	if s.Retire() || s.isRetired() {
		t.Error("the keeper retires and has a container")
	}
	if _, err := s.beginRemoval("lost"); !errors.Is(err, fault.Precondition) {
		t.Errorf("the removal of its sandbox: %v", err)
	}
	if box, err := s.beginRemoval("other"); box != nil || err != nil {
		t.Errorf("the removal of an unknown sandbox: %v, %v", box, err)
	}
	delete(s.containers, "c")
	if box, err := s.beginRemoval("lost"); box != nil || err != nil {
		t.Errorf("the removal of its sandbox without it: %v, %v", box, err)
	}
	if !s.Retire() || !s.isRetired() {
		t.Error("the keeper holds nothing and does not retire")
	}
}
