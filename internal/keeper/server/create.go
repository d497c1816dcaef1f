package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/step"
	"github.com/kuri-cri/kuri/internal/undo"
)

// Create creates a container whose process waits at its start line, or returns the existing
// container with that id. The work continues when ctx ends; a repeated request joins it. If it
// fails, nothing of the container remains.
func (s *Server) Create(ctx context.Context, req *api.CreateRequest) (*api.Container, error) {
	if err := checkID(req.Id); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(req.Bundle) || req.Rootfs == nil || len(req.Rootfs.Lowerdirs) == 0 {
		return nil, fault.New(fault.Invalid, "container %s: a bundle and at least one layer are needed", req.Id)
	}
	m, _, err := s.containerFlights.Do(ctx, "create "+req.Id, func(ctx context.Context) (*api.Container, error) {
		if c, err := s.container(req.Id); err == nil {
			return c.message(), nil
		}
		m, steps, err := stepped(ctx, s, "Create", func(ctx context.Context) (*api.Container, error) { return s.create(ctx, req) })
		if err == nil {
			m.Steps = steps
		}
		return m, err
	})
	return m, err
}

// creation is a Create in progress: its request, and what its steps have made so far.
type creation struct {
	s     *Server
	req   *api.CreateRequest
	c     *container
	box   *sandbox
	spec  *specs.Spec
	stdio *stdio
	pipes map[string]uint64 // the inodes of its pipes by name
	back  *undo.Stack       // each step adds its undo
}

func (s *Server) create(ctx context.Context, req *api.CreateRequest) (*api.Container, error) {
	defer s.stir()

	// 1. Reserve the id.
	step.Enter(ctx, "bundle")
	c, box, err := s.reserve(req)
	if err != nil {
		return nil, err
	}
	defer close(c.ready)
	n := &creation{s: s, req: req, c: c, box: box, back: undo.New(ctx)}
	defer n.back.Run()
	n.back.Add("forget the container", func(context.Context) error { s.remove(c); return nil })
	failpoint.At("create: id reserved")

	// 2. The bundle, and the container whose PID namespace it joins, if any.
	if n.spec, err = s.readSpec(req); err != nil {
		return nil, err
	}
	release, err := s.holdTarget(n.spec, box)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := s.namespacePaths(n.spec, box); err != nil {
		return nil, err
	}
	if box.ids != nil { // otherwise the runtime reads them from the namespace
		n.spec.Linux.UIDMappings, n.spec.Linux.GIDMappings = ociMappings(box.ids.UIDs), ociMappings(box.ids.GIDs)
	}

	// 3. The record of the intent, so that a successor can revert incomplete work.
	step.Enter(ctx, "record")
	if err := n.recordIntent(); err != nil {
		return nil, err
	}
	failpoint.At("create: intent recorded")

	// 4. Its log and stdio, which the holder keeps as well.
	step.Enter(ctx, "stdio")
	if err := n.openLogAndStdio(); err != nil {
		return nil, err
	}
	failpoint.At("create: log and stdio opened")

	// 5. The mount points of its root filesystem and its other layers.
	step.Enter(ctx, "mounts")
	if err := n.makeMountPoints(); err != nil {
		return nil, err
	}
	failpoint.At("create: mount points made")

	// 6. The process, from a thread in a new mount namespace.
	if err := n.makeProcess(ctx); err != nil {
		return nil, err
	}
	failpoint.At("create: process created")

	// 7. Its stdin and the writers of its log.
	step.Enter(ctx, "stdio")
	if err := n.connectStdio(); err != nil {
		return nil, err
	}

	// 8. The record, before the container is reported.
	step.Enter(ctx, "record")
	if err := n.recordCreated(); err != nil {
		return nil, err
	}
	failpoint.At("create: recorded")
	for _, t := range c.outputs {
		c.pumps.Go(t.follow)
	}
	go s.watch(c)
	n.back.Release()
	return c.message(), nil
}

// recordIntent writes the first record of the container, from which a successor finds what to undo.
func (n *creation) recordIntent() error {
	err := n.c.amend(func(r *containerRecord) { r.Rootfs, r.CgroupsPath = n.spec.Root.Path, n.spec.Linux.CgroupsPath })
	if err != nil {
		return err
	}
	n.back.Add("remove the record", func(context.Context) error { return removeRecord(n.c.recordPath) })
	return nil
}

func (n *creation) openLogAndStdio() (err error) {
	if n.req.LogPath != "" {
		if n.c.log, err = openLog(logPlace{n.req.LogPath, n.req.LogDirectory}, limitsOf(n.req)); err != nil {
			return err
		}
		n.back.Add("close the log", func(context.Context) error { n.c.log.close(); return nil })
	}
	if n.stdio, err = openStdio(n.req.Tty, n.req.Stdin); err != nil {
		return err
	}
	n.back.Add("close the stdio", func(context.Context) error {
		n.stdio.close()
		n.c.dropHeld()
		return nil
	})
	n.pipes = n.stdio.keepIn(n.c)
	return nil
}

