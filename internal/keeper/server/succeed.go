package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
)

// parent is the holder, the keeper's parent process.
type parent struct {
	pid   int
	pidfd *process.Pidfd
	argv  []string // its command line
}

// Environment variables that cmd/kuri-holder shares with the keeper.
const (
	holderPidEnv   = "_KURI_HOLDER_PID"   // pid of the holder that started the keeper
	holderStateEnv = "_KURI_HOLDER_STATE" // descriptor of the state that a new holder takes over
)

// findParent returns the holder that started this process, or nil if another process did. It is an
// error if the holder has already died: a client that finds neither a holder nor a keeper starts
// both.
func findParent() (*parent, error) {
	ppid := os.Getppid()
	told := os.Getenv(holderPidEnv)
	_ = os.Unsetenv(holderPidEnv)
	if told != "" && told != strconv.Itoa(ppid) {
		return nil, fault.New(fault.Unavailable, "the holder (pid %s) has died before its keeper could begin", told)
	}
	pidfd, err := process.Open(ppid)
	if err != nil {
		return nil, fmt.Errorf("watch the holder: %w", err)
	}
	argv, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", ppid))
	if os.Getppid() != ppid || process.Name(ppid) != "kuri-holder" || len(argv) == 0 {
		pidfd.Close()
		if told != "" {
			return nil, fault.New(fault.Unavailable, "the holder (pid %s) has died before its keeper could begin", told)
		}
		return nil, nil
	}
	return &parent{ppid, pidfd, strings.Split(strings.TrimSuffix(string(argv), "\x00"), "\x00")}, nil
}

// Delay before the keeper tries again to become the holder. It doubles with each attempt.
const (
	succeedFirst = 20 * time.Millisecond
	succeedMax   = 5 * time.Second
)

// succeedHolder waits for the holder to die and takes its place.
func (s *Server) succeedHolder() {
	if s.parent == nil {
		return
	}
	if err := s.parent.pidfd.Wait(); err != nil {
		slog.Error("wait for the holder's end", "err", err)
		return
	}
	slog.Warn("the holder has died; this process becomes the holder and starts another keeper", "pid", s.parent.pid)
	for delay := succeedFirst; ; delay = min(2*delay, succeedMax) {
		if s.isRetired() {
			return
		}
		err := fault.Contained(s.becomeHolder) // does not return on success
		slog.Error("become the holder in place of the one that has died; until then this keeper's death costs what the holder had",
			"err", err, "again_in", delay)
		time.Sleep(delay)
	}
}

// becomeHolder executes the holder's program in this process. So the parent of the containers is a
// holder again; it has their exit codes and everything that the dead one held for this keeper. For
// all others the keeper has died, and the holder starts a new one. It returns only if it fails, and
// then nothing has changed.
func (s *Server) becomeHolder() error {
	lock, err := takeLock(filepath.Join(s.state, "holder.lock"), "holder")
	if err != nil {
		return err // another holder has started meanwhile; it exits when it finds a keeper here
	}
	defer lock.Close()
	listener, err := s.listenAsHolder()
	if err != nil {
		return err
	}
	defer unix.Close(listener)

	s.mu.Lock() // against Retire
	defer s.mu.Unlock()
	s.keep.own.mu.Lock() // the next keeper reverts changes from here on
	defer s.keep.own.mu.Unlock()
	if s.retired {
		return errors.New("the keeper is ending")
	}
	state, fds, err := s.keep.own.stateOf(int(lock.Fd()), listener)
	if err != nil {
		return err
	}
	defer unix.Close(state)

	syscall.ForkLock.Lock() // a child forked now would inherit all of it
	defer syscall.ForkLock.Unlock()
	for _, fd := range append(fds, state) {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
		defer unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d", holderStateEnv, state))
	restore, err := blockHangUp()
	if err != nil {
		return err
	}
	defer restore()
	return fmt.Errorf("execute %s: %w", s.parent.argv[0], unix.Exec(s.parent.argv[0], s.parent.argv, env))
}

// listenAsHolder creates the holder's socket. We must have the holder's lock.
func (s *Server) listenAsHolder() (fd int, err error) {
	path := filepath.Join(s.state, "holder.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return 0, err
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, 0o600) // nobody can connect before listen
	}
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// stateOf writes the state for cmd/kuri-holder to a memfd. It returns the memfd and the descriptors
// that the state names. The lock must be held.
func (l *ledger) stateOf(lock, listener int) (memfd int, fds []int, err error) {
	var text strings.Builder
	fmt.Fprintf(&text, "holder 1\nlock %d\nlistener %d\nkeeper 0 1\n", lock, listener)
	fds = []int{lock, listener}
	for name, fd := range l.files {
		fmt.Fprintf(&text, "held %d %s\n", fd, name)
		fds = append(fds, fd)
	}
	for pid := range l.watched {
		fmt.Fprintf(&text, "watched %d 0 0\n", pid)
	}
	text.WriteString("end\n")
	if memfd, err = unix.MemfdCreate("kuri-holder-state", unix.MFD_CLOEXEC); err != nil {
		return 0, nil, fmt.Errorf("make a memfd: %w", err)
	}
	if _, err = write(memfd, []byte(text.String())); err == nil {
		_, err = unix.Seek(memfd, 0, 0)
	}
	if err != nil {
		unix.Close(memfd)
		return 0, nil, fmt.Errorf("write the holder's state: %w", err)
	}
	return memfd, fds, nil
}

// blockHangUp blocks SIGHUP in the calling thread. The holder handles that signal, but starts with
// the signal mask of the thread that called exec. Without this, a SIGHUP that arrives before the
// holder blocks it would kill the holder.
func blockHangUp() (restore func(), err error) {
	runtime.LockOSThread()
	set, old := unix.Sigset_t{Val: [16]uint64{1 << (unix.SIGHUP - 1)}}, unix.Sigset_t{}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("block SIGHUP: %w", err)
	}
	return func() {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
		runtime.UnlockOSThread()
	}, nil
}
