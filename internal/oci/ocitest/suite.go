// Package ocitest is the conformance suite of [oci.Runtime]. It tests everything that package
// keeper/server relies on, with real containers on this machine. Each implementation must pass it
// unchanged. TestInitConformance of keeper/server tests that two implementations create the same
// container.
//
// The calling program must be prepared as a keeper is: it calls [oci.Init] and [oci.Filter], is
// a child subreaper, and its first thread is locked. The suite needs root,
// busybox-static and writable cgroups, and skips without.
package ocitest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// limit bounds each wait. It is long, because machines may be slow.
const limit = time.Minute

// Implementation is a runtime to test.
type Implementation struct {
	Open func(root string) oci.Runtime // with its records below root
	Init string                        // who creates the first process: the prefix of [oci.Created.Init]
}

// Run runs the suite.
func Run(t *testing.T, of Implementation) {
	for name, test := range map[string]func(*node){
		"life":             life,
		"refused":          refused,
		"killed at start":  killedAtItsStart,
		"unknown":          unknown,
		"execs":            execs,
		"execs in frozen":  execsInAFrozenContainer,
		"execs not begun":  execsAtTheirStartLine,
		"limits":           limits,
		"a later process":  laterProcess,
		"records restored": restored,
		"taken back":       takenBack,
		"user namespaces":  userNamespaces,
	} {
		t.Run(name, func(t *testing.T) { test(newNode(t, of)) })
	}
}

// life tests a container from Create to Delete.
func life(n *node) {
	c := n.create("echo out; echo err >&2; exit 7")
	if !strings.HasPrefix(c.made.Init, n.of.Init) {
		n.t.Fatalf("made by %q, want %q: another way than this suite is to show", c.made.Init, n.of.Init)
	}
	if !c.made.PrivatePID {
		n.t.Error("a container with a PID namespace of its own does not say so")
	}
	if pids, err := c.made.Cgroup.Procs(); err != nil || !slices.Contains(pids, c.made.Pid) && n.of.Init == oci.InitLibcontainer {
		n.t.Errorf("processes %v, %v, want %d", pids, err, c.made.Pid)
	}
	time.Sleep(20 * time.Millisecond) // a process that runs too early writes something
	if !n.runtime.Waits(c.id, c.made.Pid) || c.pidfd.HasEnded() || c.output() != "" {
		n.t.Errorf("it does not wait for its start; it said %q", c.output())
	}
	c.start()
	if code := c.wait(); code != 7 {
		n.t.Errorf("exit code %d, want 7", code)
	}
	if out := c.output(); out != "out\nerr\n" {
		n.t.Errorf("it said %q", out)
	}
	if n.runtime.Waits(c.id, c.made.Pid) {
		n.t.Error("a container that has ended waits for its start")
	}
	if err := n.start(c); !errors.Is(err, fault.Precondition) {
		n.t.Errorf("started again: %v", err)
	}
	for range 2 {
		n.must(n.runtime.Delete(c.id))
	}
	n.nothingLeft(c)
}

// refused tests containers that cannot be created.
func refused(n *node) {
	for name, change := range map[string]func(*specs.Spec){
		"no such program":   func(s *specs.Spec) { s.Process.Args = []string{"/bin/none"} },
		"not executable":    func(s *specs.Spec) { s.Process.Args = []string{"/plain"} },
		"no such volume":    func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("/none", "/volume")) },
		"no such directory": func(s *specs.Spec) { s.Process.Cwd = "/plain" },

		"nameless program":   func(s *specs.Spec) { s.Process.Args = []string{"", "a"} },
		"NUL in an argument": func(s *specs.Spec) { s.Process.Args = append(s.Process.Args, "a\x00b") },
		"NUL in a variable":  func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "A=\x00") },
		"nameless variable":  func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "=a") },
		"relative directory": func(s *specs.Spec) { s.Process.Cwd = "plain" },
		"NUL in a directory": func(s *specs.Spec) { s.Process.Cwd = "/\x00" },
		"unknown seccomp action": func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_NONE"}
		},
		"limit that the kernel refuses": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Mems: "4095"}}
		},
		"mount point missing in a read-only mount": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, bind("/dev/shm", "/ro"), bind("/tmp", "/ro/none"))
			s.Mounts[len(s.Mounts)-2].Options = []string{"bind", "ro"}
		},
	} {
		c := n.container("true", change)
		err := c.create()
		if err == nil {
			c.start()
			c.wait()
			n.t.Errorf("%s: it is made", name)
			n.must(n.runtime.Delete(c.id))
		} else if !errors.Is(err, fault.Unstartable) {
			n.t.Errorf("%s: %v of kind %q, want %q", name, err, fault.Of(err), fault.Unstartable)
		}
		n.nothingLeft(c)
	}
	n.must(n.runs("echo after")) // and the next one can be created
}

