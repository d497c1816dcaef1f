package server

import (
	"bufio"
	"bytes"
	"context"
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

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/undo"
)

// takenOverNote is the note on containers of a keeper without a holder.
const takenOverNote = "taken over from a keeper of an older release: a line that it had not ended yet may lack its beginning in the log"

// TakeOver ends a keeper that has no holder so that the next keeper finds all its resources. It
// duplicates the descriptors (pidfd_getfd(2)) into the holder, which already serves, and writes
// records of the pods and containers. It freezes the containers for a moment, so that all their
// output is in their logs. After an error nothing has changed.
func TakeOver(ctx context.Context, state string, of *keeper.Predecessor) error {
	s := &Server{
		state: state, runtime: oci.NewEmbedded(filepath.Join(state, "mounts", ".oci")), keep: newKeep(state), boot: bootID(),
	}
	defer s.runtime.Close()
	if err := s.makeRecordDirs(); err != nil {
		return err
	}
	old, err := openPredecessor(of.Pid)
	if err != nil {
		return fmt.Errorf("look at the keeper, process %d: %w", of.Pid, err)
	}
	defer old.close()
	failpoint.Arm(state)
	doing, err := keeper.BeginTakeOver(state, of.Pid, s.recordsFor(of.Held))
	if err != nil {
		return err
	}
	defer doing.End()
	back := undo.New(ctx)
	defer back.Run()
	failpoint.At("take over: begun")

	// 1. The resources that containers of a pod share.
	if err := s.takeSandboxes(old, of, back); err != nil {
		return err
	}
	failpoint.At("take over: pods taken")

	// 2. Its containers.
	running, err := s.takeContainers(old, of, back)
	if err != nil {
		return err
	}
	failpoint.At("take over: containers taken")

	// 3. The containers stand still until its end. If this process is killed, a later one thaws them.
	thaw, err := freeze(running, doing)
	defer thaw()
	if err != nil {
		return err
	}
	failpoint.At("take over: frozen")

	// 4. Its end, when all output is written.
	old.drain(ctx)
	doing.Ending = true
	if err := doing.Write(); err != nil {
		return err
	}
	failpoint.At("take over: all is ready")
	if err := old.kill(); err != nil {
		return err
	}
	failpoint.At("take over: ended")
	back.Release()
	return nil
}

// takeSandboxes duplicates what the old keeper holds of all pods, and writes their records.
func (s *Server) takeSandboxes(old *predecessor, of *keeper.Predecessor, back *undo.Stack) error {
	devices, err := s.takeShm(old)
	if err != nil {
		return err
	}
	for _, box := range of.Held.Sandboxes {
		path := s.recordPath(sandboxRecords, box.Id)
		if _, err := os.Lstat(path); err == nil {
			return fault.New(fault.Precondition,
				"the keeper, process %d, keeps records, as %s: kill it, and its holder starts another", of.Pid, path)
		}
		back.Add("remove the record", func(context.Context) error { return removeRecord(path) })
		if err := s.takeSandbox(old, box, of.Sandboxes[box.Id], devices[box.Id]); err != nil {
			return fmt.Errorf("take over pod %s: %w", box.Id, err)
		}
	}
	return nil
}

// takeContainers duplicates what the old keeper holds of all containers, writes their records, and
// returns the records of those that have not exited.
func (s *Server) takeContainers(old *predecessor, of *keeper.Predecessor,
	back *undo.Stack) (running []*containerRecord, err error) {
	for _, c := range of.Held.Containers {
		path := s.recordPath(containerRecords, c.Id)
		back.Add("remove the record", func(context.Context) error { return removeRecord(path) })
		r, err := s.takeContainer(old, c, of.Containers[c.Id])
		if err != nil {
			return nil, fmt.Errorf("take over container %s: %w", c.Id, err)
		}
		if c.State != api.State_EXITED {
			running = append(running, r)
		}
	}
	return running, nil
}

// freeze records how the containers are thawed, and freezes them until thaw is called, which is never nil.
func freeze(containers []*containerRecord, doing *keeper.TakingOver) (thaw func(), err error) {
	for _, r := range containers {
		if file, text := r.Made.Cgroup.Thawing(); file != "" {
			doing.Frozen = append(doing.Frozen, keeper.Thaw{File: file, Text: text})
		}
	}
	if err := doing.Write(); err != nil {
		return func() {}, err
	}
	var frozen []func()
	for _, r := range containers {
		frozen = append(frozen, r.Made.Cgroup.Freeze())
	}
	return func() {
		for _, resume := range slices.Backward(frozen) {
			resume()
		}
	}, nil
}

// recordsFor returns the paths of the records of all pods and containers that a keeper holds.
func (s *Server) recordsFor(held *api.ListResponse) (paths []string) {
	for _, box := range held.Sandboxes {
		paths = append(paths, s.recordPath(sandboxRecords, box.Id))
	}
	for _, c := range held.Containers {
		paths = append(paths, s.recordPath(containerRecords, c.Id))
	}
	return paths
}

