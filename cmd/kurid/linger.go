package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/server"
)

// pendingCalls are the calls in flight of a daemon that has already closed everything that owns
// records. Another daemon may be serving.
type pendingCalls struct {
	server *server.Server
	keeper *keeper.Client // for commands that still run
}

// finish answers the calls.
func (r *pendingCalls) finish() {
	n := r.server.Released()
	_, err := os.Stat(handOverFile(os.Getpid()))
	handsOver := err == nil
	if n > 0 {
		slog.Info("kurid answers its calls in flight; another kurid may start", "requests", n)
	}
	if n > 0 || handsOver {
		if err := replaceMainPID(handsOver); err != nil {
			slog.Warn("systemd may not start the next kurid until this one has answered its calls in flight", "err", err)
		}
		if err := rename(leavingName); err != nil {
			slog.Warn("kurid-handover.service may wait until this kurid has answered its calls in flight", "err", err)
		}
	}
	r.server.Wait()
	r.keeper.Close()
}

// standInMode is the argument with which kurid is a placeholder main process: see replaceMainPID.
const standInMode = "stand-in"

// replaceMainPID lets systemd start the next kurid while this process still runs. With
// KillMode=process a unit has stopped when its main process has exited. So it makes a placeholder
// process, a child of systemd, the main process. The placeholder exits as soon as systemd has
// accepted it. With stay it waits until systemd, which is about to stop the unit, kills it: if it
// exited before, systemd would restart the unit after RestartSec. Without systemd replaceMainPID
// does nothing.
func replaceMainPID(stay bool) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	// 1. Start the placeholder as a sibling. It exits when this process closes the pipe, or at stayLimit.
	waits, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer end.Close()
	defer waits.Close()
	args := []string{"kurid", standInMode}
	if stay {
		args = append(args, "stay")
	}
	child, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
		Dir: "/", Files: []*os.File{waits, nil, nil}, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT},
	})
	if err != nil {
		return fmt.Errorf("start a placeholder main process: %w", err)
	}
	defer child.Release()

	// 2. Make it the main process, and wait until systemd has read that.
	if _, err := daemon.SdNotify(false, fmt.Sprintf("MAINPID=%d", child.Pid)); err != nil {
		return fmt.Errorf("tell systemd the new main process: %w", err)
	}
	return notifyBarrier()
}

// barrierLimit bounds the time that systemd may take to read notifications.
const barrierLimit = 5 * time.Second

// notifyBarrier waits until systemd has read all notifications, like sd_notify_barrier(3).
func notifyBarrier() error {
	read, held, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(held.Fd())),
			&unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}, 0)
		unix.Close(fd)
	}
	held.Close()
	if err != nil {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	read.SetReadDeadline(time.Now().Add(barrierLimit))
	if _, err := read.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	return nil
}

// stayLimit is when a placeholder exits by itself because nobody has stopped the unit. systemd then starts kurid again.
const stayLimit = 10 * time.Second

// standIn is the placeholder main process.
func standIn(stay bool) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	if stay {
		time.Sleep(stayLimit)
	}
}