// killedAtItsStart tests a container whose process is killed before its start.
func killedAtItsStart(n *node) {
	c := n.create("echo never")
	n.must(c.pidfd.Signal(unix.SIGKILL))
	if code := c.wait(); code != 128+int(unix.SIGKILL) {
		n.t.Errorf("exit code %d", code)
	}
	if err := n.start(c); !errors.Is(err, fault.Precondition) {
		n.t.Errorf("started: %v", err)
	}
	n.must(n.runtime.Delete(c.id))
	n.nothingLeft(c)
}

// unknown tests verbs on a container that does not exist.
func unknown(n *node) {
	c := n.container("true")
	n.must(n.runtime.Delete(c.id))
	n.must(n.runtime.TakeBack(c.id, c.spec.Linux.CgroupsPath, false, limit))
	if err := n.start(c); !errors.Is(err, fault.Precondition) {
		n.t.Errorf("start: %v", err)
	}
	if n.runtime.Waits(c.id, os.Getpid()) {
		n.t.Error("it waits for its start")
	}
	if _, err := n.runtime.Left(c.id); !errors.Is(err, fault.NotFound) {
		n.t.Errorf("left: %v", err)
	}
	if _, err := n.runtime.Executor(c.id, c.bundle); !errors.Is(err, fault.NotFound) {
		n.t.Errorf("executor: %v", err)
	}
	if err := n.runtime.Update(c.id, &specs.LinuxResources{}, nil); !errors.Is(err, fault.NotFound) {
		n.t.Errorf("update: %v", err)
	}
	n.nothingLeft(c)
}

// execs tests processes started in a running container.
func execs(n *node) {
	c := n.run("read line </fifo")
	x, err := n.runtime.Executor(c.id, c.bundle)
	n.must(err)
	if code, out, err := c.exec(n.t.Context(), x, 1, "/bin/sh", "-c", "echo $((6 * 7)); hostname; exit 5"); err != nil || code != 5 || !strings.HasPrefix(out, "42\n") {
		n.t.Errorf("code %d, output %q, %v", code, out, err)
	}
	// The process is in the container: it has its processes and files, and a cgroup of its own in
	// the container's.
	if code, out, err := c.exec(n.t.Context(), x, 2, "/bin/sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; cat /plain; grep -c exec-2 /proc/self/cgroup"); err != nil || code != 0 ||
		!strings.HasPrefix(out, "/bin/sh -c read line") || !strings.Contains(out, "plain\n1\n") {
		n.t.Errorf("code %d, output %q, %v", code, out, err)
	}
	for name, args := range map[string][]string{"no such program": {"/bin/none"}, "not executable": {"/plain"}, "a NUL byte": {"/bin/echo", "a\x00b"}} {
		if _, _, err := c.exec(n.t.Context(), x, 3, args...); !errors.Is(err, fault.Invalid) {
			n.t.Errorf("%s: %v", name, err)
		}
	}
	// Processes that an exec leaves behind continue, in the container's own cgroup.
	if code, _, err := c.exec(n.t.Context(), x, 4, "/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & exit 0"); err != nil || code != 0 {
		n.t.Errorf("code %d, %v", code, err)
	}
	pids, err := c.made.Cgroup.Procs()
	if left := entries(filepath.Join(c.made.Cgroup.Dir(), "exec-*")); err != nil || len(pids) != 2 || len(left) > 0 {
		n.t.Errorf("processes %v, %v, cgroups of execs %v", pids, err, left)
	}
	n.must(c.made.Cgroup.Kill(limit))
	c.wait()
	if _, _, err := c.exec(n.t.Context(), x, 5, "/bin/true"); err == nil {
		n.t.Error("something is executed in a container that has ended")
	}
	n.must(n.runtime.Delete(c.id))
	n.nothingLeft(c)
}

