package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// handOverMode is the argument with which kurid asks another kurid to end, for kurid-handover.service. systemd stops that unit
// before it touches kurid.service. So the process that ends is still the main process of a unit that runs, and systemd
// accepts another one (bowOut) also in versions that do not while they stop a unit, such as 252.
const handOverMode = "hand-over"

// leftName is the name of a kurid's process (/proc/PID/comm) when another may be started, and this one goes on with what is
// in flight. At most 15 bytes.
const leftName = "kurid-leaves"

// handOverLimit is how long a kurid may take from TERM to its end, or to that name.
const handOverLimit = 30 * time.Second

// asked is the file that is there while a kurid is asked to hand over. It tells that one that systemd is about to stop its unit.
func asked(pid int) string { return fmt.Sprintf("/run/kurid-hand-over.%d", pid) }

// handOver asks the kurid with that process id to end, and returns when another may be started. "0" is nobody, as systemd
// tells it; so is a process that is not a kurid of this node any more.
func handOver(id string) error {
	pid, err := strconv.Atoi(id)
	if err != nil || pid < 0 {
		return fault.New(fault.Invalid, "hand over: %q is not a process id", id)
	}
	if pid == 0 || !isKurid(pid) {
		return nil
	}
	if err := os.WriteFile(asked(pid), nil, 0o600); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	defer os.Remove(asked(pid))
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(pidfd)
		err = unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask process %d to end: %w", pid, err)
	}
	for limit := time.Now().Add(handOverLimit); time.Now().Before(limit); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10)
		if err == nil && n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		}
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(name)) == leftName {
			return nil
		}
	}
	return fault.New(fault.Unavailable, "process %d was asked to end, and owns its directories after %s", pid, handOverLimit)
}

// rename gives this process another name.
func rename(name string) error { return os.WriteFile("/proc/self/comm", []byte(name), 0) }