func (n *creation) makeMountPoints() error {
	n.c.rootfs = n.spec.Root.Path
	n.back.Add("remove the mount points", func(context.Context) error { return removeMountPoints(filepath.Dir(n.c.rootfs)) })
	return makeMountPoints(n.c.rootfs, n.req.Overlays)
}

// makeProcess creates the process, which waits at its start line, and receives its terminal if it has one.
func (n *creation) makeProcess(ctx context.Context) error {
	err := namespace.OnThread(func() error { return n.createInside(ctx) })
	n.stdio.closeTheirs()
	if err != nil {
		return err
	}
	n.back.Add("kill the process", func(context.Context) error { return n.s.discard(n.c) })
	if err := n.stdio.receiveConsole(); err != nil {
		return err
	}
	if n.stdio.terminal != nil {
		n.c.hold("terminal", n.stdio.terminal)
	}
	return nil
}

func (n *creation) connectStdio() error {
	n.c.stdin.set(n.stdio.stdin, n.req.StdinOnce)
	n.c.stdin.left = n.c.stdinLeft
	if err := n.c.tapOutputs(n.stdio); err != nil {
		return err
	}
	if n.req.StdinOnce {
		n.c.fanOut.keep()
	}
	return nil
}

// recordCreated has the holder watch the process, and writes the record of the complete container.
func (n *creation) recordCreated() error {
	made := n.c.made
	when, err := process.StartTime(made.Pid)
	if err != nil {
		return err
	}
	n.c.keep.watch(made.Pid)
	return n.c.become(api.State_CREATED, func(r *containerRecord) {
		r.Made, r.Born, r.Pipes, r.CreatedAt = made, when, n.pipes, time.Now().UnixNano()
	})
}

