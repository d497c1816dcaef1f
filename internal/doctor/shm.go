package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/record"
)

// keeperRecords is the newest format of the keeper's records that is known here.
const keeperRecords = 1

// lostShm finds ready pods whose /dev/shm was unmounted in the mount namespace that the keeper holds.
// Running containers have mounts of their own.
func lostShm(s *scene) ([]Finding, error) {
	holder, err := s.shmHolder()
	if holder == nil || err != nil {
		return nil, err
	}
	defer holder.Close()
	there, err := holder.Pods()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, id := range s.pods.SandboxIDs() {
		r := s.pods.Sandboxes[id]
		var kept struct {
			Device uint64 `json:"shm_device"`
		}
		path := filepath.Join(s.State, "keeper", "sandboxes", id+".json")
		if r.State != pod.Ready || record.Read(path, keeperRecords, &kept) != nil || kept.Device == 0 ||
			there[id] == kept.Device {
			continue
		}
		f := Finding{
			Subject: r.Name(),
			Problem: "its /dev/shm was unmounted: no container can be created in it, and containers that run keep theirs",
		}
		if pids := s.firstPids(id); len(pids) > 0 {
			f.fix = func(context.Context) error { return s.takeShm(id, pids, kept.Device) }
		} else {
			f.Advice = fmt.Sprintf("kuri rm -f id:%.13s removes the pod; a kubelet makes another by itself", id)
		}
		found = append(found, f)
	}
	return found, nil
}

// shmHolder returns the keeper's mount namespace for the pods' /dev/shm, or nil if no keeper has one.
func (s *scene) shmHolder() (*namespace.Holder, error) {
	text, err := os.ReadFile(filepath.Join(s.State, "keeper", "lock"))
	if err != nil {
		return nil, nil // no keeper has served here
	}
	pid := strings.TrimSpace(string(text))
	if keeperState(pid) != filepath.Clean(s.State) {
		return nil, nil // it has ended
	}
	fds, err := filepath.Glob(filepath.Join("/proc", pid, "fd", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range fds {
		if to, _ := os.Readlink(path); !strings.HasPrefix(to, "mnt:[") {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue // closed meanwhile
		}
		holder, err := namespace.AdoptHolder(f)
		if errors.Is(err, namespace.ErrNotHolder) {
			continue
		}
		return holder, err
	}
	return nil, nil
}

// firstPids returns the first processes of a pod's running containers.
func (s *scene) firstPids(sandbox string) (pids []int) {
	for _, id := range s.pods.ContainerIDs() {
		if r := s.pods.Containers[id]; r.SandboxID == sandbox && r.State == pod.Running && r.Pid > 0 {
			if _, err := os.Stat("/proc/" + strconv.Itoa(r.Pid)); err == nil {
				pids = append(pids, r.Pid)
			}
		}
	}
	return pids
}

// takeShm mounts a pod's /dev/shm again, from a process that has it. The device identifies it.
func (s *scene) takeShm(id string, pids []int, device uint64) error {
	holder, err := s.shmHolder()
	if err != nil {
		return err
	}
	if holder == nil {
		return fault.New(fault.Unavailable, "no keeper serves now")
	}
	defer holder.Close()
	var errs []error
	for _, pid := range pids {
		if err = holder.TakeShm(id, pid, "/dev/shm", device); err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
