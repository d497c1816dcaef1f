package pod

import (
	"errors"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"

	"github.com/kuri-cri/kuri/internal/spec"
)

// A level is free once its last holder has released it, and no earlier. (Reserving levels needs no support of the
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
	}{{"pod without", false}, {"container", false}, {"container", false}, {"unknown", false}, {"pod", true},
		{"pod", true}} {
		l.release(step.id)
		if got := free(); got != step.free {
			t.Errorf("after %q gave it back: free is %v, want %v", step.id, got, step.free)
		}
	}
	// Another pod may have the level now, and keeps it even if a former holder releases it again.
	l.keep("next", spec.Labels{Process: context})
	l.release("pod")
	if free() {
		t.Error("a level was taken from who holds it")
	}
	l.release("next")
}
