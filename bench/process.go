package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// process is a process of a runtime.
type process struct {
	pid     int
	program string // name of its executable
}

// processes lists the processes of a runtime: the daemon and all others, except the pods' own programs. The
// pause process of a sandbox belongs to the runtime, not to the pod. The cell contains only the bench and the
// runtimes: containerd and its descendants are in its cgroup, and all others belong to Kuri.
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

// programName returns the name of an executable from /proc/PID/exe. Programs that run from a copy of
// themselves in memory, as runc may, have /memfd:runc_cloned:NAME (deleted) there.
func programName(exe string) string {
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return name[strings.LastIndex(name, ":")+1:]
}

// owner returns the name of the runtime that a process belongs to, or bench.
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

// memory returns the memory of a runtime's processes in bytes, by program: the proportional set
// size, in which a shared page counts once in total.
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

// peak starts to measure a process's peak resident memory. The returned function reads it in bytes.
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

// gone reports whether an error means that a process exited while it was examined.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
