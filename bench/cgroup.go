package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
)

const cgroupRoot = "/sys/fs/cgroup"

// unified says whether the machine has cgroup version 2 alone.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// accounting is where a cgroup's CPU time and memory are counted: its directories, one in version 2,
// two in version 1.
func accounting(cgroup string) []string {
	if unified() {
		return []string{filepath.Join(cgroupRoot, cgroup)}
	}
	return []string{filepath.Join(cgroupRoot, "cpuacct", cgroup), filepath.Join(cgroupRoot, "memory", cgroup)}
}

// makeCgroup makes the accounting directories of a cgroup. In version 2 all above it hand on the
// controllers that count.
func makeCgroup(cgroup string) error {
	for _, dir := range accounting(cgroup) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for up := filepath.Dir(dir); unified() && len(up) >= len(cgroupRoot); up = filepath.Dir(up) {
			if err := os.WriteFile(filepath.Join(up, "cgroup.subtree_control"), []byte("+cpu +memory"), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// enterCgroup moves this process.
func enterCgroup(cgroup string) error {
	if err := makeCgroup(cgroup); err != nil {
		return err
	}
	for _, dir := range accounting(cgroup) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// startIn starts a command in a cgroup, so that nothing that it does is counted elsewhere. In version 1
// a child begins in the cgroups of the thread that starts it.
func startIn(cmd *exec.Cmd, cgroup string) error {
	if err := makeCgroup(cgroup); err != nil {
		return err
	}
	if unified() {
		dir, err := os.Open(accounting(cgroup)[0])
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		return cmd.Start()
	}
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	if err := moveThread(cgroup); err != nil {
		return err
	}
	return errors.Join(cmd.Start(), moveThread("/bench"))
}

func moveThread(cgroup string) error {
	for _, dir := range accounting(cgroup) {
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(strconv.Itoa(syscall.Gettid())), 0); err != nil {
			return err
		}
	}
	return nil
}

// cpu is the CPU time that a runtime and its pods have used so far, in nanoseconds. Kuri's keeper has a cgroup of
// its own choice, so Kuri's share is what the cell used beside the others: only the daemon being
// measured may be at work between two readings.
func cpu(name string) (int64, error) { return share(name, cpuOf) }

// kernelMemory is the memory that the kernel holds for a runtime and its pods, in bytes: slab, kernel stacks, page tables, per-CPU
// data of cgroups and more.
func kernelMemory(name string) (int64, error) { return share(name, kernelMemoryOf) }

func share(name string, of func(cgroup string) (int64, error)) (int64, error) {
	if name != "kuri" {
		return of("/" + name)
	}
	sum, err := of("/")
	if err != nil {
		return 0, err
	}
	for _, other := range []string{"/bench", "/containerd"} {
		n, err := of(other)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		sum -= n
	}
	return sum, nil
}

func cpuOf(cgroup string) (int64, error) {
	if unified() {
		n, err := field(filepath.Join(cgroupRoot, cgroup, "cpu.stat"), "usage_usec")
		return n * 1000, err
	}
	return number(filepath.Join(cgroupRoot, "cpuacct", cgroup, "cpuacct.usage"))
}

func kernelMemoryOf(cgroup string) (int64, error) {
	if unified() {
		return field(filepath.Join(cgroupRoot, cgroup, "memory.stat"), "kernel")
	}
	return number(filepath.Join(cgroupRoot, "memory", cgroup, "memory.kmem.usage_in_bytes"))
}

// number reads a file that holds one number.
func number(file string) (int64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// field reads the number that follows a name in a file of lines.
func field(file, name string) (int64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
