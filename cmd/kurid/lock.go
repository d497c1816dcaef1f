package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/process"
)

// lock creates dir and locks it for this process, until unlock or the end of the process. Its error
// names the process that has the lock. The lock is flock(2)'s: a file left by a dead daemon locks
// nothing, and locking works on a full or read-only disk. A daemon whose lock file was removed,
// alone or with dir, keeps dir as long as it lives.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	f, err := lockFile(dir)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return nil, &lockedError{dir, lockedBy(f)}
	}
	// Every owner writes to its lock file. An empty file may be new because the file of a living daemon was removed.
	pid := 0
	if !written(f) {
		pid = lockedUnlinked(f.Name())
	}
	if pid != 0 {
		f.Close()
		slog.Warn("the lock file of a running kurid was removed", "lock", f.Name(), "pid", pid)
		return nil, &lockedError{dir, strconv.Itoa(pid)}
	}
	// The pid in the file is for people, and for processes that cannot see /proc/locks. Overwriting
	// the old pid needs no disk space.
	if _, err := f.WriteAt([]byte(fmt.Sprintf("%-10d\n", os.Getpid())), 0); err != nil {
		slog.Warn("cannot write the process id to the lock file", "file", f.Name(), "err", err)
	}
	return func() { f.Close() }, nil
}

// lockFile opens the file to lock: kurid.lock in dir, or dir itself if no file can be created.
func lockFile(dir string) (*os.File, error) {
	path := filepath.Join(dir, "kurid.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case err == nil:
		return f, nil
	case !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) &&
		!errors.Is(err, fs.ErrPermission):
		return nil, err
	}
	if f, err := os.Open(path); err == nil {
		return f, nil
	}
	return os.Open(dir)
}

// lockedBy returns the process that has locked the file, from the kernel if possible, else from the file.
func lockedBy(f *os.File) string {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err == nil {
		if pid := flockHolder(fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)); pid != "" {
			return pid
		}
	}
	text, err := os.ReadFile(f.Name())
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return pid
	}
	return "(unknown)"
}

// flockHolder returns the pid that has locked a file, from /proc/locks (proc_locks(5)). It returns
// "" if the file is not listed there, or is locked from another PID namespace.
func flockHolder(file string) string {
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer locks.Close()
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
		field := strings.Fields(lines.Text())
		if len(field) < 6 || field[1] != "FLOCK" || field[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(field[4]); err == nil && pid > 0 {
			return field[4]
		}
	}
	return ""
}

// written reports whether a lock is a file that a kurid has written into.
func written(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular() && info.Size() > 0
}

// lockedUnlinked returns the pid of a kurid that has locked a removed file that was at path, 0 for
// none. Reading /proc/locks takes 10 to 20 ms, because the kernel waits for an RCU grace period.
func lockedUnlinked(path string) int {
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(locks)) {
		field := strings.Fields(line)
		if len(field) < 6 || field[1] != "FLOCK" {
			continue
		}
		pid, err := strconv.Atoi(field[4])
		if err != nil || pid <= 0 || pid == os.Getpid() || !isKurid(pid) {
			continue
		}
		fds := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(fds) // it may have exited
		for _, e := range entries {
			if name, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && name == path+" (deleted)" {
				return pid
			}
		}
	}
	return 0
}

// isKurid reports whether a process is a kurid in this PID namespace. A process in a container may have the same name.
func isKurid(pid int) bool {
	if process.Name(pid) != "kurid" {
		return false
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return errors.Join(err, terr) == nil && ours == theirs
}
