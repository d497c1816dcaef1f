package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
)

// handOverMode is the argument with which kurid-handover.service runs kurid to end another kurid.
// systemd stops that unit before kurid.service. kurid.service is still active then, so systemd
// accepts another main process (replaceMainPID). Versions such as 252 do not accept one while they
// stop a unit.
const handOverMode = "hand-over"

// leavingName is the process name (/proc/PID/comm) of a kurid that only answers calls in flight;
// another kurid may start. The kernel keeps 15 bytes of it.
const leavingName = "kurid-leaves"

// handOverLimit bounds the time from SIGTERM until a kurid exits or takes leavingName.
const handOverLimit = 30 * time.Second

// handOverFile is the path of a file that exists while a kurid is asked to hand over. It tells that
// kurid that systemd is about to stop its unit.
func handOverFile(pid int) string { return fmt.Sprintf("/run/kurid-hand-over.%d", pid) }

// handOver sends SIGTERM to the kurid with the process id, and returns when another kurid may
// start. It does nothing for "0", systemd's value for no main process, and for a process that is
// not a kurid of this node.
func handOver(id string) error {
	pid, err := strconv.Atoi(id)
	if err != nil || pid < 0 {
		return fault.New(fault.Invalid, "hand over: %q is not a process id", id)
	}
	if pid == 0 || !isKurid(pid) {
		return nil
	}
	if err := os.WriteFile(handOverFile(pid), nil, 0o600); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	defer os.Remove(handOverFile(pid))
	pidfd, err := process.Open(pid)
	if err == nil {
		defer pidfd.Close()
		err = pidfd.Signal(unix.SIGTERM)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask process %d to end: %w", pid, err)
	}
	for limit := time.Now().Add(handOverLimit); time.Now().Before(limit); {
		if pidfd.Ends(10*time.Millisecond) || process.Name(pid) == leavingName {
			return nil
		}
	}
	return fault.New(fault.Unavailable, "process %d was asked to end, but still owns its directories after %s", pid,
		handOverLimit)
}

// rename sets the name of this process.
func rename(name string) error { return os.WriteFile("/proc/self/comm", []byte(name), 0) }
