package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/process"
)

// Running is a process that Exec has started.
//
// Unless libcontainer has started it, it waits at its start line: it executes its program when
// anyone writes a byte to Line. If every copy of Line is closed before, it exits with code 255
// without executing anything.
type Running struct {
	Pid     int                   // as seen from this process
	line    *os.File              // see Line
	failed  func(error) error     // classifies an error of the process
	process *libcontainer.Process // nil if the fork server has started it
	cgroup  cgroup.Group          // of the process and its children; the zero Group for none
	home    string                // directory of the container's cgroup, the parent of cgroup
}

// runningJSON is the encoding of a Running in a record.
type runningJSON struct {
	Pid    int          `json:"pid"`
	Cgroup cgroup.Group `json:"cgroup"`
	Home   string       `json:"home,omitempty"`
}

// MarshalJSON encodes a Running as part of a record.
func (r *Running) MarshalJSON() ([]byte, error) {
	return json.Marshal(runningJSON{r.Pid, r.cgroup, r.home})
}

// UnmarshalJSON decodes the output of MarshalJSON. The process is not a child of this one, so Wait
// cannot reap it.
func (r *Running) UnmarshalJSON(body []byte) error {
	var j runningJSON
	err := json.Unmarshal(body, &j)
	*r = Running{Pid: j.Pid, cgroup: j.Cgroup, home: j.Home}
	return err
}

// Wait waits for the process, reaps it and returns its exit code: 128 + n if signal n ended it. It
// blocks an OS thread, so it is best called after the process has ended.
func (r *Running) Wait() (int, error) {
	if r.process != nil {
		state, err := r.process.Wait()
		if state == nil {
			return 0, err
		}
		return process.ExitCode(unix.WaitStatus(state.Sys().(syscall.WaitStatus))), nil
	}
	status, err := process.Reap(r.Pid)
	if err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", r.Pid, err)
	}
	return process.ExitCode(status), nil
}
