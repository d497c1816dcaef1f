package holder

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// TestReexec changes the program in place: pid, keeper, descriptors, watches and the listening socket stay.
func TestReexec(t *testing.T) {
	c, holder, state := start(t, idle)
	keeper := keeperOf(t, c, 0)
	read, write, _ := os.Pipe()
	defer write.Close()
	if err := c.Put("container/a/stdout", read); err != nil {
		t.Fatal(err)
	}
	read.Close()
	if err := c.Watch(keeper); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t, holder.Process.Pid)
	for range 3 {
		if err := c.Reexec(""); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := c.Info(); err != nil || info.Pid != holder.Process.Pid || info.Keeper != keeper {
		t.Errorf("%+v, %v; it was %d with %d", info, err, holder.Process.Pid, keeper)
	}
	write.WriteString("kept")
	if f, err := c.Get("container/a/stdout"); err != nil {
		t.Error(err)
	} else {
		text := make([]byte, 4)
		io.ReadFull(f, text)
		if string(text) != "kept" {
			t.Errorf("%q", text)
		}
		f.Close()
	}
	if _, known, err := c.Exited(keeper); known || err != nil {
		t.Errorf("%v %v", known, err)
	}
	if now := descriptors(t, holder.Process.Pid); now > before+1 { // our new connection may not have been taken yet
		t.Errorf("%d descriptors, %d before", now, before)
	}
	if out, err := exec.Command(state+"/kuri-holder", "--state", state, "--", "/bin/true").CombinedOutput(); err == nil {
		t.Errorf("the lock was lost: %s", out)
	}
	syscall.Kill(keeper, syscall.SIGKILL)
	keeperOf(t, c, keeper)
}

// TestReexecFails keeps the old program where the new one cannot be executed.
func TestReexecFails(t *testing.T) {
	c, _, state := start(t, idle)
	keeper := keeperOf(t, c, 0)
	if err := os.Rename(state+"/kuri-holder", state+"/gone"); err != nil {
		t.Fatal(err)
	}
	if err := c.Reexec(""); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v", err)
	}
	if info, err := c.Info(); err != nil || info.Keeper != keeper {
		t.Errorf("%+v %v", info, err)
	}
}

// TestReexecFromAnotherFile takes another program of the same kind, by its path, and keeps what
// keepers are started from.
func TestReexecFromAnotherFile(t *testing.T) {
	c, _, state := start(t, "while :; do sleep 0.01; done")
	keeper := keeperOf(t, c, 0)
	other := state + "/other-holder"
	if err := errors.Join(os.Rename(state+"/kuri-holder", other), c.Program("/bin/bash"), c.Reexec(other)); err != nil {
		t.Fatal(err)
	}
	info, err := c.Info()
	if err != nil || info.Keeper != keeper {
		t.Errorf("%+v %v", info, err)
	}
	if exe := executable(info.Pid); exe != other {
		t.Errorf("the holder's program is %s", exe)
	}
	if err := c.Reexec("not/absolute"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
	if err := c.Reexec(""); err != nil { // from the new file
		t.Error(err)
	}
	if err := c.RestartKeeper(); err != nil {
		t.Fatal(err)
	}
	keeperRuns(t, c, keeper, "/bin/bash")
}

// TestProgram starts the next keepers from another file, and from a descriptor of a program whose
// file is gone, also after the holder has changed its own.
func TestProgram(t *testing.T) {
	c, _, state := start(t, "while :; do sleep 0.01; done")
	old := keeperOf(t, c, 0)
	if err := c.Program("program/previous"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a program that is not held: %v", err)
	}
	// 1. A path.
	shell := state + "/shell"
	copyFile(t, "/bin/sh", shell)
	if err := errors.Join(c.Program(shell), c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, shell)
	// 2. A descriptor; the file goes.
	f, err := os.Open(shell)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(c.Put("program/previous", f), os.Remove(shell), c.Program("program/previous"),
		c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, shell+" (deleted)")
	if err := errors.Join(c.Reexec(""), c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, shell+" (deleted)")
	// 3. Back to a path. The descriptor alone keeps no holder.
	if err := errors.Join(c.Program("/bin/bash"), c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, "/bin/bash")
	if _, err := c.Get("program/previous"); err != nil {
		t.Error(err)
	}
	syscall.Kill(old, syscall.SIGTERM)
}
