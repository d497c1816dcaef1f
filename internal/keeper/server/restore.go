package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// The state directory, or files in it, may be removed while pods run. Nothing exists only in those
// files: the keeper restores them, for the next keeper and the next kurid, from memory and from
// open descriptors.

// Restore creates missing files of the keeper again, and does nothing if none is missing. A failure
// with one container affects only that one; the error is that of the files that all share.
func (s *Server) Restore() error {
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	if s.files.again == nil {
		return nil // it is ending, or not serving yet
	}

	// 1. The directories and the lock.
	if err := s.makeRecordDirs(); err != nil {
		return err
	}
	lost, err := s.lockAgain()
	if err != nil {
		return err
	}

	// 2. The holder's lock and socket, which the holder creates itself.
	s.askHolder()

	// 3. The mount point of the containers' root filesystems.
	if err := makeMountPoint(s.mounts()); err != nil {
		return err
	}

	// 4. The records of pods, containers and execs, of the keeper and of the runtime.
	for _, box := range s.allSandboxes() {
		complain("pod", box.id, s.restoreSandbox(box))
	}
	for _, c := range s.allContainers() {
		complain("container", c.id, s.restoreContainer(c))
	}
	if err := s.restoreExecs(); err != nil {
		slog.Error("what was removed of the state directory cannot be made anew", "err", err)
	}

	// 5. The sockets. They come last, so that a client that gets an answer finds everything
	// restored.
	if err := s.files.again(); err != nil {
		return err
	}
	if lost {
		slog.Warn("the state directory was removed, and was made anew; what runs goes on", "dir", s.state)
	}
	return nil
}

func complain(what, id string, err error) {
	if err != nil {
		slog.Error("what was removed of the state directory cannot be made anew", what, id, "err", err)
	}
}

// lockAgain locks the lock file if it is not the one we have locked, and reports whether it was
// not. It is an error if another keeper has locked it.
func (s *Server) lockAgain() (lost bool, err error) {
	path := filepath.Join(s.state, "keeper", "lock")
	there, err := os.Stat(path)
	if err == nil {
		ours, err := s.lock.Stat()
		if err == nil && os.SameFile(there, ours) {
			return false, nil
		}
	}
	lock, err := takeLock(path, "keeper")
	if err != nil {
		return true, err
	}
	s.lock.Close()
	s.lock = lock
	return true, nil
}

// askHolder makes the holder create its lock and socket again if one is missing.
func (s *Server) askHolder() {
	for _, name := range []string{"holder.lock", "holder.sock"} {
		if _, err := os.Lstat(filepath.Join(s.state, name)); err == nil {
			continue
		}
		if s.parent != nil && os.Getppid() == s.parent.pid {
			unix.Kill(s.parent.pid, unix.SIGHUP)
		}
		return
	}
}

func (s *Server) allSandboxes() (all []*sandbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, box := range s.sandboxes {
		if !box.removing {
			all = append(all, box)
		}
	}
	return all
}

func (s *Server) allContainers() (all []*container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		all = append(all, c)
	}
	return all
}

// restoreSandbox writes the record of a pod again, and creates the mount point of its /dev/shm.
func (s *Server) restoreSandbox(box *sandbox) error {
	if box.shmPath != "" {
		if err := os.MkdirAll(box.shmPath, 0o755); err != nil {
			return err
		}
	}
	path := s.recordPath(sandboxRecords, box.id)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return writeRecord(path, &box.rec)
}

// restoreContainer writes the records of a container again. It skips a container that is being
// created or deleted.
func (s *Server) restoreContainer(c *container) error {
	state := c.currentState()
	if state == api.State_UNKNOWN || !c.verb.TryLock() {
		return nil
	}
	defer c.verb.Unlock()
	if err := os.MkdirAll(c.bundle, 0o711); err != nil {
		return err
	}
	if state == api.State_EXITED {
		if _, err := keeper.ReadExit(c.bundle); errors.Is(err, fault.NotFound) {
			c.mu.Lock()
			exit := c.exit
			c.mu.Unlock()
			if err := keeper.WriteExit(c.bundle, exit); err != nil {
				return err
			}
		}
	}
	if err := s.runtime.Restore(c.id, c.made.Pid, state == api.State_CREATED); err != nil &&
		!errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(c.recordPath); err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return writeRecord(c.recordPath, &c.rec)
}

// Files are restored once no more have been removed for settleAfter, and checked again after
// lookAfter: rm -r takes a moment, and may remove restored files.
const (
	settleAfter = 100 * time.Millisecond
	lookAfter   = time.Second
)

// watchFiles calls Restore whenever the state directory or an entry of it is removed or moved,
// until ctx ends.
func (s *Server) watchFiles(ctx context.Context) {
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	for ctx.Err() == nil {
		err := s.watchOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		pause(settleAfter)
		if err == nil {
			err = fault.Contained(s.Restore)
		}
		if err != nil {
			slog.Error("the state directory was removed and is not made anew", "dir", s.state, "err", err)
			pause(10 * time.Second)
			continue
		}
		pause(lookAfter)
		if err := fault.Contained(s.Restore); err != nil {
			slog.Error("the state directory was removed and is not made anew", "dir", s.state, "err", err)
		}
	}
}

// watchOnce returns when one of the keeper's files has been removed.
func (s *Server) watchOnce(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch the state directory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Now()) })()
	const gone = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	for _, dir := range []string{s.state, filepath.Join(s.state, "keeper")} {
		if _, err := unix.InotifyAddWatch(fd, dir, gone|unix.IN_ONLYDIR); errors.Is(err, fs.ErrNotExist) {
			return nil // already removed
		} else if err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	for _, name := range s.ownFiles() {
		if _, err := os.Lstat(name); err != nil {
			return nil // removed before the watch was added
		}
	}
	for events := make([]byte, 4096); ; {
		n, err := f.Read(events)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil // ctx has ended
		case err != nil:
			return fmt.Errorf("watch the state directory: %w", err)
		case s.tellsOfOurs(events[:n]):
			return nil
		}
	}
}

// ownFiles returns the paths that must exist while the keeper serves.
func (s *Server) ownFiles() []string {
	var all []string
	names := []string{"keeper.sock", "keeper-session.sock", "keeper/lock", "mounts"}
	for _, kind := range recordKinds {
		names = append(names, "keeper/"+kind)
	}
	if s.parent != nil {
		names = append(names, "holder.sock", "holder.lock")
	}
	for _, name := range names {
		all = append(all, filepath.Join(s.state, name))
	}
	return all
}

// tellsOfOurs reports whether events (inotify(7)) mean that one of our files may be gone: a watched
// directory itself, or a name in it. Lost events may have been about any of them.
func (s *Server) tellsOfOurs(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		mask, size := binary.NativeEndian.Uint32(events[4:]), int(binary.NativeEndian.Uint32(events[12:]))
		if mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT|unix.IN_Q_OVERFLOW) != 0 {
			return true
		}
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
		if name == "keeper" || slices.ContainsFunc(s.ownFiles(),
			func(path string) bool { return filepath.Base(path) == name }) {
			return true
		}
		events = events[unix.SizeofInotifyEvent+size:]
	}
	return false
}
