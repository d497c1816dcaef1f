package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// removedFiles finds files and directories that were removed although a running pod uses them.
func removedFiles(s *scene) ([]Finding, error) {
	removed, err := s.pods.Removed()
	var found []Finding
	for _, x := range removed {
		found = append(found, Finding{Subject: x.Name + ": " + x.Path, Problem: x.Problem, Advice: x.Advice, fix: x.Restore})
	}
	return found, err
}

// staleSockets finds sockets in the state directory on which nobody listens.
func staleSockets(s *scene) ([]Finding, error) {
	paths, err := filepath.Glob(filepath.Join(s.State, "*.sock"))
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, path := range paths {
		if !refused(path) {
			continue
		}
		found = append(found, Finding{
			Subject: path, Problem: "nobody listens at this socket: the process that made it was killed",
			fix: func(context.Context) error {
				if !refused(path) {
					return fault.New(fault.Precondition, "somebody listens there now")
				}
				return remove(path)
			},
		})
	}
	return found, nil
}

// refused reports whether path is a socket of any type on which nobody listens.
func refused(path string) bool {
	if st, err := os.Lstat(path); err != nil || st.Mode()&fs.ModeSocket == 0 {
		return false
	}
	for _, network := range []string{"unix", "unixpacket"} {
		conn, err := net.DialTimeout(network, path, time.Second)
		if err == nil {
			conn.Close()
			return false
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EPROTOTYPE) {
			return false
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			return true
		}
	}
	return false
}

// StaleLocks finds locks of a data directory whose owner has ended while another process has
// inherited the open file. It needs no lock itself.
func StaleLocks(root, state string) ([]Finding, error) {
	found, err := staleLocks(&scene{Node: Node{Root: root, State: state}})
	for i := range found {
		found[i].Check = "locks"
	}
	return found, err
}

func staleLocks(s *scene) ([]Finding, error) {
	owners, err := flocks()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, path := range []string{
		filepath.Join(s.Root, "kurid.lock"), filepath.Join(s.State, "kurid.lock"),
		filepath.Join(s.State, "keeper", "lock"), filepath.Join(s.State, "holder.lock"),
	} {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		if owners[fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)] {
			continue
		}
		heir := whoHas(st.Dev, st.Ino)
		if heir == 0 || !isLocked(path) {
			continue
		}
		f := Finding{
			Subject: path, Problem: "the process that took this lock has ended, and it is still locked",
			Advice: fmt.Sprintf("end %s, which has inherited the open file", describe([]int{heir})),
		}
		found = append(found, f)
	}
	return found, nil
}

// flocks returns the files locked by living processes, by device and inode (proc_locks(5)). The
// kernel omits locks whose owner has ended.
func flocks() (map[string]bool, error) {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	owned := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
		if field := strings.Fields(lines.Text()); len(field) >= 6 && field[1] == "FLOCK" {
			owned[field[5]] = true
		}
	}
	return owned, lines.Err()
}

// isLocked reports whether the file is locked.
func isLocked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// whoHas returns a process that has the file open, or 0 if none is visible.
func whoHas(dev uint64, ino uint64) int {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(fd, &st) == nil && st.Dev == dev && st.Ino == ino {
			pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
			return pid
		}
	}
	return 0
}

// uidForm matches the pod uids of kuri run.
var uidForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
})

// runFilesAge is the maximum time between the creation of the files of a kuri run pod and of the
// pod, during which images are pulled.
const runFilesAge = time.Hour

// strayRunFiles finds volumes and log directories of kuri run pods that are gone. Those of pods of
// other runtimes are theirs: kuri run writes the runtime's socket beside the volumes. Log
// directories of other pods are removed by the kubelet.
func strayRunFiles(s *scene) ([]Finding, error) {
	entries, err := os.ReadDir(s.RunDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	uids := map[string]bool{}
	for _, r := range s.pods.Sandboxes {
		uids[r.UID()] = true
	}
	var found []Finding
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || !uidForm().MatchString(e.Name()) || uids[e.Name()] ||
			time.Since(info.ModTime()) < runFilesAge {
			continue
		}
		dir := filepath.Join(s.RunDir, e.Name())
		socket, err := os.ReadFile(filepath.Join(dir, "runtime"))
		unmarked := errors.Is(err, fs.ErrNotExist)
		if err != nil && !unmarked {
			return nil, err
		}
		if !unmarked && !s.serves(strings.TrimSpace(string(socket))) {
			continue
		}
		var logs []string
		for _, dir := range s.LogDirs {
			found, err := filepath.Glob(filepath.Join(dir, "*_*_"+e.Name()))
			if err != nil {
				return nil, err
			}
			logs = append(logs, found...)
		}
		f := Finding{Subject: strings.Join(append([]string{dir}, logs...), ", "),
			Problem: "they are the volumes and the logs of a pod of kuri run that is gone"}
		if mounted(dir) {
			f.Advice = "something is mounted below: unmount it, and ask again"
		} else if unmarked {
			f.Advice = "which runtime had the pod is not known: remove them by hand if no runtime on this node has a pod with this uid"
		} else if s.unknownRuns() {
			f.Advice = "whether a pod without a record has them is not certain: mend that first, and ask again"
		} else {
			f.fix = func(context.Context) error {
				if mounted(dir) {
					return fault.New(fault.Precondition, "something is mounted below")
				}
				// The directory that identifies the logs is removed last.
				for _, path := range logs {
					if err := os.RemoveAll(path); err != nil {
						return err
					}
				}
				return os.RemoveAll(dir)
			}
		}
		found = append(found, f)
	}
	return found, nil
}

// serves reports whether socket is one on which this kurid serves, under any of its paths.
func (s *scene) serves(socket string) bool {
	is, err := os.Stat(socket)
	return slices.ContainsFunc(s.Sockets, func(own string) bool {
		if own == "" {
			return false
		}
		if filepath.Clean(own) == socket {
			return true
		}
		at, ownErr := os.Stat(own)
		return err == nil && ownErr == nil && os.SameFile(is, at)
	})
}

// mounted reports whether something is mounted below dir, or whether that is unknown.
func mounted(dir string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			if _, below := within(unescape(fields[4]), dir); below {
				return true
			}
		}
	}
	return false
}
