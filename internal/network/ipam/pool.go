package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/record"
)

const leaseVersion = 1

// CheckLeases returns an error of kind Precondition when a newer version of Kuri wrote a lease below dir.
func CheckLeases(dir string) error { return record.Newer(leaseVersion, dir, "*.json") }

// Lease has the addresses and host ports of one pod. Its record is on disk from before the first
// step of Attach until after the last step of Detach.
type Lease struct {
	PodID     string                `json:"pod_id"`
	Pod       string                `json:"pod"`       // namespace/name, for people
	Addresses []netip.Prefix        `json:"addresses"` // each with the length of the range that it is from
	HostPorts []network.PortMapping `json:"host_ports,omitempty"`
}

// Pool allocates addresses and host ports. It is not safe for concurrent use.
type Pool struct {
	dir    string                      // one <podID>.json for each lease
	Leases map[string]*Lease           // by pod ID
	Used   map[netip.Addr]string       // pod ID by address
	next   map[netip.Prefix]netip.Addr // the first address to try, by range
}

// Open reads the leases that an earlier process has left in dir. A record that cannot be read is set aside.
func Open(dir string) (*Pool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	record.Sweep(dir)
	p := &Pool{dir: dir, Leases: map[string]*Lease{}, Used: map[netip.Addr]string{}, next: map[netip.Prefix]netip.Addr{}}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		var l Lease
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
		p.Hold(&l)
	}
	return p, nil
}

func (l *Lease) check(podID string) error {
	if l.PodID != podID {
		return fault.New(fault.Corrupt, "it names pod %q", l.PodID)
	}
	for _, a := range l.Addresses {
		if err := CheckRanges([]netip.Prefix{a}); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pool) Hold(l *Lease) {
	p.Leases[l.PodID] = l
	for _, a := range l.Addresses {
		p.Used[a.Addr()] = l.PodID
		p.next[a.Masked()] = a.Addr().Next()
	}
}

// Lease allocates one address of each range and the pod's host ports. Error kinds: Exists,
// Exhausted, Invalid (one host port for two container ports), Precondition (a host port of another
// pod).
func (p *Pool) Lease(pod network.Pod, ranges []netip.Prefix) (*Lease, error) {
	if p.Leases[pod.ID] != nil {
		return nil, fault.New(fault.Exists, "the pod has a network already; detach it first")
	}
	l := &Lease{PodID: pod.ID, Pod: pod.Namespace + "/" + pod.Name, HostPorts: pod.HostPorts()}
	if err := p.portsFree(l.HostPorts); err != nil {
		return nil, err
	}
	for _, r := range ranges {
		a, ok := p.free(r)
		if !ok {
			return nil, fault.New(fault.Exhausted,
				"no address is left in the range %s of the built-in network, %d pods have one; remove pods, or configure a larger range", r, len(p.Leases))
		}
		l.Addresses = append(l.Addresses, netip.PrefixFrom(a, r.Bits()))
	}
	if err := network.WriteRecord(p.Path(pod.ID), leaseVersion, l); err != nil {
		return nil, err
	}
	p.Hold(l)
	return l, nil
}

// Restore adds a lease that was lost, and writes its record.
func (p *Pool) Restore(l *Lease) error {
	p.Hold(l)
	return network.WriteRecord(p.Path(l.PodID), leaseVersion, l)
}

// Keep releases the addresses of a lease that are not in ips.
func (p *Pool) Keep(l *Lease, ips []netip.Addr) error {
	p.Drop(l)
	l.Addresses = slices.DeleteFunc(l.Addresses, func(a netip.Prefix) bool { return !slices.Contains(ips, a.Addr()) })
	p.Hold(l)
	return network.WriteRecord(p.Path(l.PodID), leaseVersion, l)
}

// portsFree refuses a host port that another pod has, or that one pod asks for with two different
// container ports. One pod may have a mapping for every address of the node and another for one of
// these, which takes precedence: Kubernetes only warns of that, and containerd and CRI-O run such a
// pod.
func (p *Pool) portsFree(asked []network.PortMapping) error {
	for i, m := range asked {
		for _, other := range asked[:i] {
			if m.Contradicts(other) {
				return fault.New(fault.Invalid, "host port %s is asked for twice, for the container ports %d and %d", m,
					other.ContainerPort, m.ContainerPort)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(p.Leases)) {
			for _, other := range p.Leases[id].HostPorts {
				if m.Clash(other) {
					return fault.New(fault.Precondition, "host port %s is taken by pod %s (%s)", m, p.Leases[id].Pod, id)
				}
			}
		}
	}
	return nil
}

// free returns the next free address of r, round robin: a released address is reused as late as
// possible, so that clients of a pod that is gone do not reach another.
func (p *Pool) free(r netip.Prefix) (netip.Addr, bool) {
	first, last := Gateway(r).Next(), lastOf(r)
	start := p.next[r]
	if !start.IsValid() || start.Less(first) || last.Less(start) {
		start = first
	}
	for a := start; ; {
		if _, taken := p.Used[a]; !taken {
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

// Drop removes a lease from memory, Erase its record from the disk. An address that another lease has too stays in use.
func (p *Pool) Drop(l *Lease) {
	delete(p.Leases, l.PodID)
	for _, a := range l.Addresses {
		delete(p.Used, a.Addr())
		if others := p.Owners(a.Addr()); len(others) > 0 {
			p.Used[a.Addr()] = others[0]
		}
	}
}

// Owners returns the pods that have a lease of the address, sorted: more than one if somebody has changed the records.
func (p *Pool) Owners(a netip.Addr) (ids []string) {
	for id, l := range p.Leases {
		if slices.ContainsFunc(l.Addresses, func(has netip.Prefix) bool { return has.Addr() == a }) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Recorded reports whether the record of a lease on the disk is the lease.
func (p *Pool) Recorded(l *Lease) bool {
	var on Lease
	return record.Read(p.Path(l.PodID), leaseVersion, &on) == nil && reflect.DeepEqual(&on, l)
}

// Unleased returns the records on the disk without a lease.
func (p *Pool) Unleased() (paths []string, err error) {
	paths, err = filepath.Glob(p.Path("*"))
	return slices.DeleteFunc(paths, func(path string) bool {
		return p.Leases[strings.TrimSuffix(filepath.Base(path), ".json")] != nil
	}), err
}

func (p *Pool) Erase(l *Lease) error {
	os.Remove(p.Path(l.PodID) + ".damaged") // of a lease that was made again
	if err := os.Remove(p.Path(l.PodID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the lease of pod %s: %w", l.PodID, err)
	}
	return nil
}

// Ranges returns the ranges that the leases are from, sorted.
func (p *Pool) Ranges() []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	for _, l := range p.Leases {
		for _, a := range l.Addresses {
			seen[a.Masked()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Prefix.Compare)
}

func (p *Pool) Path(podID string) string { return filepath.Join(p.dir, podID+".json") }

// HostPorts returns the host ports of all leases.
func (p *Pool) HostPorts() []network.HostPort {
	var all []network.HostPort
	for _, l := range p.Leases {
		all = append(all, l.Mappings()...)
	}
	return all
}

// Mappings returns the host ports of a lease, each to the pod's address of its family.
func (l *Lease) Mappings() []network.HostPort {
	var all []network.HostPort
	for _, m := range l.HostPorts {
		for _, a := range l.Addresses {
			if !m.HostIP.IsValid() || m.HostIP.Is4() == a.Addr().Is4() {
				all = append(all, network.HostPort{PortMapping: m, Pod: a.Addr()})
			}
		}
	}
	return all
}
