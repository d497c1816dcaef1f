package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
)

// replaceLimit bounds the time in which the replaced daemon must unlock its directories. It first
// answers calls that end soon.
const replaceLimit = 30 * time.Second

// lockedError reports that another daemon has locked a directory. Its kind is Precondition.
type lockedError struct {
	dir string
	pid string // of that daemon; "(unknown)" if it cannot be found
}

func (e *lockedError) Error() string {
	return fmt.Sprintf("%s belongs to another kurid, process %s; take over from it with --replace, stop it, "+
		"or give this kurid its own --root, --state and container_root", e.dir, e.pid)
}

// Unwrap returns the error's kind.
func (e *lockedError) Unwrap() error { return fault.Precondition }

// lockOwn locks all directories that one daemon owns. With cfg.Replace it first asks a daemon that
// has locked them to end. That daemon's sockets stay open for this one, and its calls in flight are
// answered.
func lockOwn(ctx context.Context, cfg config.Config) (unlock func(), err error) {
	unlock, err = lockAll(ownedDirs(cfg))
	locked := (*lockedError)(nil)
	if !cfg.Replace || !errors.As(err, &locked) {
		return unlock, err
	}
	if err := endDaemon(locked); err != nil {
		return nil, err
	}
	asked := *locked
	for limit := time.Now().Add(replaceLimit); time.Now().Before(limit) &&
		ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		unlock, err = lockAll(ownedDirs(cfg))
		switch {
		case err == nil:
			slog.Info("this kurid has taken over", "from", asked.pid)
			return unlock, nil
		case !errors.As(err, &locked):
			return nil, err
		case locked.pid != asked.pid:
			return nil, fmt.Errorf("process %s was asked to end, but now %w", asked.pid, locked)
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, fault.New(fault.Unavailable, "process %s was asked to end, but has not unlocked %s within %s", asked.pid,
		asked.dir, replaceLimit)
}

// lockAll locks all directories, or none of them.
func lockAll(dirs []string) (unlock func(), err error) {
	var taken []func()
	unlock = func() {
		for _, release := range taken {
			release()
		}
	}
	for _, dir := range dirs {
		release, err := lock(dir)
		if err != nil {
			unlock()
			return nil, err
		}
		taken = append(taken, release)
	}
	return unlock, nil
}

// endDaemon sends SIGTERM to the daemon that has the lock.
func endDaemon(d *lockedError) error {
	pid, err := strconv.Atoi(d.pid)
	if err != nil {
		return fault.New(fault.Precondition,
			"%s belongs to another kurid whose process id is unknown here; stop that kurid first", d.dir)
	}
	pidfd, err := process.Open(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has exited
	}
	if err != nil {
		return fmt.Errorf("ask process %d to end: %w", pid, err)
	}
	defer pidfd.Close()
	if now := new(lockedError); !errors.As(probeLock(d.dir), &now) || now.pid != d.pid {
		return nil // the process id was reused
	}
	slog.Info("asking another kurid to end, to take over from it", "pid", pid, "dir", d.dir, "our_pid", os.Getpid())
	if err := pidfd.Signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("ask process %d to end: %w", pid, err)
	}
	return nil
}

// probeLock returns lock's error without keeping the lock.
func probeLock(dir string) error {
	unlock, err := lock(dir)
	if err == nil {
		unlock()
	}
	return err
}
