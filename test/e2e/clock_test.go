package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// setClock moves the machine's clock, until the test ends. It skips t where the clock is not the
// test's to set.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	if os.Getenv("KURI_VM") == "" {
		t.Skip("SKIP: sets the clock, so runs in a virtual machine: make test-vm")
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	set := unix.NsecToTimespec(now.Nano() + by.Nanoseconds())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &set); err != nil {
		t.Fatal(err)
	}
}

// clocked is a node whose clock is set while a pod runs.
type clocked struct {
	*shell
	busy    string // a container that prints
	pid     int
	attempt uint32 // of the containers and sandboxes made after each change
	created map[string]int64
}

// The clock is set back by an hour and forward by a year while a pod runs. Limits last as long as
// before, times of what has happened stay, and the newest container of a name stays the newest.
func TestClockThatIsSet(t *testing.T) {
	setClock(t, 0)
	s := newShell(t)
	n := &clocked{shell: s, created: map[string]int64{}}
	n.busy = s.run(t, nil, "sh", "-c", "while :; do echo tick; sleep 0.2; done")
	n.pid = firstPid(t, s.Daemon, n.busy)
	n.next(t)
	for _, c := range []struct {
		name string
		by   time.Duration
	}{{"an hour back", -time.Hour}, {"a year forward", 365 * 24 * time.Hour}} {
		t.Run(c.name, func(t *testing.T) {
			container, pod := s.ContainerStatus(t, n.busy), s.PodStatus(t, s.pod)
			event := listen(t, s.Daemon)
			limits := n.limits(t)
			n.usage(t, func(uint64) bool { return true })
			setClock(t, c.by)
			defer setClock(t, -c.by)

			for _, wait := range limits {
				wait()
			}
			n.usage(t, func(nanoCores uint64) bool { return nanoCores > 1e5 && nanoCores < 1e11 })
			n.next(t)
			n.logged(t)
			n.ordered(t, event)
			n.stops(t)
			for _, restarted := range []string{"", "kurid", "the keeper"} {
				switch restarted {
				case "kurid":
					s.Restart(t)
				case "the keeper":
					killKeeper(t, s.Daemon, false)
				}
				st, box := s.ContainerStatus(t, n.busy), s.PodStatus(t, s.pod)
				if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || firstPid(t, s.Daemon, n.busy) != n.pid ||
					st.CreatedAt != container.CreatedAt || st.StartedAt != container.StartedAt {
					t.Errorf("restarted %s, the container is %v, was %v", restarted, st, container)
				}
				if box.State != runtimeapi.PodSandboxState_SANDBOX_READY || box.CreatedAt != pod.CreatedAt {
					t.Errorf("restarted %s, the pod is %v, was %v", restarted, box, pod)
				}
			}
			if out, _, code := s.Kuri(t, "ps"); code != 0 || strings.Contains(out, "-1") {
				t.Errorf("kuri ps: exit code %d: %s", code, out)
			}
		})
	}
}

// limits starts an exec that ends by itself and one that reaches its timeout, and returns functions
// that wait for them.
func (n *clocked) limits(t *testing.T) []func() {
	t.Helper()
	const limit = 8 * time.Second
	do := func(limit time.Duration, command string) chan error {
		done := make(chan error, 1)
		go func() {
			begun := time.Now()
			_, err := n.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{
				ContainerId: n.busy, Cmd: []string{"sh", "-c", command}, Timeout: int64(limit / time.Second),
			})
			if took := time.Since(begun); err != nil && took < limit {
				err = fmt.Errorf("after %s: %w", took, err)
			}
			done <- err
		}()
		return done
	}
	ends, hangs := do(harness.Patient(time.Minute), "touch /tmp/began; sleep 8"), do(limit, "sleep 1003")
	becomes(t, "the commands run", func() bool {
		_, _, code := n.Exec(t, n.busy, "sh", "-c", "ls /tmp/began && rm /tmp/began")
		return code == 0
	})
	return []func(){
		func() {
			if err := <-ends; err != nil {
				t.Errorf("an exec within its time limit: %v", err)
			}
		},
		func() {
			err := <-hangs
			harness.WantError(t, err, codes.DeadlineExceeded)
			if err != nil && strings.Contains(err.Error(), "after ") {
				t.Errorf("an exec ended before its time limit: %v", err)
			}
		},
	}
}

