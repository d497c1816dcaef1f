package network

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
)

const leaseVersion = 1

// checkLeaseFormats returns an error of kind Precondition when a newer version of Kuri wrote a lease below dir.
func checkLeaseFormats(dir string) error { return record.Newer(leaseVersion, dir, "*.json") }

// lease is what the bridge network holds for one pod; a record on disk from before the first step of Attach until after
// the last one of Detach.
type lease struct {
	PodID     string         `json:"pod_id"`
	Pod       string         `json:"pod"`       // namespace/name, for people
	Addresses []netip.Prefix `json:"addresses"` // each with the length of the range that it is from
	HostPorts []PortMapping  `json:"host_ports,omitempty"`
}

// pool gives out addresses. It is not safe for concurrent use: Bridge's lock guards it.
type pool struct {
	dir    string                      // one <podID>.json for each lease
	leases map[string]*lease           // by pod ID
	used   map[netip.Addr]string       // pod ID by address
	next   map[netip.Prefix]netip.Addr // where to look for the next free address of a range
}

// openPool reads the leases that an earlier process has left in dir. A record that cannot be read is set aside.
func openPool(dir string) (*pool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	record.Sweep(dir)
	p := &pool{dir: dir, leases: map[string]*lease{}, used: map[netip.Addr]string{}, next: map[netip.Prefix]netip.Addr{}}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		var l lease
		err := record.Read(path, leaseVersion, &l)
		if err == nil {
			err = l.check(strings.TrimSuffix(filepath.Base(path), ".json"))
		}
		if err != nil {
			slog.Warn("a lease of the built-in network cannot be read and is set aside", "path", path, "err", err)
			if err := record.SetAside(path); err != nil {
				slog.Error("a damaged lease cannot be set aside", "err", err)
			}
			continue
		}
		p.hold(&l)
	}
	return p, nil
}

func (l *lease) check(podID string) error {
	if l.PodID != podID {
		return fault.New(fault.Corrupt, "it names pod %q", l.PodID)
	}
	for _, a := range l.Addresses {
		if err := checkRanges([]netip.Prefix{a}); err != nil {
			return err
		}
	}
	return nil
}

func (p *pool) hold(l *lease) {
	p.leases[l.PodID] = l
	for _, a := range l.Addresses {
		p.used[a.Addr()] = l.PodID
		p.next[a.Masked()] = a.Addr().Next()
	}
}

// lease gives the pod one address of each range and the host ports that it asks for.
func (p *pool) lease(pod Pod, ranges []netip.Prefix) (*lease, error) {
	if p.leases[pod.ID] != nil {
		return nil, fault.New(fault.Exists, "the pod has a network already; detach it first")
	}
	l := &lease{PodID: pod.ID, Pod: pod.Namespace + "/" + pod.Name, HostPorts: pod.hostPorts()}
	if err := p.portsFree(l.HostPorts); err != nil {
		return nil, err
	}
	for _, r := range ranges {
		a, ok := p.free(r)
		if !ok {
			return nil, fault.New(fault.Exhausted, "no address is left in the range %s of the built-in network, %d pods have one; remove pods, or configure a larger range", r, len(p.leases))
		}
		l.Addresses = append(l.Addresses, netip.PrefixFrom(a, r.Bits()))
	}
	if err := writeRecord(p.path(pod.ID), leaseVersion, l); err != nil {
		return nil, err
	}
	p.hold(l)
	return l, nil
}

// restore takes up a lease that was lost, and writes its record.
func (p *pool) restore(l *lease) error {
	p.hold(l)
	return writeRecord(p.path(l.PodID), leaseVersion, l)
}

// keep gives back the addresses of a lease that are not in ips.
func (p *pool) keep(l *lease, ips []netip.Addr) error {
	p.drop(l)
	l.Addresses = slices.DeleteFunc(l.Addresses, func(a netip.Prefix) bool { return !slices.Contains(ips, a.Addr()) })
	p.hold(l)
	return writeRecord(p.path(l.PodID), leaseVersion, l)
}

// portsFree refuses a host port that another pod has, or that one pod asks for with two different container ports. One pod
// may have a mapping for every address of the node and another for one of these, which takes precedence: Kubernetes only warns
// of that, and containerd and CRI-O run such a pod.
func (p *pool) portsFree(asked []PortMapping) error {
	for i, m := range asked {
		for _, other := range asked[:i] {
			if m.contradicts(other) {
				return fault.New(fault.Invalid, "host port %s is asked for twice, for the container ports %d and %d", m, other.ContainerPort, m.ContainerPort)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(p.leases)) {
			for _, other := range p.leases[id].HostPorts {
				if m.clash(other) {
					return fault.New(fault.Precondition, "host port %s is taken by pod %s (%s)", m, p.leases[id].Pod, id)
				}
			}
		}
	}
	return nil
}

// free finds the next address of r that nobody has, going round: an address that was given back rests as long as it can,
// so that what still talks to a pod that is gone does not reach another.
func (p *pool) free(r netip.Prefix) (netip.Addr, bool) {
	first, last := gateway(r).Next(), lastOf(r)
	start := p.next[r]
	if !start.IsValid() || start.Less(first) || last.Less(start) {
		start = first
	}
	for a := start; ; {
		if _, taken := p.used[a]; !taken {
			p.next[r] = a.Next()
			return a, true
		}
		if a = a.Next(); !a.IsValid() || last.Less(a) {
			a = first
		}
		if a == start {
			return netip.Addr{}, false
		}
	}
}

// drop forgets a lease; erase removes its record. Between the two the addresses are free in memory only.
func (p *pool) drop(l *lease) {
	delete(p.leases, l.PodID)
	for _, a := range l.Addresses {
		delete(p.used, a.Addr())
	}
}

func (p *pool) erase(l *lease) error {
	os.Remove(p.path(l.PodID) + ".damaged") // of a lease that was made again
	if err := os.Remove(p.path(l.PodID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the lease of pod %s: %w", l.PodID, err)
	}
	return nil
}

// ranges returns the ranges that the leases are from, sorted.
func (p *pool) ranges() []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	for _, l := range p.leases {
		for _, a := range l.Addresses {
			seen[a.Masked()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Prefix.Compare)
}

func (p *pool) path(podID string) string { return filepath.Join(p.dir, podID+".json") }

// hostPorts lists the mappings of the leases.
func (p *pool) hostPorts() []hostPort {
	var all []hostPort
	for _, l := range p.leases {
		all = append(all, l.mappings()...)
	}
	return all
}

// mappings lists those of a lease, each to the pod's address of its family.
func (l *lease) mappings() []hostPort {
	var all []hostPort
	for _, m := range l.HostPorts {
		for _, a := range l.Addresses {
			if !m.HostIP.IsValid() || m.HostIP.Is4() == a.Addr().Is4() {
				all = append(all, hostPort{PortMapping: m, pod: a.Addr()})
			}
		}
	}
	return all
}
