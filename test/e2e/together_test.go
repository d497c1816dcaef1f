package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/test/harness"
)

// victims are the combinations of processes that are killed at once.
var victims = []struct{ kurid, keeper, holder bool }{
	{kurid: true},
	{keeper: true},
	{holder: true},
	{kurid: true, keeper: true},
	{kurid: true, holder: true},
	{keeper: true, holder: true},
	{kurid: true, keeper: true, holder: true},
}

// attackedDaemon is a daemon whose processes are killed in rounds while lanes work on it.
type attackedDaemon struct {
	*harness.Daemon
	image string
	logs  string
}

// TestKilledTogether kills kurid, the keeper and the holder in all combinations, at random moments,
// while pods start, execute, print, run out of memory and stop. A client that repeats cut calls
// completes everything. Logs are complete, exit codes and reasons are right unless the status says
// that they are unknown, no program runs twice, kuri doctor finds nothing, and no process collects
// descriptors. KURI_TEST_TOGETHER is the number of rounds: `make soak` has 100, of 20 pods.
func TestKilledTogether(t *testing.T) {
	rounds, lanes := len(victims), 6
	if n, err := strconv.Atoi(os.Getenv("KURI_TEST_TOGETHER")); err == nil {
		rounds, lanes = n, 20
	}
	d := harness.Start(t, harness.Options{})
	a := &attackedDaemon{Daemon: d, image: d.PullBusybox(t), logs: t.TempDir()}

	// A pod that lives through all rounds.
	config := harness.Pod("beside")
	config.LogDirectory = filepath.Join(a.logs, "beside")
	config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 18088}}
	pod := d.RunPod(t, config)
	beside := d.Run(t, pod, harness.Container("count", a.image, "sh", "-c",
		"trap '' PIPE; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"), config)
	pid := firstPid(t, d, beside)

	var idle map[string][]string
	var lived atomic.Int64
	for round := range rounds {
		v := victims[round%len(victims)]
		var work sync.WaitGroup
		for lane := range lanes {
			work.Go(func() {
				if err := a.life(t.Context(), fmt.Sprintf("pod-%d-%d", round, lane), v.keeper && v.holder); err != nil {
					t.Errorf("round %d, %+v killed, pod %d: %v", round, v, lane, err)
				}
				lived.Add(1)
			})
		}
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		a.kill(t, v.kurid, v.keeper, v.holder)
		work.Wait()
		if now := firstPid(t, d, beside); now != pid {
			t.Errorf("round %d, %+v killed: the pod beside has process %d, had %d", round, v, now, pid)
		}
		if r, code := doctor(t, d); code != 0 {
			t.Errorf("round %d, %+v killed: kuri doctor ends with %d: %+v", round, v, code, r.Damages)
		}
		open := a.descriptors(t)
		if idle == nil {
			idle = open
		}
		for name, now := range open {
			if len(now) > len(idle[name])+8 {
				t.Errorf("round %d, %+v killed: the %s has %d descriptors, had %d: %v, had %v", round, v, name, len(now),
					len(idle[name]), now, idle[name])
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d pods", lived.Load())
	log := filepath.Join(config.LogDirectory, "count.log")
	size := func() int64 {
		info, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	was := size()
	becomes(t, "the log of the pod beside goes on", func() bool { return size() > was })
}

// kill kills processes at once and returns when all of them serve again.
func (a *attackedDaemon) kill(t *testing.T, kurid, keeper, holder bool) {
	t.Helper()
	keeperPid, holderPid := a.KeeperPid(), a.HolderPid()
	if kurid {
		syscall.Kill(a.Pid(), syscall.SIGKILL)
	}
	if keeper {
		syscall.Kill(keeperPid, syscall.SIGKILL)
	}
	if holder {
		syscall.Kill(holderPid, syscall.SIGKILL)
	}
	if kurid {
		a.Revive(t)
	}
	becomes(t, "all processes serve", func() bool {
		k, h := a.KeeperPid(), a.HolderPid()
		return k != 0 && h != 0 && (!keeper && !holder || k != keeperPid) && (!holder || h != holderPid)
	})
}

// descriptors returns the targets of the open descriptors of each process.
func (a *attackedDaemon) descriptors(t *testing.T) map[string][]string {
	t.Helper()
	open := map[string][]string{}
	for name, pid := range map[string]int{"kurid": a.Pid(), "keeper": a.KeeperPid(), "holder": a.HolderPid()} {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Errorf("the descriptors of the %s: %v", name, err)
		}
		for _, fd := range fds {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
			open[name] = append(open[name], to)
		}
	}
	return open
}

// again repeats a call while kurid or the keeper is not there, or has no time for it, as a kubelet does.
func again(ctx context.Context, what string, call func(context.Context) error) error {
	for until := time.Now().Add(harness.Patient(3 * time.Minute)); ; time.Sleep(20 * time.Millisecond) {
		err := call(ctx)
		switch code := status.Code(err); {
		case err == nil:
			return nil
		case code != codes.Unavailable && code != codes.DeadlineExceeded || time.Now().After(until):
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// life runs a pod from its creation to its removal and checks everything that a client can see. If
// blind is true, the keeper and the holder die together meanwhile: exit codes and lines may be lost
// then, and a pod in which no process ran.
func (a *attackedDaemon) life(ctx context.Context, name string, blind bool) error {
	o := client.Options{Timeout: harness.Patient(60 * time.Second), Wait: true}
	var cri *client.Runtime
	if err := again(ctx, "dial", func(ctx context.Context) (err error) {
		cri, err = client.DialRuntime(ctx, "unix://"+a.Socket, o)
		return err
	}); err != nil {
		return err
	}
	defer cri.Close()
	p := harness.Pod(name)
	p.LogDirectory = filepath.Join(a.logs, name)
	var pod string
	lost := func(err error) bool {
		if !blind || status.Code(errors.Unwrap(err)) != codes.FailedPrecondition ||
			!strings.Contains(err.Error(), "the keeper and the holder died") {
			return false
		}
		for until := time.Now().Add(harness.Patient(20 * time.Second)); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			resp, err := cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			if err == nil && resp.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				return true
			}
		}
		return false
	}
	if err := again(ctx, "run the pod", func(ctx context.Context) error {
		resp, err := cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p})
		pod = resp.GetPodSandboxId()
		return err
	}); err != nil {
		return err
	}
	ids := map[string]string{}
	for _, c := range []*runtimeapi.ContainerConfig{
		harness.Container("polite", a.image, "sh", "-c", "trap 'exit 7' TERM; trap '' PIPE; : "+name+
			"; i=0; while :; do echo $i; i=$((i+1)); [ $((i % 20)) = 0 ] && sleep 0.1; done"),
		harness.Container("short", a.image, "sh", "-c",
			"trap '' PIPE; i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done; sleep 0.3; exit 3"),
		harness.Container("greedy", a.image, "sh", "-c",
			"trap '' PIPE; sleep 0.2; dd if=/dev/zero of=/dev/null bs=200M count=1; exit 137"),
	} {
		if c.Metadata.Name == "greedy" {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20,
				MemorySwapLimitInBytes: 16 << 20}
		}
		var id string
		if err := again(ctx, "create "+c.Metadata.Name, func(ctx context.Context) error {
			resp, err := cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c,
				SandboxConfig: p})
			id = resp.GetContainerId()
			return err
		}); lost(err) {
			return removeNamed(ctx, cri, name)
		} else if err != nil {
			return err
		}
		ids[c.Metadata.Name] = id
		began := false
		if err := again(ctx, "start "+c.Metadata.Name, func(ctx context.Context) error {
			_, err := cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			if began && status.Code(err) == codes.FailedPrecondition {
				return nil // a short one has ended since the call that was cut
			}
			began = true
			return err
		}); err != nil {
			return err
		}
	}
	stat := func(c string) (st *runtimeapi.ContainerStatus, err error) {
		err = again(ctx, "status of "+c, func(ctx context.Context) error {
			resp, err := cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ids[c]})
			st = resp.GetStatus()
			return err
		})
		return st, err
	}
	for range 5 {
		if err := again(ctx, "exec", func(ctx context.Context) error {
			resp, err := cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ids["polite"],
				Cmd: []string{"sh", "-c", "echo hi; echo there >&2; exit 5"}, Timeout: 60})
			if err == nil && (resp.ExitCode != 5 || string(resp.Stdout) != "hi\n" || string(resp.Stderr) != "there\n") {
				return fmt.Errorf("exit code %d, %q, %q", resp.ExitCode, resp.Stdout, resp.Stderr)
			}
			return err
		}); err != nil {
			return err
		}
		if st, err := stat("polite"); err != nil || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("it is %v, and was not stopped: %w", st, err)
		}
	}
	if err := single("sh\x00-c\x00trap 'exit 7' TERM; trap '' PIPE; : " + name + ";"); err != nil {
		return err
	}
	if err := again(ctx, "stop", func(ctx context.Context) error {
		_, err := cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: ids["polite"], Timeout: 60})
		return err
	}); err != nil {
		return err
	}
	for c, want := range map[string]struct {
		code   int32
		reason string
	}{"polite": {7, "Error"}, "short": {3, "Error"}, "greedy": {137, "OOMKilled"}} {
		var st *runtimeapi.ContainerStatus
		for until := time.Now().Add(harness.Patient(60 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
			var err error
			if st, err = stat(c); err != nil {
				return err
			}
			if st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
				break
			}
			if time.Now().After(until) {
				return fmt.Errorf("%s has not ended: %v", c, st)
			}
		}
		unknown := st.Reason == "ContainerStatusUnknown" && st.Message != ""
		if (st.ExitCode != want.code || st.Reason != want.reason) && !(blind && unknown) {
			return fmt.Errorf("%s: exit code %d, %s: %q", c, st.ExitCode, st.Reason, st.Message)
		}
		if !blind && c != "greedy" {
			n, err := consecutive(filepath.Join(p.LogDirectory, c+".log"))
			if err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
			if c == "short" && n != 300 {
				return fmt.Errorf("%d lines of %s", n, c)
			}
		}
	}
	return removeNamed(ctx, cri, name)
}

