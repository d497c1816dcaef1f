package server

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// adopt takes over a container that an earlier keeper created: it writes its log and waits for its
// exit. An exit that has already happened is reported as any other. Execs of earlier keepers are
// killed, except those in execs.
func (s *Server) adopt(in inheritance, c *container, execs []*oci.Running) {
	// 1. Its process, if the pid still belongs to it.
	var err error
	was := c.rec
	if c.pidfd, err = process.Reopen(c.made.Pid, c.rec.Born); err != nil {
		slog.Info("a container has ended while no keeper was there", "container", c.id, "pid", c.made.Pid, "why", err)
	}
	if begun := in.take(containerName(c.id, startName)); begun != nil {
		go s.resume(c, begun)
		c.rec.State = api.State_RUNNING
	} else if s.runtime.Waits(c.id, c.made.Pid) {
		c.rec.State, c.rec.StartedAt = api.State_CREATED, 0 // the start was interrupted before it began
	} else {
		c.rec.State = api.State_RUNNING
	}

	// 2. Its log and stdio.
	if c.rec.LogPath != "" {
		limits := logLimits{size: c.rec.LogMaxBytes, files: c.rec.LogMaxFiles, rate: c.rec.LogRate}
		if c.log, err = reopenLog(logPlace{c.rec.LogPath, c.rec.LogDirectory}, limits); err != nil {
			c.lost("its log cannot be opened", err)
		}
	}
	s.adoptStdin(in, c)
	s.adoptOutputs(in, c)

	// 3. The exit watcher and the log writers.
	s.runtime.Pin(c.id)
	if c.rec.State != was.State || c.rec.StartedAt != was.StartedAt || c.rec.Note != was.Note {
		if err := c.amend(func(*containerRecord) {}); err != nil {
			slog.Error("record an adopted container", "container", c.id, "err", err)
		}
	}
	if c.rec.SystemdCgroup {
		if err := s.ooms.Open(c.made.Cgroup); err != nil {
			slog.Warn("an OOM kill of a container may not be reported", "container", c.id, "err", err)
		}
	}
	for _, t := range c.outputs {
		c.pumps.Go(t.follow)
	}
	systemd := c.rec.SystemdCgroup
	go s.watch(c)
	go s.tidy(c, systemd, execs)
}

// resume finishes a start that was interrupted when an earlier keeper died.
func (s *Server) resume(c *container, begun *os.File) {
	fault.Contained(func() error {
		if err := s.runtime.Resume(c.id, begun, c.ended); err != nil {
			slog.Warn("a container's start was cut off with an earlier keeper", "container", c.id, "err", err)
		}
		c.keep.drop(containerName(c.id, startName))
		return nil
	})
}

// tidy does the parts of an adoption that need not finish before the container is served.
func (s *Server) tidy(c *container, systemd bool, execs []*oci.Running) {
	fault.Contained(func() error {
		if err := oci.EndExecs(c.made.Cgroup, killLimit, s.firstExec, execs); err != nil {
			slog.Warn("end what was executed by an earlier keeper", "container", c.id, "err", err)
		}
		if systemd {
			c.verb.Lock()
			defer c.verb.Unlock()
			if err := s.runtime.Rehold(c.id); err != nil {
				slog.Warn("limits of a container may be written over by systemd", "container", c.id, "err", err)
			}
		}
		return nil
	})
}

// lost records in the container's note, and in the log, what was lost with an earlier keeper.
func (c *container) lost(what string, err error) {
	if strings.Contains(c.rec.Note, what) {
		return
	}
	slog.Warn("a container has lost something with its keeper", "container", c.id, "what", what, "err", err)
	if c.rec.Note != "" {
		what = c.rec.Note + "; " + what
	}
	c.rec.Note = what
}

// inherit returns the container's descriptor with that name, or nil if the holder does not have it.
// The holder keeps its copy.
func (c *container) inherit(in inheritance, name string) *os.File {
	f := in.take(containerName(c.id, name))
	if f != nil {
		c.held = append(c.held, containerName(c.id, name))
	}
	return f
}

func (s *Server) adoptStdin(in inheritance, c *container) {
	c.stdin.left = c.stdinLeft
	if !c.rec.Stdin || c.rec.TTY || c.rec.StdinGone {
		return
	}
	f := c.inherit(in, "stdin")
	if f == nil {
		f = c.reopen("stdin", os.O_WRONLY)
		if f == nil {
			c.lost("its stdin is closed", nil)
			c.stdin.gone = true
			return
		}
		c.hold("stdin", f)
	}
	c.stdin.set(f, c.rec.StdinOnce)
}

func (s *Server) adoptOutputs(in inheritance, c *container) {
	if c.rec.TTY {
		c.terminal = c.inherit(in, "terminal")
		if c.terminal == nil {
			c.lost("its terminal is lost, and with it what it prints", nil)
			return
		}
		s.adoptOutput(in, c, "stdout", c.terminal)
		return
	}
	for _, stream := range streams {
		f := c.inherit(in, stream)
		if f == nil {
			if f = c.reopen(stream, os.O_RDONLY); f == nil {
				if c.pidfd != nil {
					c.lost("what it prints is lost", nil)
				}
				continue
			}
			c.lost("lines may be missing from its log, from when neither its keeper nor the holder lived", nil)
			c.hold(stream, f)
		}
		s.adoptOutput(in, c, stream, f)
	}
}

