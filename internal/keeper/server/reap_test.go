package server

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ended starts a child that ends at once, and returns when it is a zombie.
func ended(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := openPidfd(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	if err := awaitExit(pidfd); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// A slow machine must not make strays of the children that libcontainer is about to wait for.
func TestAPassingChildOfASlowStartIsNotReaped(t *testing.T) {
	r := newReaper()
	go r.run()
	defer r.stop()
	release := r.hold()
	cmd := ended(t)
	time.Sleep(6 * lookAgain) // it is seen again and again
	later := r.hold()         // and another start changes nothing
	defer later()
	time.Sleep(2 * lookAgain)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the one who started it cannot wait for it: %v", err)
	}
	release()
}

// On a node where something is always being started strays are reaped all the same.
func TestAStrayIsReapedWhileOthersAreStarted(t *testing.T) {
	r := newReaper()
	first := r.hold()
	cmd := ended(t)
	go r.run()
	defer r.stop()
	there := func() bool {
		when, err := born(cmd.Process.Pid)
		return err != nil || when != ""
	}
	if !there() {
		t.Fatal("it is reaped while the start goes on in which it may have begun")
	}
	time.Sleep(2 * lookAgain)
	defer r.hold()() // begins after the stray was seen
	first()
	for end := time.Now().Add(10 * time.Second); there(); time.Sleep(lookAgain / 10) {
		if time.Now().After(end) {
			t.Fatal("it is not reaped")
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was there to be waited for")
	}
}

// A process of which nothing can be read for want of a descriptor is not taken for one that is gone: execs in a container
// that runs would be told that it has exited, and the next keeper would not find the container's process.
func TestAProcessIsNotGoneForWantOfADescriptor(t *testing.T) {
	cmd := ended(t)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !exiting(cmd.Process.Pid) {
		t.Error("a process that was reaped is there")
	}
	var before unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	gone := exiting(os.Getpid())
	when, err := born(os.Getpid())
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	if gone || when != "" || !errors.Is(err, unix.EMFILE) {
		t.Errorf("gone: %v, born: %q, %v", gone, when, err)
	}
}