func (s *Server) takeShm(old *predecessor) (devices map[string]uint64, err error) {
	f, err := old.take(old.mounts)
	if err != nil {
		return nil, fmt.Errorf("its mount namespace with the pods' /dev/shm: %w", err)
	}
	if err := s.keep.client.Put(shmName, f); err != nil {
		return nil, err
	}
	shm, err := namespace.AdoptHolder(f)
	if err != nil {
		return nil, err
	}
	defer shm.Close()
	return shm.Pods()
}

func (s *Server) takeSandbox(old *predecessor, box *api.Sandbox, asked *api.CreateSandboxRequest,
	shmDevice uint64) error {
	if asked == nil {
		asked = &api.CreateSandboxRequest{Id: box.Id, NetnsPath: box.Namespaces["network"],
			Network: box.Namespaces["network"] != "", Pid: box.InitPid != 0}
	}
	r := s.recordOf(asked)
	r.Made, r.ShmDevice, r.Namespaces = true, shmDevice, make(map[string]uint64)
	if len(asked.UidMappings) > 0 {
		user := &namespace.Mapping{UIDs: idMap(asked.UidMappings), GIDs: idMap(asked.GidMappings)}
		r.ShmUID, r.ShmGID = user.Root()
	}
	for kind, path := range box.Namespaces {
		var pid, fd int
		if n, _ := fmt.Sscanf(strings.TrimLeft(path, "/"), "proc/%d/fd/%d", &pid, &fd); n != 2 || pid != old.pid {
			continue // it is not held by descriptor
		}
		f, err := old.take(fd)
		if err != nil {
			return fmt.Errorf("its %s namespace: %w", kind, err)
		}
		r.Namespaces[kind] = inodeOf(f)
		err = s.keep.client.Put(sandboxName(box.Id, kind), f)
		f.Close()
		if err != nil {
			return err
		}
	}
	if r.InitPid = int(box.InitPid); r.InitPid != 0 {
		var err error
		if r.InitBorn, err = process.StartTime(r.InitPid); err != nil {
			return err
		}
	}
	return writeRecord(s.recordPath(sandboxRecords, box.Id), &r)
}

func (s *Server) takeContainer(old *predecessor, c *api.Container, asked *api.CreateRequest) (*containerRecord, error) {
	left, err := s.runtime.Left(c.Id)
	if err != nil {
		return nil, err
	}
	spec, err := oci.ReadSpec(left.Bundle)
	if err != nil {
		return nil, err
	}
	if asked == nil {
		asked = &api.CreateRequest{Tty: spec.Process.Terminal}
	}
	r := &containerRecord{
		ID: c.Id, SandboxID: c.SandboxId, Bundle: left.Bundle, Boot: s.boot, State: api.State_CREATED,
		Rootfs: spec.Root.Path, CgroupsPath: spec.Linux.CgroupsPath, SystemdCgroup: asked.SystemdCgroup,
		LogPath: asked.LogPath, LogDirectory: asked.LogDirectory, LogMaxBytes: asked.LogMaxBytes,
		LogMaxFiles: int(asked.LogMaxFiles), LogRate: asked.LogRateBytes,
		TTY: asked.Tty, Stdin: asked.Stdin, StdinOnce: asked.StdinOnce,
		Made: &left.Created, Born: left.Born, CreatedAt: c.CreatedAt, StartedAt: c.StartedAt,
	}
	if c.State != api.State_CREATED { // the record of an exit is exit.json
		r.State = api.State_RUNNING
	}
	if c.State != api.State_EXITED {
		r.Note = takenOverNote
		if err := s.takeStdio(old, r); err != nil {
			return nil, err
		}
	}
	return r, writeRecord(s.recordPath(containerRecords, c.Id), r)
}

// takeStdio finds our ends of a container's pipes or terminal, by the other ends in its processes.
func (s *Server) takeStdio(old *predecessor, r *containerRecord) error {
	pids, err := r.Made.Cgroup.Procs()
	if err != nil {
		return err
	}
	pids = append([]int{r.Made.Pid}, pids...)
	r.Pipes = make(map[string]uint64)
	used := make(map[uint64]bool)
	for n, stream := range []string{"stdin", "stdout", "stderr"} {
		for _, pid := range pids {
			var st unix.Stat_t
			if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, n), &st) != nil {
				continue // the process has exited, or closed it
			}
			name, fd, ok := stream, 0, false
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFCHR:
				name = "terminal"
				fd, ok = old.terminals[terminal{st.Dev, uint64(unix.Minor(st.Rdev))}]
				ok = ok && r.TTY
			case unix.S_IFIFO:
				fd, ok = old.pipes[pipeEnd{st.Ino, n == 0}]
				ok = ok && !used[st.Ino] && !r.TTY
			}
			if !ok {
				continue
			}
			used[st.Ino] = true
			if err := s.takeStream(old, r, name, fd); err != nil {
				return err
			}
			break
		}
	}
	r.StdinGone = r.Stdin && !r.TTY && r.Pipes["stdin"] == 0
	return nil
}

