package oci

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
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

	"github.com/kuri-cri/kuri/internal/fault"
)

// Update changes the limits of a container that is created or runs: CPU, cpuset, memory and swap, huge pages, unified; a
// field that is not set stays as it is. OOMScoreAdj, when not nil, is given to the first process, to those that have the
// same value as it, and to what is exec'd later; a process that has set one of its own keeps it.
//
// All of it applies, or nothing: what the kernel has taken is read back, and when it refuses something, or has made
// something else of it, everything is put back as it was and the error says which and why. A memory limit below what the
// container uses and the kernel cannot drop is an error of kind Precondition before anything is changed.
func (e *Embedded) Update(id string, limits *specs.LinuxResources, oomScoreAdj *int) error {
	c, err := e.load(id)
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
	want := wanted(state.CgroupPaths, next.Cgroups.Resources, limits)
	if err := fits(want); err != nil {
		return err
	}
	before, err := snapshot(want)
	if err != nil {
		return err
	}
	scores, err := scoresToSet(state.InitProcessPid, cgroupOf(state.CgroupPaths), oomScoreAdj)
	if err != nil {
		return err
	}

	e.held.release(id)
	defer e.pins.pin(e.root, id) // the record is replaced
	err = apply(c, next, want, scores)
	if err == nil {
		if err = e.held.hold(id, toHold(&next, state.CgroupPaths)); err == nil {
			return nil
		}
	}
	// The runtime's own record of the limits goes back first; what it does not know of, the files tell.
	_ = set(c, old)
	if back := errors.Join(restore(before), scores.restore(), e.held.hold(id, toHold(&old, state.CgroupPaths))); back != nil {
		return fmt.Errorf("%w; and not all could be put back: %w", err, back)
	}
	return fmt.Errorf("%w; nothing was changed", err)
}

func apply(c *libcontainer.Container, next configs.Config, want []setting, scores scores) error {
	if err := set(c, next); err != nil {
		return fault.As(fault.Precondition, fmt.Errorf("the kernel refuses a limit: %w", err))
	}
	if err := scores.set(); err != nil {
		return err
	}
	for _, s := range want {
		if err := s.check(); err != nil {
			return err
		}
	}
	return nil
}

// set gives a container these limits: the kernel, and systemd where it has the container's scope.
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

// systemdLimit is how long systemd may take to change a property.
const systemdLimit = 30 * time.Second

// swapProperty is the property of a scope that says that a container may not swap. Libcontainer leaves that one out, and
// what the unit had instead would come back with the next daemon-reload. Nil when swap is allowed, when the unified limits
// say how much, and where systemd has no such property.
func swapProperty(group *cgroups.Cgroup) *systemd.Property {
	r := group.Resources
	_, said := r.Unified["memory.swap.max"]
	if !group.Systemd || !cgroups.IsCgroup2UnifiedMode() || said || r.MemorySwap <= 0 || r.MemorySwap != r.Memory {
		return nil
	}
	return &systemd.Property{Name: "MemorySwapMax", Value: dbus.MakeVariant(uint64(0))}
}

// changed returns a copy of config with the limits that are set.
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
	// The devices are not written again: what a plugin has added to them stays.
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

// setting is a file of a cgroup, and what it shall say.
type setting struct {
	path string
	want string
	same func(want, got string) bool
}

