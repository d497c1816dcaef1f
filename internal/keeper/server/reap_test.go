package server

import (
	"os/exec"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/process"
)

// ended starts a child that ends at once, and returns when it is a zombie.
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
		when, err := process.StartTime(cmd.Process.Pid)
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
