package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/process"
)

// removeUnrecorded releases the resources of a sandbox whose record was lost, which it finds by the
// sandbox's id. It succeeds if there are none. A sandbox with a record is being created, and is
// left alone.
func (s *Server) removeUnrecorded(id string) error {
	path := s.recordPath(sandboxRecords, id)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if err := endUnrecordedInit(id); err != nil {
		return err
	}
	return errors.Join(namespace.Unpin(namespace.Pin(id)), s.shm.RemoveShm(id),
		removeDirs(filepath.Join(s.mounts(), id, "shm")),
		removeRecord(path+".damaged"))
}

// endUnrecordedInit kills the processes in the cgroup of a pod's init, and waits until they have
// exited. To avoid reading all of /proc, it does so only if the network namespace of the pod is
// still pinned.
func endUnrecordedInit(id string) error {
	if _, err := os.Lstat(namespace.Pin(id)); err != nil {
		return nil
	}
	limit := time.Now().Add(killLimit)
	for {
		pids, err := initsOf(id)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(limit) {
			return fmt.Errorf("the init process of sandbox %s cannot be killed: process %s", id, process.Describe(pids[0]))
		}
		for _, pid := range pids {
			slog.Warn("killing the init of a pod whose record was lost", "pod", id, "pid", pid)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("end the init of sandbox %s: %w", id, err)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// initsOf returns the pids of the processes in the cgroup named after a pod.
func initsOf(id string) ([]int, error) {
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range groups {
		body, err := os.ReadFile(path)
		if err != nil {
			continue // the process has exited
		}
		for line := range strings.Lines(string(body)) {
			base := filepath.Base(strings.TrimSpace(line))
			if base != id && !strings.HasSuffix(base, "-"+id+".scope") {
				continue
			}
			pid := 0
			if _, err := fmt.Sscanf(path, "/proc/%d/cgroup", &pid); err == nil && !process.HasEnded(pid) {
				pids = append(pids, pid)
			}
			break
		}
	}
	return pids, nil
}
