package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Stat holds fields of proc_pid_stat(5).
type Stat struct {
	State   byte   // R, S, D, Z, …; 0 when the process is gone
	Flags   uint64 // PF_EXITING and others of the kernel's linux/sched.h
	Started string // clock ticks from boot to its start, as the kernel writes them
}

// The indices of fields of proc_pid_stat(5) behind the name, where the state, its third field, is the first.
const (
	stateField   = 0
	flagsField   = 9 - 3
	startedField = 22 - 3
)

// pfExiting is PF_EXITING of linux/sched.h.
const pfExiting = 0x4

// ReadStat reads the stat of a process. It returns the zero Stat for a process that is gone. An
// error means that /proc could not be read, for example for lack of a descriptor: the process may
// exist.
func ReadStat(pid int) (Stat, error) {
	body, err := readSmall(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Stat{}, nil
	}
	if err != nil {
		return Stat{}, err
	}
	return parseStat(body)
}

// readSmall reads a file of less than 4 KiB in /proc with three system calls. os.ReadFile takes
// eleven: it tries to poll the file, asks for its size and reads until the end.
func readSmall(path string) ([]byte, error) {
	fd, err := again(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	body := make([]byte, 4096)
	n, err := again(func() (int, error) { return unix.Read(fd, body) })
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return body[:n], nil
}

// again repeats a system call that a signal interrupts.
func again(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func parseStat(body []byte) (Stat, error) {
	// The name, in parentheses, may be anything.
	fields := strings.Fields(string(body[bytes.LastIndexByte(body, ')')+1:]))
	if len(fields) <= startedField {
		return Stat{}, fmt.Errorf("stat of a process: %q", body)
	}
	flags, err := strconv.ParseUint(fields[flagsField], 10, 64)
	if err != nil {
		return Stat{}, fmt.Errorf("stat of a process: flags: %w", err)
	}
	return Stat{State: fields[stateField][0], Flags: flags, Started: fields[startedField]}, nil
}

// StartTime returns when a process was started, in clock ticks since boot as the kernel writes
// them; "" when the process is gone. Together with its ID and the boot ID it identifies the
// process. An error means that /proc could not be read.
func StartTime(pid int) (string, error) {
	stat, err := ReadStat(pid)
	return stat.Started, err
}

// Exiting reports whether a process is exiting, or gone. It returns false if the stat cannot be read.
func Exiting(pid int) bool {
	stat, err := ReadStat(pid)
	return err == nil && (stat.State == 0 || stat.Flags&pfExiting != 0)
}

// HasEnded reports whether a process is a zombie, or gone. It returns false if the stat cannot be read.
func HasEnded(pid int) bool {
	stat, err := ReadStat(pid)
	return err == nil && (stat.State == 0 || stat.State == 'Z' || stat.State == 'X')
}

// Name returns the name of a process, see proc_pid_comm(5); "" when it is gone.
func Name(pid int) string {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(comm))
}

// State returns the state of a process in the kernel's words, "S (sleeping)" say; "" when it is gone.
func State(pid int) string {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, after, _ := strings.Cut(string(status), "\nState:")
	line, _, _ := strings.Cut(after, "\n")
	return strings.TrimSpace(line)
}

// WaitChannel returns the kernel function in which a process waits, see proc_pid_wchan(5); "0" or "" for none.
func WaitChannel(pid int) string {
	wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return string(wchan)
}

// Stuck returns the process for which the end of all has to wait: the first one in uninterruptible
// sleep (state D), else the first one. There must be one.
func Stuck(pids []int) int {
	for _, pid := range pids {
		if stat, err := ReadStat(pid); err == nil && stat.State == 'D' {
			return pid
		}
	}
	return pids[0]
}

// Describe names a process for people: its ID, name, state and wait channel.
func Describe(pid int) string {
	state := State(pid)
	if state == "" {
		state = "unknown"
	}
	return fmt.Sprintf("%d (%s), state %s, waiting in %q", pid, Name(pid), state, WaitChannel(pid))
}
