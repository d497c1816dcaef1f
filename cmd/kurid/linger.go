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

// rest is what is left of a daemon that has closed all that owns records: the requests that it has still to answer. Another
// daemon may serve already.
type rest struct {
	server *server.Server
	keeper *keeper.Client // of the commands that still run
}

// finish answers what there is to answer.
func (r *rest) finish() {
	n := r.server.Released()
	_, err := os.Stat(asked(os.Getpid()))
	handsOver := err == nil
	if n > 0 {
		slog.Info("kurid answers what is in flight; another may be started", "requests", n)
	}
	if n > 0 || handsOver {
		if err := bowOut(handsOver); err != nil {
			slog.Warn("systemd may wait with the next kurid until this one has answered what is in flight", "err", err)
		}
		if err := rename(leftName); err != nil {
			slog.Warn("who waits to start the next kurid waits until this one has answered what is in flight", "err", err)
		}
	}
	r.server.Wait()
	r.keeper.Close()
}

// standInMode is the argument with which kurid is a process that stands in for another: see bowOut.
const standInMode = "stand-in"

// bowOut makes systemd take the daemon for ended, so that it starts the next one, while this process goes on. For systemd a
// unit has stopped when its main process has ended (KillMode=process): that is now a child of systemd's, which ends as soon
// as systemd knows of it. With stay it is ended by systemd, which is about to stop the unit: if it ended before, the unit would
// be one that restarts, and systemd would wait RestartSec. Without systemd bowOut does nothing.
func bowOut(stay bool) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	// 1. Our parent's child, which ends when we close the pipe, or at its limit.
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
		return fmt.Errorf("start a process that stands in for this one: %w", err)
	}
	defer child.Release()

	// 2. The main process, as soon as systemd has read that it is.
	if _, err := daemon.SdNotify(false, fmt.Sprintf("MAINPID=%d", child.Pid)); err != nil {
		return fmt.Errorf("tell systemd of another main process: %w", err)
	}
	return notifyBarrier()
}

// barrierLimit is how long systemd may take to read what it was told.
const barrierLimit = 5 * time.Second

// notifyBarrier returns when systemd has read all notifications, as sd_notify_barrier(3) does.
func notifyBarrier() error {
	read, held, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(held.Fd())), &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}, 0)
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

// stayLimit is when a process that stands in ends by itself, if nobody stops the unit after all: then systemd starts a kurid anew.
const stayLimit = 10 * time.Second

// standIn is the process that stands in.
func standIn(stay bool) {
	io.Copy(io.Discard, os.Stdin)
	if stay {
		time.Sleep(stayLimit)
	}
}
