package process

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// start starts a child that reads its stdin, and returns what ends it.
func start(t *testing.T, script string) (cmd *exec.Cmd, end func()) {
	t.Helper()
	cmd = exec.Command("sh", "-c", script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, func() { stdin.Close() }
}

func open(t *testing.T, pid int) *Pidfd {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestAPidfdTellsTheEndAndLeavesItToBeReaped(t *testing.T) {
	cmd, end := start(t, "read line; exit 3")
	p := open(t, cmd.Process.Pid)
	if p.HasEnded() || p.Ends(0) || HasEnded(cmd.Process.Pid) || Exiting(cmd.Process.Pid) {
		t.Fatal("it has ended before it could")
	}
	end()
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if !p.HasEnded() || !p.Ends(time.Minute) || !HasEnded(cmd.Process.Pid) || !Exiting(cmd.Process.Pid) {
		t.Error("its end is not told by all")
	}
	if pid := Zombie(); pid != cmd.Process.Pid {
		t.Errorf("zombie %d, want %d", pid, cmd.Process.Pid)
	}
	for range 2 {
		if code, err := PeekExit(cmd.Process.Pid); err != nil || code != 3 {
			t.Errorf("exit code %d, %v, want 3", code, err)
		}
	}
	if ws, err := Reap(cmd.Process.Pid); err != nil || ExitCode(ws) != 3 {
		t.Errorf("reaped with %d, %v, want 3", ExitCode(ws), err)
	}
	if _, err := Reap(cmd.Process.Pid); !errors.Is(err, unix.ECHILD) {
		t.Errorf("reaped twice: %v", err)
	}
	if !p.HasEnded() || !HasEnded(cmd.Process.Pid) || !Exiting(cmd.Process.Pid) {
		t.Error("a process that was reaped is there")
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Errorf("signal a process that was reaped: %v", err)
	}
}

func TestSignal(t *testing.T) {
	cmd, _ := start(t, "read line")
	p := open(t, cmd.Process.Pid)
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !p.Ends(time.Minute) {
		t.Fatal("it does not end")
	}
	const want = 128 + int(unix.SIGTERM)
	if code, err := PeekExit(cmd.Process.Pid); err != nil || code != want {
		t.Errorf("exit code %d, %v, want %d", code, err, want)
	}
	if ws, err := Reap(cmd.Process.Pid); err != nil || ExitCode(ws) != want {
		t.Errorf("reaped with %d, %v, want %d", ExitCode(ws), err, want)
	}
}

func TestCloseEndsAWait(t *testing.T) {
	cmd, _ := start(t, "read line")
	p := open(t, cmd.Process.Pid)
	waited := make(chan error)
	go func() { waited <- p.Wait() }()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err == nil {
		t.Error("a closed pidfd tells of an end")
	}
	if !p.HasEnded() || p.Ends(0) {
		t.Error("a closed pidfd: its process has ended for HasEnded, and does not end for Ends")
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Errorf("signal by a closed pidfd: %v", err)
	}
	if HasEnded(cmd.Process.Pid) {
		t.Error("it was killed by a closed pidfd")
	}
	if err := p.Control(func(int) error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("control of a closed pidfd: %v", err)
	}
}

// A process ID that is used again is not taken for the process that is meant.
func TestReopen(t *testing.T) {
	cmd, _ := start(t, "read line")
	started, err := StartTime(cmd.Process.Pid)
	if err != nil || started == "" {
		t.Fatalf("started %q, %v", started, err)
	}
	p, err := Reopen(cmd.Process.Pid, started)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.HasEnded() {
		t.Error("it has ended")
	}
	for _, other := range []string{"", "1", started + "0"} {
		if _, err := Reopen(cmd.Process.Pid, other); !errors.Is(err, fault.NotFound) {
			t.Errorf("a process that was started at %s is taken for one started at %q: %v", started, other, err)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := Reopen(cmd.Process.Pid, started); !errors.Is(err, fault.NotFound) {
		t.Errorf("reopen a process that was reaped: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("open a process that was reaped: %v", err)
	}
}

func TestExitStatus(t *testing.T) {
	cmd, end := start(t, "read line; exit 5")
	p := open(t, cmd.Process.Pid)
	if _, err := p.ExitStatus(); errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		t.Skipf("SKIP: Linux before 6.13: %v", err)
	} else if !errors.Is(err, ErrNotReaped) {
		t.Errorf("of a process that runs: %v", err)
	}
	end()
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	ws, err := p.ExitStatus()
	if errors.Is(err, unix.ESRCH) {
		t.Skipf("SKIP: Linux before 6.15: %v", err)
	}
	if err != nil || ExitCode(ws) != 5 {
		t.Errorf("exit code %d, %v, want 5", ExitCode(ws), err)
	}
	if _, err := (*Pidfd)(nil).ExitStatus(); err == nil {
		t.Error("the exit status of no process is known")
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 1 7 7 0 -1 4194564 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"
	for _, name := range []string{"sh", "a b", "a) Z 1 (", ""} {
		stat, err := parseStat([]byte("7 (" + name + ")" + rest + "\n"))
		if want := (Stat{State: 'S', Flags: 4194564, Started: "4711"}); err != nil || stat != want {
			t.Errorf("of the name %q: %+v, %v, want %+v", name, stat, err, want)
		}
	}
	for _, bad := range []string{"", "7 (sh)", "7 (sh) S 1 7", "7 (sh) S 1 7 7 0 -1 x 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"} {
		if stat, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, stat)
		}
	}
}

// A process of which nothing can be read for want of a descriptor is not taken for one that is
// gone: execs in a container that runs would be told that it has exited, and the next keeper would
// not find the container's process.
func TestAProcessIsNotGoneForWantOfADescriptor(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	gone := Exiting(os.Getpid()) || HasEnded(os.Getpid())
	when, err := StartTime(os.Getpid())
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	if gone || when != "" || !errors.Is(err, unix.EMFILE) {
		t.Errorf("gone: %v, started: %q, %v", gone, when, err)
	}
}

func TestDescribe(t *testing.T) {
	cmd, _ := start(t, "read line")
	if text := Describe(cmd.Process.Pid); !strings.Contains(text, " (sh), state ") {
		t.Errorf("%q", text)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if Name(cmd.Process.Pid) != "" || State(cmd.Process.Pid) != "" {
		t.Error("a process that was reaped has a name or a state")
	}
	if text := Describe(cmd.Process.Pid); !strings.HasSuffix(text, ` (), state unknown, waiting in ""`) {
		t.Errorf("of one that is gone: %q", text)
	}
}

func TestBootID(t *testing.T) {
	if boot, err := BootID(); err != nil || len(boot) != 36 {
		t.Errorf("%q, %v", boot, err)
	}
}
