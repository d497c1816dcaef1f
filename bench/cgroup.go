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

// unified reports whether the machine has only cgroup version 2.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// accounting returns the directories that count a cgroup's CPU time and memory: one in version 2,
// two in version 1.
func accounting(cgroup string) []string {
	if unified() {
		return []string{filepath.Join(cgroupRoot, cgroup)}
	}
	return []string{filepath.Join(cgroupRoot, "cpuacct", cgroup), filepath.Join(cgroupRoot, "memory", cgroup)}
}

// makeCgroup creates the accounting directories of a cgroup. In version 2 it enables the counting
// controllers in all of its ancestors.
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

// enterCgroup moves this process into a cgroup.
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

// startIn starts a command in a cgroup, so that all of its usage is counted there. In version 1 a
// child starts in the cgroups of the thread that starts it.
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

// cpu returns the CPU time that a runtime and its pods have used so far, in nanoseconds. Kuri's
// keeper chooses its own cgroup, so Kuri's share is the usage of the cell minus that of the other
// cgroups. So only the measured daemon may be active between two readings.
func cpu(name string) (int64, error) { return share(name, cpuOf) }

// kernelMemory returns the kernel memory of a runtime and its pods, in bytes: slab, kernel stacks,
// page tables, per-CPU data of cgroups and more.
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

// number reads a file that contains one number.
func number(file string) (int64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// field reads the number after a name in a file of lines.
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
