package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Plan is the amount of load.
type Plan struct {
	Pods, Containers int           // and containers in each of them
	Lanes            int           // concurrent starts and removals of pods
	Chatty           int           // containers that print as fast as they can
	Probe            time.Duration // interval of the exec probes of a pod
	Churn            time.Duration // interval of replacements of a pod
	For              time.Duration // duration, after all pods are up
}

// Figures has the measurements of a run.
type Figures struct {
	Up, Down        time.Duration // until all pods were up, and removed
	Probes, Churned int64
	Status          []time.Duration // of each call of Status, sorted
	PodStatus       []time.Duration // of each call of PodSandboxStatus, sorted
	Early, Late     Usage           // after a fifth of the time, and at the end
	Idle, After     Descriptors     // before the first pod, and after the last
}

// Percentile returns the p-th percentile of sorted durations.
func Percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(float64(len(sorted))*p/100), len(sorted)-1)]
}

// String returns the figures on a few lines.
func (f Figures) String() string {
	return fmt.Sprintf("up in %s, down in %s; %d probes, %d pods replaced\nStatus p50 %s p99 %s of %d; PodSandboxStatus p50 %s p99 %s of %d\n"+
		"PSS early %v, late %v\ndescriptors idle %+v, after %+v",
		f.Up.Round(time.Millisecond), f.Down.Round(time.Millisecond), f.Probes, f.Churned,
		Percentile(f.Status, 50), Percentile(f.Status, 99), len(f.Status), Percentile(f.PodStatus, 50),
		Percentile(f.PodStatus, 99), len(f.PodStatus),
		f.Early, f.Late, f.Idle, f.After)
}

// run is one run of a plan.
type run struct {
	Plan
	*harness.Daemon
	t     *testing.T
	image string
	logs  string

	mu   sync.Mutex // guards pods
	pods []*pod

	probes, churned atomic.Int64
}

// pod is a running pod.
type pod struct {
	id, name string
	probed   string       // container
	busy     sync.RWMutex // held while the pod is replaced
}

// Run executes the plan with an image that has a shell.
func Run(t *testing.T, d *harness.Daemon, image string, plan Plan) Figures {
	t.Helper()
	r := &run{Plan: plan, Daemon: d, t: t, image: image, logs: t.TempDir(), pods: make([]*pod, plan.Pods)}
	var f Figures
	r.warmUp()
	f.Idle = r.descriptors()

	began := time.Now()
	r.inLanes(func(n int) { r.up(n, fmt.Sprint("load-", n)) })
	f.Up = time.Since(began)
	if t.Failed() {
		return f
	}
	r.during(&f)
	f.Probes, f.Churned = r.probes.Load(), r.churned.Load()
	slices.Sort(f.Status)
	slices.Sort(f.PodStatus)

	began = time.Now()
	r.inLanes(func(n int) { r.down(r.pods[n]) })
	f.Down = time.Since(began)
	f.After = r.descriptors()
	return f
}

// warmUp runs a pod, so that the programs open the files that they then keep open.
func (r *run) warmUp() {
	chatty := r.Chatty
	r.Chatty = 0
	r.up(0, "load-warm-up")
	r.Chatty = chatty
	if p := r.pods[0]; p != nil {
		r.probe(0)
		r.stats()
		r.down(p)
		r.probes.Store(0)
	}
}

// during applies every kind of load to the pods for the time of the plan.
func (r *run) during(f *Figures) {
	ctx, cancel := context.WithTimeout(r.t.Context(), r.For)
	defer cancel()
	var all sync.WaitGroup
	for n := range r.Pods {
		all.Go(func() {
			sleep(ctx, time.Duration(rand.Int64N(int64(r.Probe)))) // kubelets spread their probes, too
			r.every(ctx, r.Probe, func() { r.probe(n) })
		})
	}
	all.Go(func() { r.every(ctx, r.Churn, r.replaceOne) })
	all.Go(func() { r.every(ctx, time.Second, r.relist) })
	all.Go(func() { r.every(ctx, 10*time.Second, r.stats) })
	all.Go(func() { r.every(ctx, 50*time.Millisecond, func() { f.Status = append(f.Status, r.status()) }) })
	all.Go(func() { r.every(ctx, 50*time.Millisecond, func() { f.PodStatus = append(f.PodStatus, r.podStatus()) }) })
	all.Go(func() {
		sleep(ctx, r.For/5)
		f.Early = r.usage()
	})
	all.Wait()
	f.Late = r.usage()
}