// execsAtTheirStartLine tests that execs at their start line have not run, and never run if the
// caller abandons them.
func execsAtTheirStartLine(n *node) {
	c := n.run("read line </fifo")
	x, err := n.runtime.Executor(c.id, c.bundle)
	n.must(err)
	no := errors.New("it must not run without a start line")
	ours, theirs, err := os.Pipe()
	n.must(err)
	defer ours.Close()
	running, err := n.runtime.Exec(n.t.Context(), x, c.pidfd, 1, []string{"/bin/echo", "ran"}, oci.Stdio{Stdout: theirs, Stderr: theirs}, func() error { return no })
	theirs.Close()
	switch {
	case err == nil:
		if begun, err := running.Begun(); begun || err != nil {
			n.t.Errorf("begun: %v, %v", begun, err)
		}
		running.Abandon()
		if code, err := running.Wait(); code != 255 || err != nil {
			n.t.Errorf("exit code %d, %v, want 255", code, err)
		}
		n.must(running.Leave())
	case !errors.Is(err, no):
		n.t.Errorf("%v, want %v", err, no)
	}
	if out, err := io.ReadAll(ours); len(out) > 0 || err != nil {
		n.t.Errorf("it said %q, %v", out, err)
	}
	if left := entries(filepath.Join(c.made.Cgroup.Dir(), "exec-*")); len(left) > 0 {
		n.t.Errorf("cgroups of execs are left: %v", left)
	}
	n.must(c.made.Cgroup.Kill(limit))
	c.wait()
	n.must(n.runtime.Delete(c.id))
}

// execsInAFrozenContainer tests that execs in a frozen container start after the thaw, or not at
// all.
func execsInAFrozenContainer(n *node) {
	c := n.run("read line </fifo")
	x, err := n.runtime.Executor(c.id, c.bundle)
	n.must(err)
	thaw := c.made.Cgroup.Freeze()
	if !c.made.Cgroup.Frozen() {
		n.t.Skip("SKIP: no freezer here")
	}
	enough := errors.New("long enough")
	ctx, cancel := context.WithTimeoutCause(n.t.Context(), 50*time.Millisecond, enough)
	defer cancel()
	if _, _, err := c.exec(ctx, x, 1, "/bin/true"); !errors.Is(err, enough) {
		n.t.Errorf("in a frozen container: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, thaw)
	if code, _, err := c.exec(n.t.Context(), x, 2, "/bin/true"); err != nil || code != 0 {
		n.t.Errorf("code %d, %v", code, err)
	}
	n.must(c.made.Cgroup.Kill(limit))
	c.wait()
	n.must(n.runtime.Delete(c.id))
}

// limits tests that either all limits are changed or none.
func limits(n *node) {
	c := n.run("read line </fifo")
	shares := func(want uint64) {
		n.t.Helper()
		d, err := n.groups.Detail(c.spec.Linux.CgroupsPath)
		n.must(err)
		// A weight corresponds to a range of shares.
		if got := d.CPUShares.N; !d.CPUShares.OK || got != want && !d.CPUWeighted || got > want+want/8 || got < want-want/8 {
			n.t.Errorf("shares %d, want %d", got, want)
		}
	}
	score := func(want string) {
		n.t.Helper()
		if body, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.made.Pid)); err != nil || strings.TrimSpace(string(body)) != want {
			n.t.Errorf("oom_score_adj %q, want %s; %v", body, want, err)
		}
	}
	one, other, bytes, adj := uint64(512), uint64(2048), int64(4096), 333
	n.must(n.runtime.Update(c.id, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &one}}, &adj))
	shares(512)
	score("333")
	if err := n.runtime.Update(c.id, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &other}, Memory: &specs.LinuxMemory{Limit: &bytes}}, nil); !errors.Is(err, fault.Precondition) {
		n.t.Errorf("a memory limit below what it uses: %v", err)
	}
	if err := n.runtime.Update(c.id, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &other, Cpus: "4095"}}, nil); !errors.Is(err, fault.Precondition) {
		n.t.Errorf("a CPU that the node has not: %v", err)
	}
	shares(512)
	score("333")
	n.must(c.pidfd.Signal(unix.SIGKILL))
	c.wait()
	n.must(n.runtime.Delete(c.id))
	n.nothingLeft(c)
}

