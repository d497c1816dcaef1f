package e2e

import (
	"testing"
	"time"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/load"
)

// TestLoadShort runs the load of `make load` on a small scale: no call fails, and no descriptor
// leaks. The harness checks for other leaks.
func TestLoadShort(t *testing.T) {
	d := harness.Start(t, harness.Options{Config: "[pod]\nlog_max_size = 1048576\nlog_max_files = 1\n"})
	f := load.Run(t, d, d.PullBusybox(t), load.Plan{
		Pods: 10, Containers: 3, Lanes: 10, Chatty: 2, Probe: time.Second, Churn: 250 * time.Millisecond,
		For: 5 * time.Second,
	})
	t.Log(f)
	if f.Probes == 0 || f.Churned == 0 || len(f.Status) == 0 {
		t.Error("nothing was done")
	}
	if f.After.Keeper > f.Idle.Keeper || f.After.Holder > f.Idle.Holder {
		t.Errorf("descriptors: %+v before the pods, %+v after them", f.Idle, f.After)
	}
}
