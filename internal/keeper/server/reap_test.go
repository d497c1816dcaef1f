package server

import (
	"os/exec"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/process"
)

// ended starts a child that exits at once, and returns when it is a zombie.
func ended(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := process.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	if err := pidfd.Wait(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// On a slow machine, children that libcontainer is about to wait for must not be reaped as strays.
func TestAPassingChildOfASlowStartIsNotReaped(t *testing.T) {
	r := newReaper()
	go r.run()
	defer r.stop()
	release := r.hold()
	cmd := ended(t)
	time.Sleep(6 * lookAgain) // it is examined again and again
	later := r.hold()         // another start changes nothing
	defer later()
	time.Sleep(2 * lookAgain)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the one who started it cannot wait for it: %v", err)
	}
	release()
}

// Strays are reaped even if processes are being started all the time.
func TestAStrayIsReapedWhileOthersAreStarted(t *testing.T) {
	r := newReaper()
	first := r.hold()
	cmd := ended(t)
	go r.run()
	defer r.stop()
	there := func() bool {
		when, err := process.StartTime(cmd.Process.Pid)
		return err != nil || when != ""
	}
	if !there() {
		t.Fatal("it is reaped while the start goes on in which it may have begun")
	}
	time.Sleep(2 * lookAgain)
	defer r.hold()() // it begins after the stray was seen
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

// The reaper leaves a marked child to its waiter. If the waiter fails, the reaper reaps the child once it is forgotten.
func TestAMarkedChildIsReapedOnceForgotten(t *testing.T) {
	r := newReaper()
	cmd := ended(t)
	pid := cmd.Process.Pid
	r.mine(pid)
	go r.run()
	defer r.stop()
	time.Sleep(3 * lookAgain)
	if when, err := process.StartTime(pid); err != nil || when == "" {
		t.Fatalf("a marked child was reaped: %q, %v", when, err)
	}
	r.forget(pid)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(lookAgain / 10) {
		if when, err := process.StartTime(pid); err == nil && when == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a forgotten child is not reaped")
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was there to be waited for")
	}
}
