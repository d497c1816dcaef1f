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
)

// replaceLimit is how long the daemon that is replaced may take to give its directories up. It answers first what is in
// flight.
const replaceLimit = 30 * time.Second

// lockedError says that another daemon has a directory. Its kind is Precondition.
type lockedError struct {
	dir string
	pid string // of that daemon; "(unknown)" where that cannot be told
}

func (e *lockedError) Error() string {
	return fmt.Sprintf("%s belongs to another kurid, process %s; take over from that one with --replace, end it, "+
		"or give this one --root, --state and container_root of its own", e.dir, e.pid)
}

// Unwrap gives it its kind.
func (e *lockedError) Unwrap() error { return fault.Precondition }

// lockOwn takes all directories that no other daemon may use. With cfg.Replace a daemon that has them is asked to end first;
// its sockets stay open for this one, and what it has in flight is answered.
func lockOwn(ctx context.Context, cfg config.Config) (unlock func(), err error) {
	unlock, err = lockAll(own(cfg))
	locked := (*lockedError)(nil)
	if !cfg.Replace || !errors.As(err, &locked) {
		return unlock, err
	}
	if err := endDaemon(locked); err != nil {
		return nil, err
	}
	asked := *locked
	for limit := time.Now().Add(replaceLimit); time.Now().Before(limit) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		unlock, err = lockAll(own(cfg))
		switch {
		case err == nil:
			slog.Info("this kurid has taken over", "from", asked.pid)
			return unlock, nil
		case !errors.As(err, &locked):
			return nil, err
		case locked.pid != asked.pid:
			return nil, fmt.Errorf("process %s was asked to end, and now %w", asked.pid, locked)
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, fault.New(fault.Unavailable, "process %s was asked to end and has not given %s up within %s", asked.pid, asked.dir, replaceLimit)
}

// lockAll takes all directories, or none.
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

// endDaemon asks a daemon to end.
func endDaemon(d *lockedError) error {
	pid, err := strconv.Atoi(d.pid)
	if err != nil {
		return fault.New(fault.Precondition, "%s belongs to another kurid whose process is not known here; end that one first", d.dir)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil // it has ended
	}
	if err != nil {
		return fmt.Errorf("ask process %d to end: %w", pid, err)
	}
	defer unix.Close(pidfd)
	if now := new(lockedError); !errors.As(probeLock(d.dir), &now) || now.pid != d.pid {
		return nil // that process is another one by now
	}
	slog.Info("another kurid is asked to end, so that this one takes over", "pid", pid, "dir", d.dir, "our_pid", os.Getpid())
	if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("ask process %d to end: %w", pid, err)
	}
	return nil
}

// probeLock returns the error of lock, and keeps no lock.
func probeLock(dir string) error {
	unlock, err := lock(dir)
	if err == nil {
		unlock()
	}
	return err
}