// wanted lists the files that change with the limits that are asked for.
func wanted(paths map[string]string, r *cgroups.Resources, asked *specs.LinuxResources) []setting {
	v2path, v2 := paths[""]
	v2 = v2 && len(paths) == 1
	var out []setting
	add := func(controller, v1file, v1want, v2file, v2want string, same func(want, got string) bool) {
		s := setting{filepath.Join(paths[controller], v1file), v1want, same}
		if v2 {
			s.path, s.want = filepath.Join(v2path, v2file), v2want
		}
		out = append(out, s)
	}
	if cpu := asked.CPU; cpu != nil {
		if cpu.Shares != nil {
			add("cpu", "cpu.shares", strconv.FormatUint(r.CpuShares, 10), "cpu.weight", strconv.FormatUint(r.CpuWeight, 10), equal)
		}
		if v2 && (cpu.Quota != nil || cpu.Period != nil) {
			out = append(out, setting{filepath.Join(v2path, "cpu.max"), cpuMax(r), firstFields})
		}
		if !v2 && cpu.Period != nil {
			add("cpu", "cpu.cfs_period_us", strconv.FormatUint(r.CpuPeriod, 10), "", "", equal)
		}
		if !v2 && cpu.Quota != nil {
			add("cpu", "cpu.cfs_quota_us", strconv.FormatInt(r.CpuQuota, 10), "", "", equal)
		}
		if cpu.Cpus != "" {
			add("cpuset", "cpuset.cpus", cpu.Cpus, "cpuset.cpus", cpu.Cpus, sameList)
		}
		if cpu.Mems != "" {
			add("cpuset", "cpuset.mems", cpu.Mems, "cpuset.mems", cpu.Mems, sameList)
		}
	}
	if memory := asked.Memory; memory != nil {
		if memory.Limit != nil {
			add("memory", "memory.limit_in_bytes", size(r.Memory), "memory.max", size(r.Memory), sameBytes)
		}
		if memory.Swap != nil {
			swap, _ := cgroups.ConvertMemorySwapToCgroupV2Value(r.MemorySwap, r.Memory)
			add("memory", "memory.memsw.limit_in_bytes", size(r.MemorySwap), "memory.swap.max", size(swap), sameBytes)
		}
	}
	for _, h := range asked.HugepageLimits {
		limit := strconv.FormatUint(h.Limit, 10)
		add("hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes", limit, "hugetlb."+h.Pagesize+".max", limit, sameHuge(h.Pagesize))
	}
	// These are written last: they hold where a field says otherwise.
	for file, value := range asked.Unified {
		path := filepath.Join(v2path, file)
		out = slices.DeleteFunc(out, func(s setting) bool { return s.path == path })
		out = append(out, setting{path, value, firstFields})
	}
	return out
}

func cpuMax(r *cgroups.Resources) string {
	quota := "max"
	if r.CpuQuota > 0 {
		quota = strconv.FormatInt(r.CpuQuota, 10)
	}
	if r.CpuPeriod == 0 {
		return quota
	}
	return quota + " " + strconv.FormatUint(r.CpuPeriod, 10)
}

// size writes a number of bytes as the files of v2 do, -1 being no limit.
func size(n int64) string {
	if n == -1 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// check reads the file back.
func (s setting) check() error {
	got, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) && s.want == "0" {
		return nil // no such thing to be had, and none is allowed: swap on a kernel that has it not
	}
	if err != nil {
		return fmt.Errorf("read a limit back: %w", err)
	}
	if text := strings.TrimSpace(string(got)); !s.same(s.want, text) {
		return fault.New(fault.Precondition, "%s was set to %s, and the kernel made %q of it", filepath.Base(s.path), s.want, text)
	}
	return nil
}

func equal(want, got string) bool { return want == got }

// firstFields compares as many words as want has: the kernel adds a default period to a quota.
func firstFields(want, got string) bool {
	w, g := strings.Fields(want), strings.Fields(got)
	if len(g) < len(w) {
		return false
	}
	for i := range w {
		if w[i] != g[i] && !sameBytes(w[i], g[i]) {
			return false
		}
	}
	return true
}

// sameBytes compares sizes, which the kernel rounds down to pages. No limit is "max", on v1 a number beyond all memory.
func sameBytes(want, got string) bool { return roundedTo(uint64(os.Getpagesize()), want, got) }

func sameHuge(pageSize string) func(want, got string) bool {
	number := strings.TrimRight(pageSize, "KMGB")
	n, _ := strconv.ParseUint(number, 10, 64)
	shift := map[string]int{"KB": 10, "MB": 20, "GB": 30}[strings.TrimPrefix(pageSize, number)]
	return func(want, got string) bool { return roundedTo(max(n<<shift, 1), want, got) }
}

