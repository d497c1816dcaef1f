package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// Recover takes over from the previous keeper, whatever that was doing when it ended. It must be
// called once, before Serve. A failure with one pod affects only that pod.
func (s *Server) Recover() error {
	s.firstExec = sinceBoot() // no earlier keeper has used cgroups with these names
	s.execs.Store(s.firstExec)

	keeper.ThawTakenOver(s.state)

	// 1. The descriptors in the holder.
	in := s.keep.inheritance()
	if err := s.recoverShm(in); err != nil {
		return err
	}

	// 2. The records.
	boxes, err := readRecords(s, sandboxRecords, func(r *sandboxRecord) string { return r.ID })
	if err != nil {
		return err
	}
	containers, err := readRecords(s, containerRecords, func(r *containerRecord) string { return r.ID })
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	for _, r := range containers {
		known[r.ID] = true
	}
	containers = append(containers, s.unrecorded(known)...)

	// 3. Unrecorded processes that an earlier keeper was starting when it was killed.
	first := make(map[int]bool)
	for _, r := range containers {
		if r.Made != nil {
			first[r.Made.Pid] = true
		}
	}
	for _, r := range boxes {
		first[r.InitPid] = true
	}
	killStrays(first)

	execs := s.recoverExecs()

	// 4. Containers first: their processes may still have resources that a pod has lost.
	for _, r := range containers {
		if err := s.recoverContainer(in, r, execs); err != nil {
			slog.Error("a container of an earlier keeper cannot be adopted", "container", r.ID, "err", err)
		}
	}
	shm, err := s.shm.Pods()
	if err != nil {
		slog.Error("look at /dev/shm of the pods", "err", err)
	}
	for _, r := range boxes {
		if err := s.recoverSandbox(in, r, shm); err != nil {
			slog.Error("a pod of an earlier keeper cannot be adopted", "pod", r.ID, "err", err)
		}
	}

	// 5. Resources that no pod or container uses.
	in.closeRest()
	s.sweepShm()
	go s.reaper.run()
	if n := len(containers) + len(boxes); n > 0 {
		slog.Info("what an earlier keeper held is held again", "pods", len(boxes), "containers", len(containers))
	}
	return nil
}