// laterProcess tests a runtime with the records of an earlier one.
func laterProcess(n *node) {
	c, d := n.create("echo started; exit 3"), n.run("read line </fifo")
	later := n.of.Open(n.root)
	defer later.Close()
	n.runtime = later
	ids, err := later.All()
	slices.Sort(ids)
	if want := slices.Sorted(slices.Values([]string{c.id, d.id})); err != nil || !slices.Equal(ids, want) {
		n.t.Errorf("containers %v, %v, want %v", ids, err, want)
	}
	for _, each := range []*container{c, d} {
		left, err := later.Left(each.id)
		n.must(err)
		started, err := process.StartTime(each.made.Pid)
		n.must(err)
		if left.Pid != each.made.Pid || left.Born != started || left.Bundle != each.bundle || left.Cgroup != each.made.Cgroup || !left.PrivatePID {
			n.t.Errorf("left %+v, made %+v at %s with bundle %s", left, each.made, started, each.bundle)
		}
		later.Pin(each.id)
		n.must(later.Rehold(each.id))
	}
	if !later.Waits(c.id, c.made.Pid) || later.Waits(d.id, d.made.Pid) {
		n.t.Error("what waits for its start is not known")
	}
	c.start()
	if code := c.wait(); code != 3 || c.output() != "started\n" {
		n.t.Errorf("code %d, output %q", code, c.output())
	}
	x, err := later.Executor(d.id, d.bundle)
	n.must(err)
	if code, out, err := d.exec(n.t.Context(), x, 9, "/bin/echo", "hello"); err != nil || code != 0 || out != "hello\n" {
		n.t.Errorf("code %d, output %q, %v", code, out, err)
	}
	n.must(d.pidfd.Signal(unix.SIGKILL))
	d.wait()
	for _, each := range []*container{c, d} {
		n.must(later.Delete(each.id))
		n.nothingLeft(each)
	}
}

// restored tests records that someone has removed.
func restored(n *node) {
	c, d := n.create("echo started"), n.run("read line </fifo")
	n.must(os.RemoveAll(n.root))
	n.must(n.runtime.Restore(c.id, c.made.Pid, true))
	n.must(n.runtime.Restore(d.id, d.made.Pid, false))
	for range 2 { // existing records are not changed
		n.must(n.runtime.Restore(d.id, d.made.Pid, false))
	}
	if !n.runtime.Waits(c.id, c.made.Pid) || n.runtime.Waits(d.id, d.made.Pid) {
		n.t.Error("what waits for its start is not known")
	}
	c.start()
	c.wait()
	if out := c.output(); out != "started\n" {
		n.t.Errorf("it said %q", out)
	}
	n.must(d.pidfd.Signal(unix.SIGKILL))
	d.wait()
	for _, each := range []*container{c, d} {
		n.must(n.runtime.Delete(each.id))
		n.nothingLeft(each)
	}
}

// takenBack tests the removal of a container whose Create was interrupted.
func takenBack(n *node) {
	c := n.create("echo never")
	for range 2 {
		n.must(n.runtime.TakeBack(c.id, c.spec.Linux.CgroupsPath, false, limit))
	}
	if code := c.wait(); code != 128+int(unix.SIGKILL) {
		n.t.Errorf("exit code %d", code)
	}
	n.nothingLeft(c)
}