// reserve registers the container. From then on its sandbox cannot be removed.
func (s *Server) reserve(req *api.CreateRequest) (*container, *sandbox, error) {
	c := &container{
		id: req.Id, sandboxID: req.SandboxId, bundle: req.Bundle, ready: make(chan struct{}), exited: make(chan struct{}),
		recordPath: s.recordPath(containerRecords, req.Id), keep: s.keep,
		rec: containerRecord{
			ID: req.Id, SandboxID: req.SandboxId, Bundle: req.Bundle, Boot: s.boot, SystemdCgroup: req.SystemdCgroup,
			LogPath: req.LogPath, LogDirectory: req.LogDirectory, LogMaxBytes: req.LogMaxBytes, LogMaxFiles: int(req.LogMaxFiles), LogRate: req.LogRateBytes,
			TTY: req.Tty, Stdin: req.Stdin, StdinOnce: req.StdinOnce,
		},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	box := s.sandboxes[req.SandboxId]
	if box == nil || box.removing {
		return nil, nil, fault.New(fault.NotFound, "the keeper has no sandbox %s", req.SandboxId)
	}
	if box.gone != "" {
		return nil, nil, fault.New(fault.Precondition, "sandbox %s takes no containers any more: %s", req.SandboxId, box.gone)
	}
	if s.containers[req.Id] != nil {
		return nil, nil, fault.New(fault.Unavailable, "container %s is being deleted", req.Id)
	}
	s.containers[req.Id] = c
	return c, box, nil
}

func (s *Server) remove(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
}

func (s *Server) readSpec(req *api.CreateRequest) (*specs.Spec, error) {
	spec, err := s.runtime.Spec(req.Bundle)
	if err != nil {
		return nil, err
	}
	if filepath.Dir(filepath.Dir(spec.Root.Path)) != s.mounts() {
		return nil, fault.New(fault.Invalid, "root.path %q of container %s is not %s/<id>/rootfs", spec.Root.Path, req.Id, s.mounts())
	}
	if spec.Process.Terminal != req.Tty {
		return nil, fault.New(fault.Invalid, "container %s: tty is %v and process.terminal is %v", req.Id, req.Tty, spec.Process.Terminal)
	}
	return spec, nil
}

// createInside runs on its own thread. It leaves the host's mount namespace, mounts the container's
// filesystems in a new one, and creates the container, which inherits that one. The propagation of
// all other mounts is unchanged, so that volumes propagate as the specification says.
func (n *creation) createInside(ctx context.Context) error {
	s, c, box, spec, req := n.s, n.c, n.box, n.spec, n.req
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	var shm *os.File
	if box.shmPath != "" {
		var err error
		if shm, err = s.shm.CloneShm(box.id); err != nil {
			return err
		}
		defer shm.Close()
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace for container %s: %w", c.id, err)
	}
	if err := mountRootfs(spec.Root.Path, req, spec.Linux.MountLabel, box.set.User); err != nil {
		return fmt.Errorf("root filesystem of container %s: %w", c.id, err)
	}
	if shm != nil {
		if err := unix.MoveMount(int(shm.Fd()), "", unix.AT_FDCWD, box.shmPath, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount /dev/shm for container %s: %w", c.id, err)
		}
	}

	failpoint.At("create: root filesystem mounted")

	release := s.reaper.hold()
	defer release()
	made, err := s.runtime.Create(ctx, c.id, req.Bundle, spec, req.SystemdCgroup, n.stdio.theirs)
	if err != nil {
		return err
	}
	failpoint.At("create: runtime has created")
	if c.pidfd, err = process.Open(made.Pid); err != nil {
		return errors.Join(err, unix.Kill(made.Pid, unix.SIGKILL), s.runtime.Delete(c.id))
	}
	s.reaper.mine(made.Pid)
	c.made = made
	if req.SystemdCgroup { // otherwise only the keeper removes the cgroup
		if err := s.ooms.Open(made.Cgroup); err != nil {
			slog.Warn("an OOM kill of a container may not be reported", "container", c.id, "err", err)
		}
	}
	return nil
}

// discard kills the process of a Create that failed later, and removes the runtime's part.
func (s *Server) discard(c *container) error {
	if err := c.signal(unix.SIGKILL); err != nil {
		return err
	}
	s.reaper.await(c.made.Pid, c.pidfd)
	c.pidfd.Close()
	c.keep.forget(c.made.Pid)
	s.ooms.Close(c.made.Cgroup)
	c.made = nil
	return s.runtime.Delete(c.id)
}

// tapOutputs prepares the copying of the container's output.
func (c *container) tapOutputs(stdio *stdio) error {
	c.terminal = stdio.terminal
	for _, src := range stdio.outputs {
		t := &tap{
			stream: src.Stream, file: src.File, log: c.log, hold: c.hold,
			send: func(data []byte) { c.fanOut.write(src.Stream, data) }, noClient: c.fanOut.empty,
		}
		if c.terminal != nil && c.log != nil {
			var err error
			if t.transit, err = newPipePair(); err == nil {
				err = t.transit.hold(c.hold, t.stream+transitSuffix)
			}
			if err != nil {
				return fmt.Errorf("make a pipe for what the terminal prints: %w", err)
			}
		}
		c.outputs = append(c.outputs, t)
	}
	return nil
}

// hold stores a descriptor of the container in the holder.
func (c *container) hold(name string, f *os.File) { c.holdAll(map[string]*os.File{name: f}) }

// holdAll stores descriptors of the container by name in the holder.
func (c *container) holdAll(files map[string]*os.File) {
	c.heldMu.Lock()
	defer c.heldMu.Unlock()
	named := make(map[string]*os.File)
	for name, f := range files {
		named[containerName(c.id, name)] = f
		c.held = append(c.held, containerName(c.id, name))
	}
	c.keep.putAll(named)
}

// dropHeld removes all of the container's descriptors from the holder.
func (c *container) dropHeld() {
	c.heldMu.Lock()
	defer c.heldMu.Unlock()
	c.keep.drop(c.held...)
	c.held = nil
}

// keepIn stores our ends in the holder, and returns the inodes of the pipes by name.
func (s *stdio) keepIn(c *container) map[string]uint64 {
	files, inodes := make(map[string]*os.File), make(map[string]uint64)
	if s.stdin != nil {
		files["stdin"] = s.stdin
	}
	for _, src := range s.outputs {
		files[src.Stream] = src.File
	}
	c.holdAll(files)
	for name, f := range files {
		inodes[name] = inodeOf(f)
	}
	return inodes
}

// stdinLeft records that the stdin was passed to a client. The holder drops its copy, so that the
// stdin ends when the client closes it.
func (c *container) stdinLeft() {
	if err := c.amend(func(r *containerRecord) { r.StdinGone = true }); err != nil {
		slog.Warn("note that a stdin was given away", "container", c.id, "err", err)
	}
	c.keep.drop(containerName(c.id, "stdin"))
}

// ociMappings converts the id mappings of a pod's user namespace.
func ociMappings(maps []syscall.SysProcIDMap) (out []specs.LinuxIDMapping) {
	for _, m := range maps {
		out = append(out, specs.LinuxIDMapping{ContainerID: uint32(m.ContainerID), HostID: uint32(m.HostID), Size: uint32(m.Size)})
	}
	return out
}

// namespacePaths replaces the descriptor paths of an earlier keeper, which the caller may still use
// for the pod's namespaces, by those of this keeper.
func (s *Server) namespacePaths(spec *specs.Spec, box *sandbox) error {
	for i := range spec.Linux.Namespaces {
		ns := &spec.Linux.Namespaces[i]
		var pid, fd int
		path := "/" + strings.TrimLeft(ns.Path, "/")
		if n, _ := fmt.Sscanf(path, "/proc/%d/fd/%d", &pid, &fd); n != 2 || path != fmt.Sprintf("/proc/%d/fd/%d", pid, fd) || pid == os.Getpid() {
			continue
		}
		ours, ok := box.reported.Namespaces[string(ns.Type)]
		if !ok {
			return fault.New(fault.Precondition, "the pod has no %s namespace any more", ns.Type)
		}
		ns.Path = ours
	}
	return nil
}