// killStrays kills the processes in this keeper's own cgroup, except itself, the holder and known
// processes. Strays are helpers, and inits of pods and containers on their way to their own cgroups.
// (A known container may still be there, too: until it is started it is not in its final cgroup.)
func killStrays(known map[int]bool) {
	own := cgroup.Memberships(os.Getpid(), "/kuri-keeper")
	if len(own) == 0 {
		return // the keeper has no cgroup
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		slog.Error("look for what an earlier keeper has left", "err", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == os.Getppid() || known[pid] {
			continue
		}
		pidfd, err := process.Open(pid)
		if err != nil {
			continue // it has exited
		}
		if slices.ContainsFunc(cgroup.Memberships(pid, "/kuri-keeper"),
			func(line string) bool { return slices.Contains(own, line) }) {
			slog.Info("killing what an earlier keeper has left", "process", process.Describe(pid))
			pidfd.Signal(unix.SIGKILL)
		}
		pidfd.Close()
	}
}

// control runs fn with the descriptor of a file.
func control(f *os.File, fn func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	return errors.Join(conn.Control(func(fd uintptr) { ferr = fn(int(fd)) }), ferr)
}

// inodeOf returns the inode of an open file, or 0 on an error.
func inodeOf(f *os.File) (inode uint64) {
	_ = control(f, func(fd int) error {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		inode = st.Ino
		return err
	})
	return inode
}

func (s *Server) recoverShm(in inheritance) (err error) {
	if f := in.take(shmName); f != nil {
		s.shm, err = namespace.AdoptHolder(f)
		if !errors.Is(err, namespace.ErrNotHolder) {
			return err
		}
		slog.Warn("the /dev/shm of each pod is taken from its processes", "err", err) // of a keeper 0.2 in an initramfs
	}
	if s.shm, err = namespace.NewHolder(s.mounts()); err != nil {
		return err
	}
	s.keep.put(shmName, s.shm.File())
	return nil
}

// sweepShm removes each /dev/shm without a pod.
func (s *Server) sweepShm() {
	pods, err := s.shm.Pods()
	if err != nil {
		slog.Error("look for /dev/shm of pods that are gone", "err", err)
	}
	for id := range pods {
		if s.sandboxes[id] == nil {
			if err := s.shm.RemoveShm(id); err != nil {
				slog.Error("remove what is left of a pod", "err", err)
			}
		}
	}
}

// unrecorded returns records of containers that only the OCI runtime knows: their records were
// lost, or the keeper was of a version that wrote none.
func (s *Server) unrecorded(known map[string]bool) []*containerRecord {
	ids, err := s.runtime.All()
	if err != nil {
		slog.Error("list the containers of the runtime", "err", err)
	}
	var all []*containerRecord
	for _, id := range ids {
		if known[id] || checkID(id) != nil {
			continue
		}
		left, err := s.runtime.Left(id)
		if errors.Is(err, fault.NotFound) { // remains of a container
			err = s.runtime.Delete(id)
			if err == nil {
				continue
			}
		}
		if err != nil {
			slog.Error("what is left of a container cannot be read", "container", id, "err", err)
			continue
		}
		slog.Warn("a container without a record of the keeper is adopted", "container", id, "pid", left.Pid)
		r := &containerRecord{
			ID: id, Bundle: left.Bundle, SandboxID: filepath.Base(filepath.Dir(filepath.Dir(left.Bundle))), Boot: s.boot,
			State: api.State_RUNNING, Rootfs: filepath.Join(s.mounts(), id, "rootfs"), Made: &left.Created, Born: left.Born,
			CreatedAt: time.Now().UnixNano(), StartedAt: time.Now().UnixNano(),
			Note: "the keeper's record of this container was lost, and with it where its log is",
		}
		if err := writeRecord(s.recordPath(containerRecords, id), r); err != nil {
			slog.Error("record an adopted container", "container", id, "err", err)
		}
		all = append(all, r)
	}
	return all
}

// recoverContainer adopts a container, or reverts its creation if that is incomplete. execs are the
// execs that continue.
func (s *Server) recoverContainer(in inheritance, r *containerRecord, execs []*oci.Running) error {
	c := &container{
		id: r.ID, sandboxID: r.SandboxID, bundle: r.Bundle, recordPath: s.recordPath(containerRecords, r.ID), keep: s.keep,
		ready: make(chan struct{}), exited: make(chan struct{}), made: r.Made, rootfs: r.Rootfs, adopted: true, rec: *r,
	}
	close(c.ready)
	switch {
	case r.Boot != s.boot: // its processes are gone; their exit statuses are unknown
		return removeRecord(c.recordPath)
	case r.State == api.State_UNKNOWN || r.Made == nil:
		return s.takeBackContainer(c)
	}
	s.containers[c.id] = c
	exit, err := keeper.ReadExit(c.bundle)
	if err == nil {
		c.rec.State, c.exit = api.State_EXITED, exit
		close(c.exited)
		return nil
	}
	if !errors.Is(err, fault.NotFound) {
		slog.Warn("an exit record cannot be read", "container", c.id, "err", err)
	}
	s.adopt(in, c, execs)
	return nil
}

func (s *Server) takeBackContainer(c *container) error {
	slog.Info("taking back a container that was being created when an earlier keeper was killed", "container", c.id)
	if err := s.runtime.TakeBack(c.id, c.rec.CgroupsPath, c.rec.SystemdCgroup, killLimit); err != nil {
		return err
	}
	if c.rootfs != "" {
		if err := removeMountPoints(filepath.Dir(c.rootfs)); err != nil {
			return err
		}
	}
	return removeRecord(c.recordPath)
}

// recoverSandbox adopts a sandbox, or reverts its creation if that is incomplete. shm is the device
// of each pod's /dev/shm.
func (s *Server) recoverSandbox(in inheritance, r *sandboxRecord, shm map[string]uint64) error {
	box := &sandbox{id: r.ID, rec: *r, set: &namespace.Set{NetnsPath: r.NetnsPath}, shmPath: r.ShmPath, adopted: true}
	if r.Boot != s.boot || !r.Made {
		return s.takeBackSandbox(box)
	}
	s.sandboxes[box.id] = box
	err := errors.Join(s.recoverInit(box), box.recoverNetns(), s.recoverNamespaces(in, box), s.recoverPodShm(box, shm))
	s.mu.Lock() // the init may be exiting right now
	defer s.mu.Unlock()
	box.reported = box.message()
	if err != nil {
		box.gone = strings.ReplaceAll(err.Error(), "\n", "; ") // errors.Join has a line for each
		box.reported.Gone = box.gone
		slog.Warn("a pod has lost what its containers share", "pod", box.id, "err", err)
	}
	return nil
}

func (s *Server) takeBackSandbox(box *sandbox) error {
	slog.Info("taking back a pod that was being made when an earlier keeper was killed", "pod", box.id)
	r := box.rec
	if r.PID {
		cgroup, err := oci.OpenCgroup(r.CgroupsPath, "kuri-"+r.ID, r.SystemdCgroup)
		if err == nil {
			err = errors.Join(cgroup.Kill(killLimit), cgroup.Remove())
		}
		if err != nil {
			return fmt.Errorf("end its init: %w", err)
		}
	}
	if err := box.set.Close(); err != nil {
		return err
	}
	if r.ShmPath != "" {
		if err := errors.Join(s.shm.RemoveShm(r.ID), removeDirs(r.ShmPath)); err != nil {
			return err
		}
	}
	return removeRecord(s.recordPath(sandboxRecords, r.ID))
}
