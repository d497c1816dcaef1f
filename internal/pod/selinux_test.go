package pod

import (
	"errors"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"

	"github.com/kuri-cri/kuri/internal/spec"
)

// A level is free again when the last of those who hold it gives it back, and not earlier. (What reserves levels needs no
// kernel.)
func TestLevelsAreHeld(t *testing.T) {
	const context = "system_u:system_r:container_t:s0:c1,c2"
	free := func() bool {
		err := selinux.ReserveLabelV2(context)
		if err == nil {
			selinux.ReleaseLabel(context)
		}
		return !errors.Is(err, selinux.ErrMCSAlreadyExists)
	}
	var l labels
	l.keep("pod", spec.Labels{Process: context})
	l.keep("container", spec.Labels{Process: context})
	l.keep("pod without", spec.Labels{})
	for _, step := range []struct {
		id   string
		free bool
	}{{"pod without", false}, {"container", false}, {"container", false}, {"unknown", false}, {"pod", true}, {"pod", true}} {
		l.release(step.id)
		if got := free(); got != step.free {
			t.Errorf("after %q gave it back: free is %v, want %v", step.id, got, step.free)
		}
	}
	// Somebody else may have it now, and keeps it whatever the former ones say.
	l.keep("next", spec.Labels{Process: context})
	l.release("pod")
	if free() {
		t.Error("a level was taken from who holds it")
	}
	l.release("next")
}
