package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/record"
)

// TakingOver is the record of a take-over from a keeper without a holder (kuri-keeper --take-over).
// It exists from before the first step until after the last. If that process is killed,
// [settleTakeOver] finishes or reverts the take-over.
type TakingOver struct {
	Pid     int      `json:"pid"`     // of the old keeper
	Born    string   `json:"born"`    // its start time, field 22 of proc_pid_stat(5)
	Records []string `json:"records"` // paths of the records written for the next keeper
	Frozen  []Thaw   `json:"frozen"`  // cgroups that the take-over freezes
	// Ending is set once everything that the next keeper needs is recorded and held: the old one
	// must end.
	Ending bool `json:"ending"`

	state string
	lock  *os.File
}

// Thaw is the write that thaws a frozen cgroup.
type Thaw struct {
	File string `json:"file"`
	Text string `json:"text"` // to write to File
}

const takingOverFormat = 1

func takingOverPath(stateDir string) string {
	return filepath.Join(stateDir, "keeper", "take-over.json")
}

// BeginTakeOver records that the old keeper is being taken over, and holds a lock while this
// process lives. The error is of kind Exists if another process holds it.
func BeginTakeOver(stateDir string, pid int, records []string) (*TakingOver, error) {
	t := &TakingOver{Pid: pid, Records: records, state: stateDir}
	var err error
	if t.Born, err = startedAt(pid); err != nil {
		return nil, err
	}
	if t.lock, err = lockTakeOver(stateDir); err != nil {
		return nil, err
	}
	return t, t.Write()
}

// Write writes the record after a change of t.
func (t *TakingOver) Write() error { return record.Write(takingOverPath(t.state), takingOverFormat, t) }

// End removes the record of a complete take-over.
func (t *TakingOver) End() {
	if err := os.Remove(takingOverPath(t.state)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Error("the record of a take-over stays", "err", err)
	}
	t.lock.Close()
}

// lockTakeOver locks take-overs and their settlement. The lock file is never removed.
func lockTakeOver(stateDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(stateDir, "keeper", "take-over.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fault.New(fault.Exists, "the keeper of %s is being taken over by another process", stateDir)
	}
	return f, nil
}

// readTakeOver returns the locked record of a take-over whose process has ended, or nil if there is
// none. It waits for a take-over in progress until ctx ends; the error is then of kind Exists.
func readTakeOver(ctx context.Context, stateDir string) (*TakingOver, error) {
	for {
		if !exists(takingOverPath(stateDir)) {
			return nil, nil
		}
		lock, err := lockTakeOver(stateDir)
		switch {
		case err == nil:
			t := &TakingOver{state: stateDir, lock: lock}
			if err = record.Read(takingOverPath(stateDir), takingOverFormat, t); err == nil {
				return t, nil
			}
			lock.Close()
			if errors.Is(err, fault.NotFound) {
				return nil, nil
			}
			return nil, err
		case !errors.Is(err, fault.Exists):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ThawTakenOver thaws the containers that a killed take-over has frozen.
func ThawTakenOver(stateDir string) {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	t, err := readTakeOver(now, stateDir)
	if errors.Is(err, fault.Exists) { // it is in progress and thaws them itself
		return
	}
	if err != nil {
		slog.Error("the record of a take-over cannot be read: its containers may be frozen", "err", err)
	}
	if t != nil {
		t.thaw()
		t.lock.Close() // kurid needs the record
	}
}

func (t *TakingOver) thaw() {
	for _, f := range t.Frozen {
		if err := os.WriteFile(f.File, []byte(f.Text), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			slog.Error("a container that a take-over froze cannot be thawed", "file", f.File, "err", err)
		}
	}
}

// settleTakeOver settles a take-over that was killed, and thaws its containers. If the take-over
// had everything it needed, it is finished. Otherwise it is reverted, so that it can be tried
// again, and the old keeper continues unchanged. settleTakeOver waits for a take-over in progress.
func settleTakeOver(ctx context.Context, stateDir string) error {
	wait, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	t, err := readTakeOver(wait, stateDir)
	if err != nil || t == nil {
		return err
	}
	slog.Warn("the take-over from the keeper of an older release was interrupted", "pid", t.Pid, "finish", t.Ending)
	defer t.thaw() // not before the old keeper ends, if it must end: it would read more output and lose it
	old, err := process.Reopen(t.Pid, t.Born)
	if err != nil { // it has exited
		t.End()
		return nil
	}
	defer old.Close()
	if t.Ending {
		if err := endNow(old); err != nil {
			return fmt.Errorf("end the keeper of an older release, process %d: %w", t.Pid, err)
		}
		t.End()
		return nil
	}
	if err := endHolder(stateDir); err != nil {
		return err
	}
	for _, path := range t.Records {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take back a take-over that was cut off: %w", err)
		}
	}
	t.End()
	return nil
}

// endHolder ends the holder of an interrupted take-over. That holder has only duplicates. It may be
// ending already, without its socket: while it runs, no other holder can start.
func endHolder(stateDir string) error {
	h := holder.Connect(stateDir)
	defer h.Close()
	holders := livingHolders(stateDir)
	if info, err := h.Info(); err == nil && !slices.Contains(holders, info.Pid) {
		holders = append(holders, info.Pid)
	}
	for _, pid := range holders {
		pidfd, err := process.Open(pid)
		if err != nil {
			continue // it has exited
		}
		err = endNow(pidfd)
		pidfd.Close()
		if err != nil {
			return fmt.Errorf("end the holder, process %d: %w", pid, err)
		}
	}
	return nil
}

// endNow kills a process and waits until it has exited.
func endNow(pidfd *process.Pidfd) error {
	if err := pidfd.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if !pidfd.Ends(checkLimit) {
		return errors.New("it was killed and does not end")
	}
	return nil
}

// startedAt is [process.StartTime]. The error is of kind NotFound if the process does not exist.
func startedAt(pid int) (string, error) {
	started, err := process.StartTime(pid)
	if err == nil && started == "" {
		err = errors.New("it has ended")
	}
	if err != nil {
		return "", fault.New(fault.NotFound, "look at process %d: %w", pid, err)
	}
	return started, nil
}

// takenOver reports whether a failed take-over has nevertheless ended the old keeper: then the next
// one has everything it needs. Otherwise the old keeper continues.
func takenOver(ctx context.Context, stateDir string, pid int) bool {
	if err := settleTakeOver(ctx, stateDir); err != nil {
		slog.Error("a failed take-over cannot be reverted; the next start of kurid tries again", "err", err)
	}
	_, err := startedAt(pid)
	return err != nil
}
