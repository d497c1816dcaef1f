package server

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// A panic in a goroutine of a session ends neither the keeper nor another session, and the deferred
// calls of the goroutine run.
func TestAPanicEndsItsSessionOnly(t *testing.T) {
	s := &Server{}
	ctx, cancel := context.WithCancel(t.Context())
	s.serving(func() {
		defer cancel()
		panic("a bug")
	})
	<-ctx.Done()
	other := make(chan struct{})
	s.serving(func() { close(other) })
	<-other
	s.sessions.Wait()
}

// started returns an execution with a sleeping process, as startExec leaves it.
func started(t *testing.T, s *Server) *execution {
	t.Helper()
	cmd := exec.Command("sleep", "4360")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	x := &execution{running: &oci.Running{Pid: cmd.Process.Pid}, pid: cmd.Process.Pid, stdio: &stdio{},
		ended: make(chan struct{})}
	s.reaper.mine(x.pid)
	return x
}

// gone reports whether a child no longer exists, whoever reaped it.
func gone(pid int) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			return true
		}
	}
	return false
}

// The process of a session that panics is killed and reaped, wherever the bug is.
func TestAPanicKillsWhatWasExecuted(t *testing.T) {
	s := &Server{reaper: newReaper()}
	go s.reaper.run()
	defer s.reaper.stop()

	// A panic in the session: it has no connection.
	x := started(t, s)
	s.serving(func() { s.watchExec(x) })
	s.serving(func() {
		defer s.stop(x)
		x.stdio.handOver(nil, nil)
	})
	s.sessions.Wait()
	if !gone(x.pid) || !x.reaped || x.code != 128+9 {
		t.Errorf("the session panics: reaped %t, code %d", x.reaped, x.code)
	}

	// A panic in the watcher of a live process: it has nothing to wait for.
	x = started(t, s)
	running, pid := x.running, x.pid
	s.reaper.forget(pid)
	x.running, x.pid = nil, -1
	s.watchExec(x)
	x.running, x.pid = running, pid
	s.serving(func() {
		defer s.stop(x)
		if err := s.await(t.Context(), x); err == nil || !strings.Contains(err.Error(), "a bug in Kuri") {
			t.Errorf("await: %v", err)
		}
	})
	s.sessions.Wait()
	if !gone(x.pid) || x.reaped {
		t.Errorf("what waits for it panics: reaped %t", x.reaped)
	}
}

// The exit of a container is reported and its process reaped, whichever step panics.
func TestAPanicInWhatWatchesAContainer(t *testing.T) {
	s := &Server{reaper: newReaper(), events: newEvents(), rest: time.NewTimer(time.Hour)}
	defer s.rest.Stop()
	go s.reaper.run()
	defer s.reaper.stop()
	cmd := exec.Command("sh", "-c", "read line; exit 3")
	end, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.reaper.mine(cmd.Process.Pid)
	pidfd, err := process.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	end.Close() // not earlier: the reaper collects unmarked zombies
	c := &container{
		id: "broken", bundle: t.TempDir(), rec: containerRecord{State: api.State_RUNNING}, pidfd: pidfd,
		exited:  make(chan struct{}),
		made:    &oci.Created{Pid: cmd.Process.Pid}, // without a cgroup
		outputs: []*tap{nil},                        // and with an output that cannot be finished
	}
	s.watch(c)
	select {
	case <-c.exited:
	default:
		t.Error("who waits for it waits for good")
	}
	if exit, err := keeper.ReadExit(c.bundle); err != nil || exit.Code != 3 || c.exit.Code != 3 ||
		c.currentState() != api.State_EXITED || len(s.events.ring) != 1 {
		t.Errorf("recorded is %+v, %v; the state is %s; %d events", exit, err, c.currentState(), len(s.events.ring))
	}
	if !gone(c.made.Pid) {
		t.Error("its process is not reaped")
	}
}

// A verb of the protocol that panics returns an error.
func TestAPanicInAVerbIsItsError(t *testing.T) {
	w := &wire{} // without a server
	_, err := contain(t.Context(), nil, nil, func(ctx context.Context, _ func(any) error) (any, error) {
		return w.Start(ctx, &api.StartRequest{Id: "x"})
	})
	if err == nil || !strings.Contains(err.Error(), "a bug in Kuri") {
		t.Errorf("%v", err)
	}
}

// A listener that panics is detached; the others get all of the output.
func TestAPanicInAListenerIsItsOwn(t *testing.T) {
	broken, _, err := newListener(true)
	if err != nil {
		t.Fatal(err)
	}
	broken.close()
	broken.pipes = nil
	whole, theirs, err := newListener(true)
	if err != nil {
		t.Fatal(err)
	}
	defer whole.close()
	defer theirs[0].Close()
	var a fanOut
	a.join(broken)
	a.join(whole)
	a.write("stdout", []byte("one"))
	a.write("stdout", []byte("two"))
	select {
	case <-broken.late:
	default:
		t.Error("it is not detached")
	}
	heard := make([]byte, 16)
	if n, err := theirs[0].Read(heard); string(heard[:n]) != "onetwo" {
		t.Errorf("%q, %v", heard[:n], err)
	}
}
