package server_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/namespace"
)

// The main thread cannot exit, so it must not enter the namespaces of a container.
func init() { runtime.LockOSThread() }

// pid returns the pid of a container's first process.
func (n *node) pid(j *job) int {
	n.t.Helper()
	list, err := n.List(n.t.Context())
	n.must(err)
	for _, c := range list.Containers {
		if c.Id == j.Id {
			return int(c.Pid)
		}
	}
	n.t.Fatalf("the keeper does not list %s", j.Id)
	return 0
}

// hang mounts a filesystem that never answers, like one with a dead server, over a directory of the
// container until the test ends.
func (n *node) hang(j *job, dir string) {
	n.t.Helper()
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		n.t.Skipf("SKIP: a file system that hangs needs FUSE: %v", err)
	}
	in, served, quit := make([]byte, 1<<16), make(chan struct{}), make(chan struct{})
	n.t.Cleanup(func() {
		close(quit)
		<-served
		unix.Close(device)
	})
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", n.pid(j)))
	n.must(err)
	defer ns.Close()
	n.must(namespace.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		return unix.Mount("hung", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other",
			device))
	}))
	// Answer the first request, INIT, with struct fuse_init_out of protocol 7.31. Later requests
	// are read but not answered, so that processes that wait for them cannot be killed.
	unix.Poll([]unix.PollFd{{Fd: int32(device), Events: unix.POLLIN}}, 5000)
	_, err = unix.Read(device, in)
	n.must(err)
	out := make([]byte, 16+64)
	binary.NativeEndian.PutUint32(out, uint32(len(out)))
	copy(out[8:16], in[8:16]) // id of the request
	binary.NativeEndian.PutUint32(out[16:], 7)
	binary.NativeEndian.PutUint32(out[20:], 31)
	binary.NativeEndian.PutUint32(out[36:], 4096) // max_write
	_, err = unix.Write(device, out)
	n.must(err)
	go func() {
		defer close(served)
		for {
			select {
			case <-quit:
				return
			default:
				unix.Poll([]unix.PollFd{{Fd: int32(device), Events: unix.POLLIN}}, 50)
				unix.Read(device, in)
			}
		}
	}()
}

// An exec that cannot start ends at its caller's deadline, reports the reason, and leaves no
// process.
func TestAnExecThatCannotBegin(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for name, c := range map[string]struct {
		hold func(*job)
		want string
	}{
		"frozen":  {func(j *job) { n.freeze(n.cgroup + "/" + j.Id) }, "the container is frozen"},
		"hung":    {func(j *job) { n.hang(j, "/work") }, "its file system hangs"},
		"stopped": {func(j *job) { n.must(syscall.Kill(n.pid(j), syscall.SIGSTOP)) }, ""},
	} {
		for way, change := range map[string]func(*job){"fork server": func(*job) {}, "libcontainer": byLibcontainer} {
			t.Run(name+" "+way, func(t *testing.T) {
				n.t = t
				j := n.run(box, "echo up; sleep 1000", change, func(j *job) { j.spec.Process.Cwd = "/work" })
				// Once it runs again. Later, its exit would be recorded in a new directory of its name.
				t.Cleanup(func() { n.must(n.Delete(context.Background(), j.Id)) })
				n.waitOutput(j, "up")
				n.exec(j, "true") // creates the state that the first exec creates
				c.hold(j)
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				start := time.Now()
				code, err := n.Exec(ctx, j.Id, []string{"true"}, false, keeper.Streams{})
				if took := time.Since(start); took > 8*time.Second {
					t.Errorf("it took %s", took)
				}
				switch {
				case c.want == "":
					if code != 0 || err != nil {
						t.Errorf("exit code %d, %v", code, err)
					}
				case !errors.Is(err, fault.Deadline) || !strings.Contains(err.Error(), c.want):
					t.Errorf("error %v, want one with %q", err, c.want)
				}
				if name != "hung" { // a hung process cannot be killed
					n.wantNoExecCgroups(j)
				}
			})
		}
	}
}

// An exec in a container that is frozen for a moment runs once it is thawed.
func TestAnExecWaitsForTheThaw(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "echo up; sleep 1000")
	n.waitOutput(j, "up")
	thaw := n.freeze(n.cgroup + "/" + j.Id)
	time.AfterFunc(300*time.Millisecond, thaw)
	if code, out, _ := n.exec(j, "echo here"); code != 0 || out != "here\n" {
		t.Errorf("exit code %d, output %q", code, out)
	}
}

// A process that was started and cannot be killed does not make its caller wait.
func TestAnExecThatCannotEnd(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "mkdir /mnt; echo up; sleep 1000")
	n.waitOutput(j, "up")
	n.exec(j, "true")
	n.hang(j, "/mnt")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := n.Exec(ctx, j.Id, []string{"ls", "/mnt"}, false, keeper.Streams{})
	if !errors.Is(err, fault.Deadline) || !strings.Contains(err.Error(), "does not end: process") {
		t.Error(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

// The error names a working directory that was removed.
func TestExecNamesTheWorkingDirectory(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for name, way := range map[string]func(*job){"fork server": func(*job) {}, "libcontainer": byLibcontainer} {
		j := n.run(box, "cd /; rmdir /work/here; echo gone; sleep 1000", way,
			func(j *job) { j.spec.Process.Cwd = "/work/here" })
		n.waitOutput(j, "gone")
		_, err := n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{})
		if err == nil || !strings.Contains(err.Error(), "/work/here") {
			t.Errorf("%s: %v", name, err)
		}
		if name == "fork server" {
			wantKind(t, err, fault.Precondition)
		}
	}
}
