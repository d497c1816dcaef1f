package manifest

import "testing"

// TestByRun: a pod of an older kuri run is still recognised, so that kuri rm removes its files.
func TestByRun(t *testing.T) {
	for name, want := range map[string]bool{"kuri-cri.io/run": true, "kuri-cri.github.io/run": true,
		"kuri-cri.io/ulimits": false} {
		if got := ByRun(map[string]string{name: "v1"}); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
