package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// process is one of a runtime's processes.
type process struct {
	pid     int
	program string // name of its executable
}

// processes lists what runs for a runtime: the daemon and whatever came from it, but for the pods' own
// programs. A sandbox's pause process is the runtime's, not the pod's. In the cell there is nothing but
// the bench and the runtimes; containerd and all that comes from it are in its cgroup, the rest is Kuri's.
func processes(name string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == 1 {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", entry.Name(), "exe"))
		if gone(err) {
			continue // also a kernel thread or a zombie
		}
		if err != nil {
			return nil, err
		}
		owner, err := owner(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		program := programName(exe)
		if owner == name && program != "sleeper" {
			all = append(all, process{pid, program})
		}
	}
	return all, nil
}

// programName is the name of an executable as /proc/PID/exe shows it. Programs that run from a sealed copy of themselves, as
// Kuri's keeper and runc may, show as /memfd:runc_cloned:NAME (deleted).
func programName(exe string) string {
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return name[strings.LastIndex(name, ":")+1:]
}

// owner names the runtime that a process belongs to, or bench.
func owner(pid int) (string, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] != "memory" && !(unified() && f[0] == "0") {
			continue
		}
		switch first, _, _ := strings.Cut(strings.TrimPrefix(f[2], "/"), "/"); first {
		case "bench", "containerd":
			return first, nil
		}
	}
	return "kuri", nil
}

// memory is the memory that a runtime's processes take, in bytes, by program: the proportional set size, in
// which a page that several share counts once.
func memory(name string) (map[string]int64, error) {
	all, err := processes(name)
	if err != nil {
		return nil, err
	}
	sum := map[string]int64{}
	for _, p := range all {
		kib, err := field(filepath.Join("/proc", strconv.Itoa(p.pid), "smaps_rollup"), "Pss:")
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sum[p.program] += kib << 10
	}
	return sum, nil
}

// peak starts a measure of the most memory that a process has resident, and returns how to read it, in bytes.
func peak(pid int) (func() (int64, error), error) {
	const resetPeak = "5" // proc_pid_clear_refs(5)
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if err := os.WriteFile(filepath.Join(dir, "clear_refs"), []byte(resetPeak), 0); err != nil {
		return nil, err
	}
	return func() (int64, error) {
		kib, err := field(filepath.Join(dir, "status"), "VmHWM:")
		return kib << 10, err
	}, nil
}

// gone says that a process ended while it was looked at.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
