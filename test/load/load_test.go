package load_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/load"
)

func TestMain(m *testing.M) { harness.Main(m) }

// Bounded logs, so that constant output does not fill the disk.
const smallLogs = "[pod]\nlog_max_size = 10485760\nlog_max_files = 1\n"

// TestLoad is `make load`: 200 pods of three containers, 50 at a time, for KURI_LOAD (10m).
// KURI_LOAD_PODS sets the number of pods.
func TestLoad(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("KURI_LOAD"))
	if err != nil {
		t.Skip("it takes ten minutes: make load")
	}
	pods := 200
	if n, err := strconv.Atoi(os.Getenv("KURI_LOAD_PODS")); err == nil {
		pods = n
	}
	d := harness.Start(t, harness.Options{Config: smallLogs})
	f := load.Run(t, d, d.PullBusybox(t), load.Plan{
		Pods: pods, Containers: 3, Lanes: 50, Chatty: 20, Probe: 10 * time.Second, Churn: 250 * time.Millisecond, For: length,
	})
	t.Log(f)
	if p99 := load.Percentile(f.Status, 99); p99 > 20*time.Millisecond {
		t.Errorf("the 99th percentile of Status is %s, 20 ms at most", p99)
	}
	if f.After != f.Idle {
		t.Errorf("descriptors: %+v before the pods, %+v after them", f.Idle, f.After)
	}
	flat(t, "kurid", f.Early.Kurid, f.Late.Kurid)
	flat(t, "the keeper", f.Early.Keeper, f.Late.Keeper)
}

// flat fails t if the memory of a program has grown by more than a fifth and 4 MiB.
func flat(t *testing.T, who string, early, late int64) {
	t.Helper()
	if late > early+early/5+4<<20 {
		t.Errorf("%s has grown from %d KiB to %d KiB", who, early>>10, late>>10)
	}
}

// TestLogRate compares the CPU usage of the keeper for twenty containers that print as fast as they
// can, with and without pod.log_rate.
func TestLogRate(t *testing.T) {
	if os.Getenv("KURI_LOAD") == "" {
		t.Skip("it measures the CPU: make load")
	}
	free := keeperShare(t, smallLogs)
	limited := keeperShare(t, smallLogs+"log_rate = 65536\n")
	t.Logf("CPU of the keeper: %.2f s a second without log_rate, %.2f with 64 KiB a second", free, limited)
	if limited > free/3 {
		t.Errorf("log_rate leaves %.0f %% of the keeper's CPU, a third is the most", 100*limited/free)
	}
}

// keeperShare returns the CPU seconds per second of a keeper with twenty chatty containers.
func keeperShare(t *testing.T, config string) (share float64) {
	t.Run("", func(t *testing.T) {
		pod := harness.Pod("chatty")
		pod.LogDirectory = t.TempDir() // which is removed after the pod
		d := harness.Start(t, harness.Options{Config: config})
		image := d.PullBusybox(t)
		id := d.RunPod(t, pod)
		for i := range 20 {
			d.Run(t, id, harness.Container("c"+strconv.Itoa(i), image, "yes",
				"a line of a log that is as long as many lines are, some eighty characters"), pod)
		}
		time.Sleep(12 * time.Second) // by then each container has used up its burst of ten seconds' worth
		before, began := load.CPU(t, d.KeeperPid()), time.Now()
		time.Sleep(10 * time.Second)
		share = (load.CPU(t, d.KeeperPid()) - before).Seconds() / time.Since(began).Seconds()
	})
	return share
}
