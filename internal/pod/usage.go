package pod

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/flight"
	"github.com/kuri-cri/kuri/internal/network/link"
)

// One sampler reads the resource usage of all pods, for all clients. It makes one pass over all pods every
// samplePeriod, as long as the last request is no older than sampleLinger. While metrics are requested, every second
// pass is detailed. Lists are answered from the last pass, whatever their number.
const (
	samplePeriod = 5 * time.Second
	sampleLinger = 30 * time.Second
	sampleFresh  = time.Second // maximum age of the answer to a request for one pod or container
)

// pass has the readings of all pods at one time. It is immutable.
type pass struct {
	began      time.Time
	detailed   bool // has the details for metrics
	containers map[*Container]*containerUse
	sandboxes  map[*Sandbox]*sandboxUse
}

// containerUse is the reading of a running or created container.
type containerUse struct {
	sample  cgroup.Sample
	found   bool           // the cgroup was there
	details *cgroup.Detail // of a detailed pass, as is open
	open    *openFiles
}

// sandboxUse is the reading of a pod.
type sandboxUse struct {
	sample  cgroup.Sample // of its own cgroup, else the sum over its containers
	found   bool
	details *cgroup.Detail // of a detailed pass, and of its own cgroup only
	links   []link.Counter
	linksAt time.Time // zero if they were not read
}

// sampler makes the passes. It is safe for concurrent use.
type sampler struct {
	last   atomic.Pointer[pass]
	detail atomic.Pointer[pass]      // the last detailed one
	passes flight.Group[bool, *pass] // by detailed

	mu            sync.Mutex
	asked         time.Time
	askedDetailed time.Time
	runs          bool
	warned        time.Time
}

// sampled returns a pass that is at most three sample periods old. It starts the sampler if that does not run.
func (p *Pods) sampled(ctx context.Context, detailed bool) (*pass, error) {
	now := time.Now()
	s := &p.sampler
	s.mu.Lock()
	s.asked = now
	if detailed {
		s.askedDetailed = now
	}
	if !s.runs {
		select {
		case <-p.closing:
		default:
			s.runs = true
			p.followers.Go(p.keepSampling)
		}
	}
	s.mu.Unlock()
	last := s.last.Load()
	if detailed {
		last = s.detail.Load()
	}
	if last != nil && now.Sub(last.began) < 3*samplePeriod {
		return last, nil
	}
	made, _, err := s.passes.Do(ctx, detailed, func(context.Context) (*pass, error) { return p.samplePass(detailed), nil })
	return made, err
}

// stop closes closing: no goroutine of the sampler is started after that.
func (s *sampler) stop(closing chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(closing)
}

// keepSampling makes passes as long as there are requests.
func (p *Pods) keepSampling() {
	tick := time.NewTicker(samplePeriod)
	defer tick.Stop()
	s := &p.sampler
	for {
		select {
		case <-p.closing:
			return
		case now := <-tick.C:
			s.mu.Lock()
			wanted := now.Sub(s.askedDetailed) < 2*sampleLinger
			if now.Sub(s.asked) > sampleLinger && !wanted {
				s.runs = false
				s.last.Store(nil)
				s.detail.Store(nil)
				s.mu.Unlock()
				return
			}
			s.mu.Unlock()
			had := s.detail.Load()
			detailed := wanted && (had == nil || now.Sub(had.began) > 3*samplePeriod/2) // every second one
			_, _, _ = s.passes.Do(context.Background(), detailed, func(context.Context) (*pass, error) { return p.samplePass(detailed), nil })
		}
	}
}

// samplePass reads the resource usage of all pods.
func (p *Pods) samplePass(detailed bool) *pass {
	made := &pass{
		began: time.Now(), detailed: detailed,
		containers: make(map[*Container]*containerUse), sandboxes: make(map[*Sandbox]*sandboxUse),
	}
	for _, s := range p.allSandboxes() {
		p.sampleSandbox(made, s)
	}
	p.sampler.last.Store(made)
	if detailed {
		p.sampler.detail.Store(made)
	}
	return made
}