// usage waits for a CPU usage that is plausible.
func (n *clocked) usage(t *testing.T, plausible func(nanoCores uint64) bool) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "the CPU usage is plausible", func() error {
		resp, err := n.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: n.busy})
		if err != nil {
			return err
		}
		nano := resp.Stats.Cpu.GetUsageNanoCores()
		if nano == nil || !plausible(nano.Value) {
			return fmt.Errorf("%v", resp.Stats.Cpu)
		}
		if at := time.Unix(0, resp.Stats.Cpu.Timestamp); time.Since(at).Abs() > harness.Patient(time.Minute) {
			return fmt.Errorf("it is of %s", at)
		}
		return nil
	})
}

// next makes the next attempt of a container and of a pod: they are the newest of their name, as a
// kubelet sees it, and started by the clock.
func (n *clocked) next(t *testing.T) {
	t.Helper()
	c := harness.Container("again", n.image, "true")
	c.Metadata.Attempt = n.attempt
	id := n.Run(t, n.pod, c, n.podConfig)
	st := n.WaitExit(t, id)
	config := harness.Pod("twice")
	config.Metadata.Attempt = n.attempt
	pod := n.RunPod(t, config)
	for what, created := range map[string]int64{"container": st.CreatedAt, "pod": n.PodStatus(t, pod).CreatedAt} {
		if created <= n.created[what] {
			t.Errorf("attempt %d of the %s was created at %d, the one before at %d", n.attempt, what, created, n.created[what])
		}
		n.created[what] = created
	}
	if at := time.Unix(0, st.StartedAt); time.Since(at).Abs() > harness.Patient(time.Minute) ||
		st.FinishedAt < st.StartedAt {
		t.Errorf("started at %s, ended at %s; it is %s", at, time.Unix(0, st.FinishedAt), time.Now())
	}
	if _, err := n.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	n.attempt++
}

// logged waits for a line of the log with the time of the clock.
func (n *clocked) logged(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "the log has the time of the clock", func() error {
		lines := n.LogLines(t, n.busy)
		if last := lines[len(lines)-1]; time.Since(last.Time).Abs() > harness.Patient(20*time.Second) {
			return fmt.Errorf("the last line is of %s, it is %s", last.Time, time.Now())
		}
		return nil
	})
}

// ordered reads events up to the last one of the pod made last: each is later than the one before.
func (n *clocked) ordered(t *testing.T, event func() (*runtimeapi.ContainerEventResponse, error)) {
	t.Helper()
	for last := int64(0); ; {
		e, err := event()
		if err != nil {
			t.Fatal(err)
		}
		if e.CreatedAt <= last {
			t.Errorf("%v of %d comes after one of %d", e.ContainerEventType, e.CreatedAt, last)
		}
		last = e.CreatedAt
		if m := e.PodSandboxStatus.GetMetadata(); m.GetName() == "twice" && m.GetAttempt() == n.attempt-1 &&
			e.ContainerEventType == stopped {
			return
		}
	}
}

// stops stops a container that ignores SIGTERM: it has its grace period.
func (n *clocked) stops(t *testing.T) {
	t.Helper()
	id := n.run(t, nil, "sh", "-c", "trap '' TERM; while :; do sleep 0.2; done")
	begun := time.Now()
	n.StopContainer(t, id, 2)
	st := n.ContainerStatus(t, id)
	if took := time.Since(begun); st.ExitCode != 128+int32(syscall.SIGKILL) || took < 2*time.Second {
		t.Errorf("it ended with %d after %s", st.ExitCode, took)
	}
}