func roundedTo(unit uint64, want, got string) bool {
	w, wok := byteCount(want)
	g, gok := byteCount(got)
	return wok && gok && (w == g || g <= w && w-g < unit || w >= math.MaxInt64 && g >= math.MaxInt64-unit)
}

func byteCount(s string) (uint64, bool) {
	if s == "max" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// sameList compares lists of CPUs or memory nodes: "0,1" is "0-1".
func sameList(want, got string) bool {
	w, wok := expandList(want)
	g, gok := expandList(got)
	return wok && gok && slices.Equal(w, g)
}

func expandList(list string) ([]int, bool) {
	var out []int
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || to-from > 1<<16 {
			return nil, false
		}
		for n := from; n <= to; n++ {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), true
}

// fits refuses a memory limit below what the container uses and the kernel cannot drop: with v2 it would be killed, with
// v1 the kernel would refuse after it had tried for long.
func fits(want []setting) error {
	for _, s := range want {
		limit, ok := byteCount(s.want)
		usage := map[string]string{"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}[filepath.Base(s.path)]
		if usage == "" || !ok {
			continue
		}
		dir := filepath.Dir(s.path)
		used, err := readNumber(filepath.Join(dir, usage))
		if err != nil {
			return fmt.Errorf("read the container's memory: %w", err)
		}
		cache, err := pageCache(dir)
		if err != nil {
			return fmt.Errorf("read the container's memory: %w", err)
		}
		if used > cache && limit < used-cache {
			return fault.New(fault.Precondition, "a memory limit of %d bytes is below what the container uses: %d bytes, page cache not counted; nothing was changed", limit, used-cache)
		}
	}
	return nil
}

// pageCache is what a memory cgroup holds of files, which the kernel can drop.
func pageCache(dir string) (uint64, error) {
	f, err := os.Open(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// On v1 the plain names leave out the cgroups below, on v2 they count them.
	counted := map[string]uint64{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		name, value, _ := strings.Cut(s.Text(), " ")
		n, err := strconv.ParseUint(value, 10, 64)
		if err == nil && strings.HasSuffix(name, "active_file") {
			counted[name] = n
		}
	}
	if _, v1 := counted["total_active_file"]; v1 {
		return counted["total_active_file"] + counted["total_inactive_file"], s.Err()
	}
	return counted["active_file"] + counted["inactive_file"], s.Err()
}

func readNumber(path string) (uint64, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(body)), 10, 64)
}

// snapshot reads the files that will change. One that is not there is left out: setting it will fail.
func snapshot(want []setting) ([]setting, error) {
	var out []setting
	for _, s := range want {
		body, err := os.ReadFile(s.path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a present limit: %w", err)
		}
		out = append(out, setting{s.path, strings.TrimSpace(string(body)), s.same})
	}
	return out, nil
}

// restore writes what snapshot read. Some files depend on others (memory with swap is never below memory, a quota fits
// its period), so it goes over them until all are as they were.
func restore(before []setting) error {
	var errs []error
	for range 3 {
		errs = nil
		for _, s := range before {
			if s.check() == nil || s.want == "" && readsEmpty(s.path) {
				continue
			}
			if err := os.WriteFile(s.path, []byte(s.want+"\n"), 0); err != nil {
				errs = append(errs, err)
			} else if s.want != "" {
				errs = append(errs, s.check())
			}
		}
		if errors.Join(errs...) == nil {
			return nil
		}
	}
	return errors.Join(errs...)
}

func readsEmpty(path string) bool {
	body, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(body)) == ""
}

// scores are the processes whose oom_score_adj is to change.
type scores struct {
	pids      []int
	old, next int
}

func scoresToSet(first int, group Cgroup, next *int) (scores, error) {
	if next == nil {
		return scores{}, nil
	}
	old, err := readScore(first)
	if err != nil {
		return scores{}, fmt.Errorf("read oom_score_adj of the container's first process: %w", err)
	}
	s := scores{old: old, next: *next}
	all, err := group.Pids()
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

// writeScore sets the score of a process. One that has ended needs none.
func writeScore(pid, score int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