// sampleSandbox reads the resource usage of a pod and its containers.
func (p *Pods) sampleSandbox(made *pass, s *Sandbox) {
	use := &sandboxUse{}
	made.sandboxes[s] = use
	var sum cgroup.Sample
	pid := 0
	for _, c := range s.list() {
		r := c.Record()
		if r.State == Exited || r.State == Creating {
			continue
		}
		one := p.sampleContainer(c, made.detailed)
		made.containers[c] = one
		if one.found {
			sum = sum.Add(one.sample)
			use.found = true
		}
		if r.State == Running {
			pid = r.Pid
		}
	}
	use.sample = sum
	if r := s.Record(); r.PodCgroup {
		use.sample, use.details, use.found = p.readCgroup(r.CgroupParent, r.name(), made.detailed)
	}
	if use.found {
		s.cpu.next(use.sample.Time, use.sample.CPUUsage)
	}
	p.sampleLinks(s, use, pid)
}

func (p *Pods) sampleContainer(c *Container, detailed bool) *containerUse {
	r := c.Record()
	use := &containerUse{}
	use.sample, use.details, use.found = p.readCgroup(r.CgroupsPath, r.name(), detailed)
	if use.found {
		c.cpu.next(use.sample.Time, use.sample.CPUUsage)
	}
	if detailed && use.found {
		use.open = p.readOpen(r)
		if shares := r.CurrentResources().GetCpuShares(); shares > 0 && use.details != nil && use.details.CPUWeighted {
			use.details.CPUShares = cgroup.Value{N: uint64(shares), OK: true}
		}
	}
	return use
}

// readCgroup reads a cgroup. Values that cannot be read are left out, and logged at most once per sampleWarnings.
func (p *Pods) readCgroup(path, name string, detailed bool) (sample cgroup.Sample, details *cgroup.Detail, found bool) {
	dir, err := p.Driver.Dir(path)
	if err == nil && detailed {
		if details, err = p.Cgroups.Detail(dir); details != nil {
			sample = details.Sample
		}
	} else if err == nil {
		sample, err = p.Cgroups.Sample(dir)
	}
	if errors.Is(err, fault.NotFound) {
		return sample, nil, false
	}
	p.warnOfSample("read what "+name+" uses", err)
	return sample, details, err == nil || !sample.Time.IsZero()
}

// sampleWarnings is the minimum interval between two warnings of the sampler.
const sampleWarnings = time.Minute

func (p *Pods) warnOfSample(what string, err error) {
	if err == nil {
		return
	}
	s := &p.sampler
	s.mu.Lock()
	due := time.Since(s.warned) > sampleWarnings
	if due {
		s.warned = time.Now()
	}
	s.mu.Unlock()
	if due {
		slog.Warn("stats and metrics are not complete", "step", what, "err", err)
	}
}

// sampleLinks reads the counters of a pod's links, through a process of one of its containers if there is one.
func (p *Pods) sampleLinks(s *Sandbox, use *sandboxUse, pid int) {
	r := s.Record()
	if r.NetnsPath == "" || r.State == Creating {
		return
	}
	at := time.Now()
	if pid > 0 {
		links, err := link.CountersOf(pid)
		if err == nil && s.runs(pid) { // so the process was this pod's
			use.links, use.linksAt = links, at
			return
		}
	}
	links, err := link.Counters(r.NetnsPath)
	switch {
	case err == nil:
		use.links, use.linksAt = links, at
	case s.Record().State == Ready: // it was not stopped meanwhile
		p.warnOfSample("read the links of "+r.name(), err)
	}
}

// runs reports whether pid is still the first process of a container of the pod.
func (s *Sandbox) runs(pid int) bool {
	for _, c := range s.list() {
		if r := c.Record(); r.State == Running && r.Pid == pid {
			return true
		}
	}
	return false
}

// useOf returns the reading of a container. It makes one if the pass has none.
func (p *Pods) useOf(from *pass, c *Container) *containerUse {
	if use := from.containers[c]; use != nil && use.found {
		return use
	}
	if c.Record().State == Exited {
		return &containerUse{}
	}
	return p.sampleContainer(c, from.detailed)
}

// useOfSandbox returns the reading of a pod. It makes one if the pass has none.
func (p *Pods) useOfSandbox(from *pass, s *Sandbox) *sandboxUse {
	if use := from.sandboxes[s]; use != nil {
		return use
	}
	own := p.sampleOne(s)
	return own.sandboxes[s]
}

// sampleOne returns a pass over one pod only.
func (p *Pods) sampleOne(s *Sandbox) *pass {
	own := &pass{began: time.Now(), containers: make(map[*Container]*containerUse), sandboxes: make(map[*Sandbox]*sandboxUse)}
	p.sampleSandbox(own, s)
	return own
}
