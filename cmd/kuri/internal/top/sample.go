package top

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// unknown stands for a number that the runtime does not report.
const unknown = -1

// load is the resource usage of one pod or container: a row of kuri top. Numbers that the runtime
// does not report are unknown.
type load struct {
	Pod       string  `json:"pod"` // namespace/name, without "default/"
	Container string  `json:"container,omitempty"`
	ID        string  `json:"id"`
	State     string  `json:"state"` // of a container; of a pod the number of its running containers, "2/3"
	CPU       float64 `json:"cpu"`   // percent of one core
	Memory    float64 `json:"memory"`
	Limit     float64 `json:"memoryLimit"` // bytes, as all sizes
	Processes float64 `json:"processes"`
	Receive   float64 `json:"receive"` // bytes per second, of the pod's network
	Send      float64 `json:"send"`
	Disk      float64 `json:"disk"` // bytes of the writable layers
	// The share of the last ten seconds in which a process waited for the resource, in percent (PSI).
	WaitCPU    float64 `json:"waitCPU"`
	WaitMemory float64 `json:"waitMemory"`
	WaitIO     float64 `json:"waitIO"`
}

// sampling is the usage of a node at one moment.
type sampling struct {
	Time       time.Time `json:"time"`
	Pods       []load    `json:"pods"`
	Containers []load    `json:"containers"`
	Ready      int       `json:"readyPods"`
	Running    int       `json:"runningContainers"`
}

// growing is a reading of a counter.
type growing struct {
	at   int64 // nanoseconds
	sum  uint64
	rate float64 // per second, since the previous reading
}

// sampler reads the usage of a runtime's pods and keeps the counters for rates.
type sampler struct {
	rt       *client.Runtime
	counters map[string]growing // by what they count
	seen     map[string]bool    // those in the current sample
	podless  bool               // the runtime does not implement stats of pods
}

// freshPods is the maximum number of pods whose stats are requested one by one: a list may be some
// seconds old.
const freshPods = 64

func newSampler(rt *client.Runtime) *sampler {
	return &sampler{rt: rt, counters: make(map[string]growing)}
}

// rate returns the growth of a counter per second; unknown before the second reading. A reading
// that is not newer returns the previous rate, and one that is lower starts again.
func (s *sampler) rate(key string, at int64, value *runtimeapi.UInt64Value) float64 {
	if value == nil || at <= 0 {
		return unknown
	}
	s.seen[key] = true
	last, ok := s.counters[key]
	now := growing{at, value.Value, unknown}
	switch {
	case !ok || value.Value < last.sum:
	case at <= last.at:
		return last.rate
	default:
		now.rate = float64(value.Value-last.sum) / (float64(at-last.at) / 1e9)
	}
	s.counters[key] = now
	return now.rate
}

// sample reads everything once.
func (s *sampler) sample(ctx context.Context) (*sampling, error) {
	have, err := cli.TakeInventory(ctx, s.rt)
	if err != nil {
		return nil, err
	}
	s.seen = make(map[string]bool)
	out := &sampling{Time: time.Now()}
	stats, err := s.podStats(ctx, have)
	if err != nil {
		return nil, err
	}
	of := make(map[string]*runtimeapi.ContainerStats) // by id
	for _, p := range stats {
		for _, ct := range p.GetLinux().GetContainers() {
			of[ct.GetAttributes().GetId()] = ct
		}
	}
	// A pod without statistics may have containers with some, as containerd's pods without a cgroup
	// parent do.
	if slices.ContainsFunc(have.Pods, func(p *runtimeapi.PodSandbox) bool { return stats[p.Id] == nil }) {
		list, err := s.rt.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		if err != nil {
			return nil, fmt.Errorf("ask for the statistics: %w", err)
		}
		for _, ct := range list.Stats {
			if id := ct.GetAttributes().GetId(); of[id] == nil {
				of[id] = ct
			}
		}
	}
	for _, pod := range have.Pods {
		row := s.podLoad(pod, stats[pod.Id])
		if pod.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			out.Ready++
		}
		for _, ct := range have.ContainersIn(pod, have.Containers) {
			one := s.containerLoad(row, ct, of[ct.Id])
			if ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				out.Running++
				row.add(one, s.podless || stats[pod.Id] == nil)
			}
			out.Containers = append(out.Containers, one)
		}
		row.State = cli.CountIn(pod, have.Containers)
		out.Pods = append(out.Pods, row)
	}
	for key := range s.counters {
		if !s.seen[key] {
			delete(s.counters, key)
		}
	}
	return out, nil
}

// podStats returns the stats of pods by id. It skips pods that were removed or whose stats cannot be read.
func (s *sampler) podStats(ctx context.Context, have *cli.Inventory) (map[string]*runtimeapi.PodSandboxStats, error) {
	out := make(map[string]*runtimeapi.PodSandboxStats)
	if s.podless {
		return out, nil
	}
	if len(have.Pods) > freshPods {
		list, err := s.rt.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
		if s.podless = status.Code(err) == codes.Unimplemented; s.podless {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("ask for the statistics: %w", err)
		}
		for _, p := range list.Stats {
			out[p.GetAttributes().GetId()] = p
		}
		return out, nil
	}
	for _, pod := range have.Pods {
		if pod.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		st, err := s.rt.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod.Id})
		switch {
		case status.Code(err) == codes.Unimplemented:
			s.podless = true
			return map[string]*runtimeapi.PodSandboxStats{}, nil
		case cli.ConnectionLost(err) || ctx.Err() != nil:
			return nil, fmt.Errorf("ask for the statistics: %w", err)
		case err == nil: // otherwise it probably is being removed
			out[pod.Id] = st.Stats
		}
	}
	return out, nil
}

