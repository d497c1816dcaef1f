package server_test

import (
	"context"
	"sync"
	"testing"
	"time"
)

// TestHundredContainers prints the cost of starting and holding containers. It does not check the
// figures. With the race detector they mean nothing, and there are fewer containers.
func TestHundredContainers(t *testing.T) {
	count, becomesIdle := 100, 3*time.Second
	if raceDetector {
		count, becomesIdle = 20, 0
	}
	n := newNode(t)
	info, err := n.Info(t.Context())
	n.must(err)
	warm := n.run(n.sandbox(), "sleep 1000")
	n.exec(warm, "true") // the fork server exists from now on
	n.must(n.Delete(t.Context(), warm.Id))
	time.Sleep(becomesIdle)
	fds, before, cpuBefore := n.descriptors(), memory(t, int(info.Pid)), cpu(t, int(info.Pid))

	jobs := make([]*job, count)
	var makeBox, create, start []time.Duration
	for i := range jobs {
		t0 := time.Now()
		box := n.sandbox()
		makeBox = append(makeBox, time.Since(t0))
		jobs[i] = n.job(box, "sleep 1000")
		t0 = time.Now()
		_, err := n.Create(t.Context(), jobs[i].CreateRequest)
		n.must(err)
		create = append(create, time.Since(t0))
		t0 = time.Now()
		_, err = n.Start(t.Context(), jobs[i].Id)
		n.must(err)
		start = append(start, time.Since(t0))
	}
	t.Logf("p50 of CreateSandbox %s, Create %s, Start %s", median(makeBox), median(create), median(start))
	time.Sleep(becomesIdle)
	after := memory(t, int(info.Pid))
	t.Logf("keeper: %d KB, with %d pods %d KB: %.1f KB per pod; threads %d", before, count, after,
		float64(after-before)/float64(count), threads(int(info.Pid)))

	var execs []time.Duration
	for range 20 {
		t0 := time.Now()
		n.exec(jobs[0], "true")
		execs = append(execs, time.Since(t0))
	}
	t.Logf("p50 of Exec %s", median(execs))

	t0 := time.Now()
	var wg sync.WaitGroup
	for _, j := range jobs {
		wg.Go(func() {
			if err := n.Delete(t.Context(), j.Id); err != nil {
				t.Error(err)
			}
			if err := n.RemoveSandbox(t.Context(), j.SandboxId); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d pods deleted at once in %s; CPU per pod from beginning to end %s", count, time.Since(t0),
		(cpu(t, int(info.Pid))-cpuBefore)/time.Duration(count))
	if !eventually(func() bool { return n.descriptors() <= fds }) {
		t.Errorf("%d descriptors, %d before", n.descriptors(), fds)
	}
	time.Sleep(becomesIdle)
	t.Logf("keeper afterwards: %d KB, threads %d", memory(t, int(info.Pid)), threads(int(info.Pid)))
}

func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	const count = 30
	t0 := time.Now()
	made, cancel := context.WithCancel(t.Context())
	var lists, wg sync.WaitGroup
	lists.Go(func() { // as a daemon does at its start
		for made.Err() == nil {
			_, err := n.List(t.Context())
			n.must(err)
		}
	})
	for range count {
		wg.Go(func() {
			box := n.sandbox()
			exit, out := n.finish(box, "echo $$; exit 1")
			if exit.Code != 1 || out != "1\n" {
				t.Errorf("%+v %q", exit, out)
			}
			n.must(n.RemoveSandbox(t.Context(), box.Id))
		})
	}
	wg.Wait()
	cancel()
	lists.Wait()
	t.Logf("%d pods from beginning to end at once in %s", count, time.Since(t0))
}