func (s *Server) adoptOutput(in inheritance, c *container, stream string, f *os.File) {
	t := &tap{
		stream: stream, file: f, log: c.log, hold: c.hold,
		send: func(data []byte) { c.fanOut.write(stream, data) }, noClient: c.fanOut.empty,
	}
	t.rest = c.adoptPipe(in, stream+restSuffix)
	if c.terminal != nil && c.log != nil {
		if t.transit = c.adoptPipe(in, stream+transitSuffix); t.transit == nil {
			var err error
			if t.transit, err = newPipePair(); err == nil {
				err = t.transit.hold(c.hold, stream+transitSuffix)
			}
			if err != nil {
				c.lost("what it prints is lost", err)
				return
			}
		}
	}
	c.outputs = append(c.outputs, t)
}

// adoptPipe returns a pipe in which an earlier keeper left data, or nil if there is none.
func (c *container) adoptPipe(in inheritance, name string) *pipePair {
	f := c.inherit(in, name)
	if f == nil {
		return nil
	}
	defer f.Close()
	var pair *pipePair
	err := control(f, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			pair, err = pipePairOf(dup)
		}
		return err
	})
	if err != nil {
		slog.Error("go on with a pipe of an earlier keeper", "name", name, "err", err)
		return nil
	}
	return pair
}

// reopen reopens the pipe of a standard stream through a descriptor of one of the container's
// processes. It returns nil if no process has it open.
func (c *container) reopen(stream string, mode int) *os.File {
	inode := c.rec.Pipes[stream]
	if inode == 0 || c.pidfd == nil {
		return nil
	}
	pids, err := c.made.Cgroup.Procs()
	if err != nil {
		slog.Warn("list the processes of a container", "container", c.id, "err", err)
	}
	for _, pid := range append([]int{c.made.Pid}, pids...) {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir) // the process may have exited
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || st.Ino != inode || st.Mode&unix.S_IFMT != unix.S_IFIFO {
				continue
			}
			f, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
			if err == nil && inodeOf(f) == inode {
				return f
			}
			if err == nil {
				f.Close()
			}
		}
	}
	return nil
}

// --- resources that a pod's containers share ---

func (s *Server) recoverInit(box *sandbox) error {
	r := box.rec
	if !r.PID {
		return nil
	}
	var err error
	if box.cgroup, err = oci.OpenCgroup(r.CgroupsPath, "kuri-"+r.ID, r.SystemdCgroup); err != nil {
		return fmt.Errorf("find the cgroup of its init: %w", err)
	}
	box.init = &namespace.Init{Pid: r.InitPid}
	if box.initFD, err = process.Reopen(r.InitPid, r.InitBorn); err != nil {
		return fmt.Errorf("its init has ended: %w", err)
	}
	box.initEnd = make(chan struct{})
	go s.watchInit(box, r.InitPid)
	return nil
}

func (b *sandbox) recoverNetns() error {
	if b.rec.NetnsPath == "" {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(b.rec.NetnsPath, &st); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at its network namespace: %w", err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("its network namespace is not at %s any more", b.rec.NetnsPath)
	}
	return nil
}

// recoverNamespaces opens the namespaces that are held by descriptor, from the holder or from a
// process of the pod.
func (s *Server) recoverNamespaces(in inheritance, box *sandbox) error {
	var errs []error
	for _, kind := range slices.Sorted(maps.Keys(box.rec.Namespaces)) {
		inode := box.rec.Namespaces[kind]
		f := in.take(sandboxName(box.id, kind))
		if f == nil {
			if f = s.namespaceOf(box, kind, inode); f != nil {
				s.keep.put(sandboxName(box.id, kind), f)
			}
		}
		switch {
		case f == nil:
			errs = append(errs, fmt.Errorf("its %s namespace is gone: the keeper and the holder died, and no process is in it",
				kind))
		case kind == "ipc":
			box.set.IPC = f
		case kind == "uts":
			box.set.UTS = f
		case kind == "user":
			box.set.User = f
		case kind == "pid" && box.init != nil:
			box.init.PidNS = f
		default:
			f.Close()
		}
	}
	return errors.Join(errs...)
}

// living returns the live first processes of the pod. Their pids cannot have been reused, because
// the owners of their pidfds have not reaped them.
func (s *Server) living(box *sandbox) []int {
	var pids []int
	if box.initFD != nil {
		pids = append(pids, box.init.Pid)
	}
	for _, c := range s.containers {
		if c.sandboxID == box.id && c.pidfd != nil && c.currentState() != api.State_EXITED {
			pids = append(pids, c.made.Pid)
		}
	}
	return pids
}

// namespaceOf returns the namespace of that kind and inode from a process of the pod that is in it.
func (s *Server) namespaceOf(box *sandbox, kind string, inode uint64) *os.File {
	for _, pid := range s.living(box) {
		f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns", kind))
		if err != nil {
			continue
		}
		if inodeOf(f) == inode {
			return f
		}
		f.Close()
	}
	return nil
}

// recoverPodShm ensures that the pod's /dev/shm is mounted: it already is, it is cloned from a
// process of the pod, or a new one is mounted.
func (s *Server) recoverPodShm(box *sandbox, shm map[string]uint64) error {
	r := &box.rec
	if device, ok := shm[r.ID]; r.ShmPath == "" || ok && device == r.ShmDevice {
		return nil
	}
	var err error
	living := s.living(box)
	for _, pid := range living {
		if err = s.shm.TakeShm(r.ID, pid, "/dev/shm", r.ShmDevice); err == nil {
			return nil
		}
	}
	if len(living) > 0 {
		slog.Warn("the /dev/shm of a pod is made anew beside that of its processes", "pod", r.ID, "err", err)
	}
	if err := s.shm.RemoveShm(r.ID); err != nil {
		return err
	}
	if r.ShmDevice, err = s.shm.AddShm(r.ID, r.ShmBytes, r.ShmUID, r.ShmGID, r.MountLabel); err != nil {
		return err
	}
	return writeRecord(s.recordPath(sandboxRecords, r.ID), r)
}
