package keeper

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A keeper that appears while this client fails to start one is waited for.
func TestExpectedWaitsForAKeeperThatAppears(t *testing.T) {
	dir := t.TempDir()
	c := Connect(dir)
	starts := 0
	c.start = func(context.Context) error {
		starts++
		return errors.New("the holder has died before its keeper could begin")
	}
	time.AfterFunc(100*time.Millisecond, func() {
		l, err := net.Listen("unix", filepath.Join(dir, "keeper.sock"))
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { l.Close() })
	})
	if !c.expected(t.Context()) || starts != 1 {
		t.Errorf("no keeper was expected, after %d starts", starts)
	}

	// Where none appears, those who wait for the first attempt make no second one.
	c = Connect(t.TempDir())
	starts = 0
	c.start = func(context.Context) error { starts++; return errors.New("no program") }
	first, again := c.expected(t.Context()), c.expected(t.Context())
	if first || again || starts != 1 {
		t.Errorf("a keeper was expected (%t, %t), or started %d times", first, again, starts)
	}
}

func TestTakesHangUp(t *testing.T) {
	// Below nohup(1), a shell would inherit the ignored signal, which it cannot trap.
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGHUP)
	defer signal.Stop(heard)
	for script, want := range map[string]bool{
		"echo; read x":               false,
		"trap '' HUP; echo; read x":  false, // it ignores the signal
		"trap : HUP; echo; read x":   true,
		"trap : TERM; echo; read x":  false,
		"trap : HUP; echo; exec cat": false,
	} {
		cmd := exec.Command("/bin/sh", "-c", script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		bufio.NewReader(out).ReadString('\n')
		got := takesHangUp(cmd.Process.Pid)
		for limit := time.Now().Add(10 * time.Second); got != want && time.Now().Before(limit); time.Sleep(time.Millisecond) {
			got = takesHangUp(cmd.Process.Pid) // the exec comes a moment later
		}
		if got != want {
			t.Errorf("%s: %t", script, got)
		}
		in.Close()
		cmd.Wait()
	}
}
