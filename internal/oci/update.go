package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
)

// Update changes limits of a created or running container: CPU, cpuset, memory and swap, huge
// pages, unified. Fields that are not set stay unchanged. oomScoreAdj, unless nil, applies to the
// first process, to processes with the same value as that, and to later execs. A process that has
// set its own value keeps it.
//
// Either everything is applied or nothing: the values are read back. If the kernel refuses one or
// stores another value, all are restored and the error names the limit and the cause. If a memory
// limit is below the memory in use that the kernel cannot reclaim, the error is of kind
// Precondition and nothing is changed.
func (l *Libcontainer) Update(id string, limits *specs.LinuxResources, oomScoreAdj *int) error {
	c, err := l.load(id)
	if err != nil {
		return err
	}
	state, err := c.State()
	if err != nil {
		return err
	}
	old := c.Config()
	next, err := changed(old, limits, oomScoreAdj)
	if err != nil {
		return err
	}
	r := next.Cgroups.Resources
	want := cgroup.Changed(state.CgroupPaths, limits, cgroup.Limits{
		CPUShares: r.CpuShares, CPUWeight: r.CpuWeight, CPUQuota: r.CpuQuota, CPUPeriod: r.CpuPeriod, Memory: r.Memory,
		MemorySwap: r.MemorySwap,
	})
	if err := want.Fits(); err != nil {
		return err
	}
	before, err := want.Before()
	if err != nil {
		return err
	}
	scores, err := scoresToSet(state.InitProcessPid, cgroup.Of(state.CgroupPaths), oomScoreAdj)
	if err != nil {
		return err
	}

	l.held.release(id)
	defer l.pins.pin(l.root, id) // the record is replaced by then
	err = apply(c, next, want, scores)
	if err == nil {
		if err = l.held.hold(id, toHold(&next, state.CgroupPaths)); err == nil {
			return nil
		}
	}
	// The runtime's own record of the limits is restored first, then the files and scores that it
	// does not cover.
	_ = set(c, old)
	if back := errors.Join(before.Restore(), scores.restore(),
		l.held.hold(id, toHold(&old, state.CgroupPaths))); back != nil {
		return fmt.Errorf("%w; and not all could be put back: %w", err, back)
	}
	return fmt.Errorf("%w; nothing was changed", err)
}

func apply(c *libcontainer.Container, next configs.Config, want cgroup.Change, scores scores) error {
	if err := set(c, next); err != nil {
		return fault.As(fault.Precondition, fmt.Errorf("the kernel refuses a limit: %w", err))
	}
	if err := scores.set(); err != nil {
		return err
	}
	return want.Check()
}

// set applies limits to a container: in the kernel, and in systemd if that has the container's
// scope.
func set(c *libcontainer.Container, config configs.Config) error {
	if err := c.Set(config); err != nil {
		return err
	}
	p := swapProperty(config.Cgroups)
	if p == nil {
		return nil
	}
	state, err := c.State()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), systemdLimit)
	defer cancel()
	conn, err := systemd.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	unit := filepath.Base(state.CgroupPaths[""])
	if err := conn.SetUnitPropertiesContext(ctx, unit, true, *p); err != nil {
		return fmt.Errorf("set %s of %s: %w", p.Name, unit, err)
	}
	return nil
}

// systemdLimit bounds a change of a property by systemd.
const systemdLimit = 30 * time.Second

// swapProperty returns the property of a scope without swap. libcontainer leaves that one out, and
// the unit's own value would return with the next daemon-reload. It returns nil if swap is allowed,
// if the unified limits have a value, or if systemd has no such property.
func swapProperty(group *cgroups.Cgroup) *systemd.Property {
	r := group.Resources
	_, said := r.Unified["memory.swap.max"]
	if !group.Systemd || !cgroup.Unified() || said || r.MemorySwap <= 0 || r.MemorySwap != r.Memory {
		return nil
	}
	return &systemd.Property{Name: "MemorySwapMax", Value: dbus.MakeVariant(uint64(0))}
}

// changed returns a copy of config with those of limits that are set.
func changed(config configs.Config, limits *specs.LinuxResources, oomScoreAdj *int) (configs.Config, error) {
	asked, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: "update",
		Spec:       &specs.Spec{Linux: &specs.Linux{Resources: limits}},
	}, nil)
	if err != nil {
		return config, fault.As(fault.Invalid, err)
	}
	group, r := *config.Cgroups, *config.Cgroups.Resources
	group.Resources = &r
	config.Cgroups = &group
	// The devices are not written again, so those that a plugin has added stay.
	r.SkipDevices = true
	a := asked.Resources
	for _, number := range []struct {
		to   *int64
		from int64
	}{{&r.Memory, a.Memory}, {&r.MemorySwap, a.MemorySwap}, {&r.CpuQuota, a.CpuQuota}} {
		if number.from != 0 {
			*number.to = number.from
		}
	}
	if a.CpuPeriod != 0 {
		r.CpuPeriod = a.CpuPeriod
	}
	if a.CpuShares != 0 {
		r.CpuShares, r.CpuWeight = a.CpuShares, a.CpuWeight
	}
	if a.CpusetCpus != "" {
		r.CpusetCpus = a.CpusetCpus
	}
	if a.CpusetMems != "" {
		r.CpusetMems = a.CpusetMems
	}
	if len(a.HugetlbLimit) > 0 {
		r.HugetlbLimit = a.HugetlbLimit
	}
	if len(a.Unified) > 0 {
		r.Unified = a.Unified
	}
	if oomScoreAdj != nil {
		config.OomScoreAdj = oomScoreAdj
	}
	return config, nil
}

// scores is a change of oom_score_adj of several processes.
type scores struct {
	pids      []int
	old, next int
}

func scoresToSet(first int, group cgroup.Group, next *int) (scores, error) {
	if next == nil {
		return scores{}, nil
	}
	old, err := readScore(first)
	if err != nil {
		return scores{}, fmt.Errorf("read oom_score_adj of the container's first process: %w", err)
	}
	s := scores{old: old, next: *next}
	all, err := group.Procs()
	if err != nil {
		return scores{}, err
	}
	if !slices.Contains(all, first) {
		all = append(all, first)
	}
	for _, pid := range all {
		if score, err := readScore(pid); err == nil && score == old && score != *next {
			s.pids = append(s.pids, pid)
		}
	}
	return s, nil
}

func (s scores) set() error {
	for _, pid := range s.pids {
		if err := writeScore(pid, s.next); err != nil {
			return fault.New(fault.Precondition, "set oom_score_adj of process %d to %d: %w", pid, s.next, err)
		}
	}
	return nil
}

func (s scores) restore() error {
	var errs []error
	for _, pid := range s.pids {
		if now, err := readScore(pid); err == nil && now != s.old {
			errs = append(errs, writeScore(pid, s.old))
		}
	}
	return errors.Join(errs...)
}

func readScore(pid int) (int, error) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(body)))
}

// writeScore sets the score of a process. It does nothing for one that has ended.
func writeScore(pid, score int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