func (s *Server) takeStream(old *predecessor, r *containerRecord, name string, fd int) error {
	f, err := old.take(fd)
	if err != nil {
		return fmt.Errorf("its %s: %w", name, err)
	}
	if name != "terminal" {
		r.Pipes[name] = inodeOf(f)
	}
	if name != "stdin" {
		old.read = append(old.read, f)
	} else {
		defer f.Close()
	}
	return s.keep.client.Put(containerName(r.ID, name), f)
}

// predecessor is the process of a keeper whose descriptors are taken over.
type predecessor struct {
	pid       int
	pidfd     *process.Pidfd
	pipes     map[pipeEnd]int // its descriptors
	terminals map[terminal]int
	mounts    int        // of the mount namespace that it holds but is not in; 0: none
	read      []*os.File // files from which it reads output of containers
}

type pipeEnd struct {
	inode    uint64
	writable bool
}

// terminal identifies a terminal by the devpts instance and its index.
type terminal struct{ device, index uint64 }

func openPredecessor(pid int) (_ *predecessor, err error) {
	p := &predecessor{pid: pid, pipes: make(map[pipeEnd]int), terminals: make(map[terminal]int)}
	if p.pidfd, err = process.Open(pid); err != nil {
		return nil, err
	}
	dir := fmt.Sprintf("/proc/%d", pid)
	own, err := os.Readlink(dir + "/ns/mnt")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		link, lerr := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		flags, tty, ferr := descriptor(filepath.Join(dir, "fdinfo", e.Name()))
		var st unix.Stat_t
		if errors.Join(err, lerr, ferr, unix.Stat(filepath.Join(dir, "fd", e.Name()), &st)) != nil {
			continue // it was closed meanwhile
		}
		switch {
		case strings.HasPrefix(link, "mnt:[") && link != own:
			p.mounts = fd
		case strings.HasPrefix(link, "pipe:["):
			p.pipes[pipeEnd{st.Ino, flags&unix.O_ACCMODE == unix.O_WRONLY}] = fd
		case tty >= 0:
			p.terminals[terminal{st.Dev, uint64(tty)}] = fd
		}
	}
	return p, nil
}

// descriptor reads proc_pid_fdinfo(5): the open flags, and the index of the terminal if it is a
// master or -1 if it is not.
func descriptor(path string) (flags uint64, tty int, err error) {
	body, err := os.ReadFile(path)
	tty = -1
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimSpace(value); key {
		case "flags":
			flags, err = strconv.ParseUint(value, 8, 64)
		case "tty-index":
			tty, err = strconv.Atoi(value)
		}
	}
	return flags, tty, err
}

// take duplicates one of its descriptors.
func (p *predecessor) take(fd int) (*os.File, error) {
	if fd == 0 {
		return nil, fault.New(fault.NotFound, "it has no such descriptor")
	}
	var dup int
	err := p.pidfd.Control(func(pidfd int) (err error) {
		dup, err = unix.PidfdGetfd(pidfd, fd, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pidfd_getfd (Linux 5.6 or newer): %w", err)
	}
	return os.NewFile(uintptr(dup), "taken"), nil
}

// drainLimit limits the wait for an ending keeper to write the output of its frozen containers.
const (
	drainLimit = 2 * time.Second
	quietLooks = 3 // consecutive checks that must find nothing to read and no running thread
)

// drain waits until the keeper has read everything and sleeps. By then it has written everything,
// too.
func (p *predecessor) drain(ctx context.Context) {
	for limit, quiet := time.Now().Add(drainLimit), 0; quiet < quietLooks; time.Sleep(2 * time.Millisecond) {
		if p.unread() > 0 || !p.sleeps() {
			quiet = 0
		} else {
			quiet++
		}
		if time.Now().After(limit) || ctx.Err() != nil {
			slog.Warn("the old keeper has not read all that its containers have printed: a piece of a log may be missing",
				"pid", p.pid, "unread_bytes", p.unread())
			return
		}
	}
}

func (p *predecessor) unread() (bytes int) {
	for _, f := range p.read {
		_ = control(f, func(fd int) error {
			n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
			bytes += n
			return err
		})
	}
	return bytes
}

// sleeps reports whether none of its threads is running.
func (p *predecessor) sleeps() bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid))
	for _, path := range threads {
		stat, rerr := os.ReadFile(path)
		if _, after, ok := bytes.Cut(stat, []byte(") ")); rerr == nil && ok && after[0] != 'S' {
			return false
		}
	}
	return err == nil
}

// kill kills the keeper and waits until it has exited.
func (p *predecessor) kill() error {
	if err := p.pidfd.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("end the keeper, process %d: %w", p.pid, err)
	}
	if !p.pidfd.Ends(killLimit) {
		return fmt.Errorf("the keeper, process %s, does not end", process.Describe(p.pid))
	}
	return nil
}

func (p *predecessor) close() {
	for _, f := range p.read {
		f.Close()
	}
	p.pidfd.Close()
}