// every calls fn with pauses until ctx ends. It does not interrupt a call.
func (r *run) every(ctx context.Context, pause time.Duration, fn func()) {
	for ctx.Err() == nil && !r.t.Failed() {
		fn()
		sleep(ctx, pause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// inLanes calls fn for each pod, with as many concurrent calls as there are lanes.
func (r *run) inLanes(fn func(n int)) {
	next := make(chan int)
	var all sync.WaitGroup
	for range min(r.Lanes, r.Pods) {
		all.Go(func() {
			for n := range next {
				fn(n)
			}
		})
	}
	for n := range r.Pods {
		next <- n
	}
	close(next)
	all.Wait()
}

// check records the error of a call and reports whether it succeeded.
func (r *run) check(what string, err error) bool {
	if err != nil {
		r.t.Errorf("%s: %v", what, err)
	}
	return err == nil
}

// up starts the n-th pod. The first containers of the first pods are the chatty ones.
func (r *run) up(n int, name string) {
	ctx := context.Background()
	config := harness.Pod(name)
	config.LogDirectory = filepath.Join(r.logs, name)
	made, err := r.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if !r.check("run pod "+name, err) {
		return
	}
	p := &pod{id: made.PodSandboxId, name: name}
	for i := range r.Containers {
		command := []string{"sleep", "100000"}
		if i == 0 && n < r.Chatty {
			command = []string{"yes", "a line of a log that is as long as many lines are, some eighty characters"}
		}
		c := harness.Container(fmt.Sprint("c", i), r.image, command...)
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 2} // as a kubelet sets for pods without requests
		created, err := r.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c,
			SandboxConfig: config})
		if !r.check("create a container of "+name, err) {
			return
		}
		if _, err := r.Runtime.StartContainer(ctx,
			&runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); !r.check("start a container of "+name, err) {
			return
		}
		p.probed = created.ContainerId // the last one, which is quiet
	}
	r.mu.Lock()
	r.pods[n] = p
	r.mu.Unlock()
}

func (r *run) down(p *pod) {
	if p == nil {
		return
	}
	ctx := context.Background()
	if _, err := r.Runtime.StopPodSandbox(ctx,
		&runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); !r.check("stop pod "+p.name, err) {
		return
	}
	_, err := r.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	r.check("remove pod "+p.name, err)
}

// at returns the n-th pod and protects it from replacement until leave is called. It returns nil if
// the pod is being replaced.
func (r *run) at(n int) (p *pod, leave func()) {
	r.mu.Lock()
	p = r.pods[n]
	r.mu.Unlock()
	if p == nil || !p.busy.TryRLock() {
		return nil, nil
	}
	return p, p.busy.RUnlock
}

// probe runs a command in a pod, as a kubelet's exec probe does.
func (r *run) probe(n int) {
	p, leave := r.at(n)
	if p == nil {
		return
	}
	defer leave()
	out, err := r.Runtime.ExecSync(context.Background(),
		&runtimeapi.ExecSyncRequest{ContainerId: p.probed, Cmd: []string{"true"}, Timeout: 30})
	if r.check("probe "+p.name, err) && out.ExitCode != 0 {
		r.t.Errorf("probe %s: exit code %d", p.name, out.ExitCode)
	}
	r.probes.Add(1)
}

// replaceOne removes a pod and starts another in its place.
func (r *run) replaceOne() {
	n := rand.IntN(r.Pods)
	r.mu.Lock()
	p := r.pods[n]
	r.mu.Unlock()
	p.busy.Lock() // never unlocked: nobody uses this pod again
	r.mu.Lock()
	r.pods[n] = nil
	r.mu.Unlock()
	r.down(p)
	r.up(n, fmt.Sprintf("load-%d-%d", n, r.churned.Add(1)))
}

// relist makes the calls that a kubelet makes every second.
func (r *run) relist() {
	ctx := context.Background()
	pods, err := r.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if r.check("list pods", err) && len(pods.Items) < r.Pods-1 {
		r.t.Errorf("%d pods are listed", len(pods.Items))
	}
	_, err = r.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	r.check("list containers", err)
}

// stats makes the calls that a kubelet makes every ten seconds.
func (r *run) stats() {
	ctx := context.Background()
	_, err := r.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	r.check("list stats of pods", err)
	_, err = r.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	r.check("list stats of containers", err)
	_, err = r.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	r.check("image fs info", err)
}

func (r *run) status() time.Duration {
	began := time.Now()
	_, err := r.Runtime.Status(context.Background(), &runtimeapi.StatusRequest{})
	r.check("status", err)
	return time.Since(began)
}

func (r *run) podStatus() time.Duration {
	p, leave := r.at(rand.IntN(r.Pods))
	if p == nil {
		return 0
	}
	defer leave()
	began := time.Now()
	_, err := r.Runtime.PodSandboxStatus(context.Background(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	took := time.Since(began)
	r.check("status of "+p.name, err)
	return took
}
