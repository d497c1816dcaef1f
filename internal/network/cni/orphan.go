package cni

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
)

// A plugin that kurid has started goes on when kurid is killed. A DEL beside an ADD that still runs
// would find nothing to remove, and the ADD would leak.

// orphanLimit bounds the wait for plugins that were killed.
const orphanLimit = 10 * time.Second

// endOrphans kills plugins that an earlier daemon started for the pod and that still run, and waits
// for their end. The pod is one that an earlier daemon attached, and no plugin of this daemon runs
// for it.
func endOrphans(podID string) error {
	orphans, err := findOrphans(podID)
	for _, o := range orphans {
		defer o.pidfd.Close()
		slog.Warn("a CNI plugin that an earlier kurid had started still runs and is ended", "pod", podID, "pid", o.pid)
		if kerr := o.pidfd.Signal(unix.SIGKILL); kerr != nil {
			err = errors.Join(err, fmt.Errorf("end the CNI plugin, process %d: %w", o.pid, kerr))
		}
	}
	for limit := time.Now().Add(orphanLimit); len(orphans) > 0; orphans = orphans[1:] {
		if !orphans[0].pidfd.Ends(time.Until(limit)) {
			err = errors.Join(err, fault.New(fault.Unavailable,
				"the CNI plugin of an earlier kurid, process %d, was killed and does not end", orphans[0].pid))
		}
	}
	return err
}

type orphan struct {
	pid   int
	pidfd *process.Pidfd
}

// findOrphans finds the processes with the pod in the environment that CNI gives a plugin, which
// its children inherit. A daemon that a plugin has left in a session of its own is not one of them.
// The caller closes the pidfds.
func findOrphans(podID string) ([]orphan, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []orphan
	of := make(map[int]bool)
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		pidfd, err := process.Open(pid)
		if errors.Is(err, unix.ENOSYS) {
			return nil, nil // Linux before 5.3
		}
		if err != nil {
			continue // it has ended
		}
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(append([]byte{0}, environ...), []byte("\x00CNI_CONTAINERID="+podID+"\x00")) {
			pidfd.Close()
			continue
		}
		found, of[pid] = append(found, orphan{pid, pidfd}), true
	}
	var orphans []orphan
	for _, o := range found {
		if session, err := unix.Getsid(o.pid); err != nil || of[session] {
			o.pidfd.Close()
			continue
		}
		orphans = append(orphans, o)
	}
	return orphans, nil
}
