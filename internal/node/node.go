package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/spec"
	"github.com/kuri-cri/kuri/probe"
)

// Read returns the facts about this node. A feature that cannot be determined counts as absent. An
// error is returned only for facts that every Linux provides.
func Read() (spec.Node, error) {
	n := spec.Node{
		CPUQuota:     exists("/proc/sys/kernel/sched_cfs_bandwidth_slice_us"),
		Seccomp:      probe.Seccomp(),
		AppArmor:     probe.AppArmor(),
		SELinux:      selinux.GetEnabled(),
		MountSetattr: probe.MountSetattr() == nil,
		Systemd:      exists("/run/systemd/system"), // the test of sd_booted(3)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return n, fmt.Errorf("read the kernel's version: %w", err)
	}
	n.KernelVersion = unix.ByteSliceToString(uts.Release[:])
	n.Hostname = unix.ByteSliceToString(uts.Nodename[:])

	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return n, err
	}
	if n.Capabilities, err = grantable(string(status)); err != nil {
		return n, err
	}
	if n.Ulimits, err = ulimits(); err != nil {
		return n, err
	}
	if n.MinOOMScoreAdj, err = minOOMScoreAdj(n.Capabilities); err != nil {
		return n, err
	}
	groups, err := cgroup.Open()
	if err != nil {
		return n, err
	}
	n.CgroupV2 = groups.Unified()
	n.CgroupOptions = cgroup.MountOptions()
	n.Swap = groups.AccountsSwap()
	if groups.Has("hugetlb") {
		n.HugepageSizes = hugepageSizes()
	}
	return n, nil
}

// grantable returns the capabilities that this process can give to a child: the permitted ones in its bounding set.
func grantable(status string) ([]string, error) {
	set := ^uint64(0)
	for _, field := range []string{"CapBnd:", "CapPrm:"} {
		_, rest, ok := strings.Cut(status, field)
		line, _, _ := strings.Cut(rest, "\n")
		mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("/proc/self/status has no mask of capabilities at %s", field)
		}
		set &= mask
	}
	var names []string
	for _, c := range capability.ListKnown() {
		if set&(1<<uint(c)) != 0 {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return names, nil
}

// minOOMScoreAdj returns the lowest oom_score_adj that this process can set. Without
// CAP_SYS_RESOURCE that is the last value set by a privileged process, which is assumed to be the
// current one.
func minOOMScoreAdj(capabilities []string) (int, error) {
	if slices.Contains(capabilities, "CAP_SYS_RESOURCE") {
		return -1000, nil
	}
	body, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		return 0, fmt.Errorf("/proc/self/oom_score_adj: %w", err)
	}
	return n, nil
}

// ulimits returns the limits of this process, which the keeper and its containers inherit.
func ulimits() (spec.Ulimits, error) {
	out := make(spec.Ulimits)
	for name, resource := range map[string]int{
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
		"RLIMIT_DATA":  unix.RLIMIT_DATA,
		"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
		"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
		"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
	} {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			return nil, fmt.Errorf("read the limit %s: %w", name, err)
		}
		out[name] = spec.Ulimit{Soft: l.Cur, Hard: l.Max}
	}
	return out, nil
}

// hugepageSizes returns the kernel's huge page sizes, spelled as in cgroup files: "64KB", "2MB", "1GB".
func hugepageSizes() []string {
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	var out []string
	for _, d := range dirs {
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		switch {
		case kb >= 1<<20:
			out = append(out, fmt.Sprintf("%dGB", kb>>20))
		case kb >= 1<<10:
			out = append(out, fmt.Sprintf("%dMB", kb>>10))
		default:
			out = append(out, fmt.Sprintf("%dKB", kb))
		}
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