// removeNamed stops and removes all pods of that name. There are two if the answer of a call was cut,
// all processes died, and the pod of that call lost its namespaces before it was repeated.
func removeNamed(ctx context.Context, cri *client.Runtime, name string) error {
	var pods []*runtimeapi.PodSandbox
	if err := again(ctx, "list the pods", func(ctx context.Context) error {
		resp, err := cri.ListPodSandbox(ctx,
			&runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"test": name}}})
		pods = resp.GetItems()
		return err
	}); err != nil {
		return err
	}
	for _, p := range pods {
		if err := again(ctx, "stop the pod", func(ctx context.Context) error {
			_, err := cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id})
			return err
		}); err != nil {
			return err
		}
		if err := again(ctx, "remove the pod", func(ctx context.Context) error {
			_, err := cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// consecutive returns how many numbers a log has. They must be consecutive, except that a part of
// the log may be repeated.
func consecutive(log string) (next int, err error) {
	body, err := os.ReadFile(log)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		parts := strings.SplitN(strings.TrimSpace(line), " ", 4)
		n, err := strconv.Atoi(parts[len(parts)-1])
		if err != nil || len(parts) < 4 || n > next {
			return next, fmt.Errorf("%q follows %d", line, next-1)
		}
		if n == next {
			next++
		}
	}
	return next, nil
}

// single returns an error unless exactly one process has these arguments first. A child that has not
// yet executed its own program counts for a moment.
func single(args string) error {
	n := 0
	for range 100 {
		n = 0
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(text), args) {
				n++
			}
		}
		if n == 1 {
			return nil
		}
	}
	return fmt.Errorf("%d processes of one container", n)
}