// podLoad returns the row of a pod, without the shares of its containers.
func (s *sampler) podLoad(pod *runtimeapi.PodSandbox, st *runtimeapi.PodSandboxStats) load {
	l := load{
		Pod: strings.TrimPrefix(cli.PodKey(pod), "default/"), ID: pod.Id, CPU: unknown, Memory: unknown, Limit: unknown,
		Processes: unknown,
		Receive:   unknown, Send: unknown, Disk: unknown, WaitCPU: unknown, WaitMemory: unknown, WaitIO: unknown,
	}
	linux := st.GetLinux()
	if linux == nil {
		return l
	}
	l.CPU = s.cpu(pod.Id, linux.Cpu)
	l.Memory = number(linux.GetMemory().GetWorkingSetBytes())
	l.Processes = number(linux.GetProcess().GetProcessCount())
	net, nic := linux.GetNetwork(), linux.GetNetwork().GetDefaultInterface()
	l.Receive = s.rate(pod.Id+" rx", net.GetTimestamp(), nic.GetRxBytes())
	l.Send = s.rate(pod.Id+" tx", net.GetTimestamp(), nic.GetTxBytes())
	l.WaitCPU, l.WaitMemory, l.WaitIO = waits(linux.GetCpu().GetPsi()), waits(linux.GetMemory().GetPsi()),
		waits(linux.GetIo().GetPsi())
	return l
}

func (s *sampler) containerLoad(pod load, ct *runtimeapi.Container, st *runtimeapi.ContainerStats) load {
	l := load{
		Pod: pod.Pod, Container: ct.GetMetadata().GetName(), ID: ct.Id,
		State: cli.ContainerState(&runtimeapi.ContainerStatus{State: ct.State}), CPU: unknown, Memory: unknown,
		Limit:     unknown,
		Processes: unknown, Receive: pod.Receive, Send: pod.Send, Disk: unknown, WaitCPU: unknown, WaitMemory: unknown,
		WaitIO: unknown,
	}
	if ct.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		l.State = "exited" // the list does not have the exit code
	}
	if st == nil {
		return l
	}
	l.CPU = s.cpu(ct.Id, st.Cpu)
	l.Memory = number(st.GetMemory().GetWorkingSetBytes())
	if available := st.GetMemory().GetAvailableBytes(); available.GetValue() > 0 && l.Memory >= 0 {
		l.Limit = l.Memory + float64(available.GetValue())
	}
	l.Disk = number(st.GetWritableLayer().GetUsedBytes())
	l.WaitCPU, l.WaitMemory, l.WaitIO = waits(st.GetCpu().GetPsi()), waits(st.GetMemory().GetPsi()),
		waits(st.GetIo().GetPsi())
	return l
}

// cpu returns the CPU usage in percent of one core: from two readings, or as the runtime reports it.
func (s *sampler) cpu(id string, u *runtimeapi.CpuUsage) float64 {
	if rate := s.rate(id+" cpu", u.GetTimestamp(), u.GetUsageCoreNanoSeconds()); rate >= 0 {
		return rate / 1e9 * 100
	}
	if cores := u.GetUsageNanoCores(); cores != nil {
		return float64(cores.Value) / 1e9 * 100
	}
	return unknown
}

// add adds a container to the row of its pod: the disk usage and, with all, also CPU and memory.
func (l *load) add(ct load, all bool) {
	plus := func(sum *float64, n float64) {
		if n >= 0 {
			*sum = max(*sum, 0) + n
		}
	}
	plus(&l.Disk, ct.Disk)
	if all {
		plus(&l.CPU, ct.CPU)
		plus(&l.Memory, ct.Memory)
	}
}

func number(v *runtimeapi.UInt64Value) float64 {
	if v == nil {
		return unknown
	}
	return float64(v.Value)
}

func waits(p *runtimeapi.PsiStats) float64 {
	if p.GetSome() == nil {
		return unknown
	}
	return p.Some.Avg10
}

// topOrder is an order of rows: its key, and the value by which the largest row comes first.
type topOrder struct {
	key   byte
	name  string
	value func(load) float64 // nil: by name
}

// topOrders has the orders of kuri top, in the order of its columns. The keys are those of top if
// it has them.
var topOrders = []topOrder{
	{'N', "name", nil},
	{'P', "cpu", func(l load) float64 { return l.CPU }},
	{'M', "memory", func(l load) float64 { return l.Memory }},
	{'T', "network", func(l load) float64 { return max(l.Receive, 0) + max(l.Send, 0) }},
	{'D', "disk", func(l load) float64 { return l.Disk }},
	{'W', "pressure", func(l load) float64 { return max(l.WaitCPU, l.WaitMemory, l.WaitIO) }},
}

// sortLoads sorts rows by an order, and equal rows by name.
func sortLoads(rows []load, o topOrder, reverse bool) {
	slices.SortStableFunc(rows, func(a, b load) int {
		names := cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container), cmp.Compare(a.ID, b.ID))
		by := names
		if o.value != nil {
			by = cmp.Or(cmp.Compare(o.value(b), o.value(a)), names)
		}
		if reverse {
			return -by
		}
		return by
	})
}
