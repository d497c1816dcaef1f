package pod

import "testing"

func TestGrace(t *testing.T) {
	for in, want := range map[string]int64{"": 30, "7": 7, "0": 0, "-1": 30, "x": 30} {
		if got := graceOf(map[string]string{"io.kubernetes.pod.terminationGracePeriod": in}); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}
