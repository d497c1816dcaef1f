package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/step"
	"github.com/kuri-cri/kuri/internal/undo"
)

// killLimit limits the wait for a process to die after SIGKILL.
const killLimit = 10 * time.Second

// sandbox is a pod: its namespaces and, with a shared PID namespace, its init.
type sandbox struct {
	id       string
	rec      sandboxRecord // constant once the sandbox is in Server.sandboxes
	adopted  bool          // created by an earlier keeper: its init is not our child
	reported *api.Sandbox  // as reported to callers, immutable; guarded by Server.mu, as are the next two
	gone     string        // why no process can start in it any more; "" if one can
	removing bool          // it accepts no new containers
	set      *namespace.Set
	ids      *namespace.Mapping // of its user namespace; nil without one, and after adoption
	shmPath  string             // "" without a /dev/shm of its own

	init    *namespace.Init // nil without a shared PID namespace
	initFD  *process.Pidfd
	initEnd chan struct{} // closed when the init has ended and been reaped
	cgroup  *oci.ProcessCgroup
}

// CreateSandbox creates a sandbox, or returns the existing sandbox with that id.
func (s *Server) CreateSandbox(ctx context.Context, req *api.CreateSandboxRequest) (*api.Sandbox, error) {
	if err := checkID(req.Id); err != nil {
		return nil, err
	}
	if req.ShmBytes > 0 && filepath.Dir(filepath.Dir(req.ShmPath)) != s.mounts() {
		return nil, fault.New(fault.Invalid, "shm_path %q is not %s/<id>/shm", req.ShmPath, s.mounts())
	}
	box, _, err := s.sandboxFlights.Do(ctx, req.Id, func(ctx context.Context) (*api.Sandbox, error) {
		s.mu.Lock()
		box := s.sandboxes[req.Id]
		if box == nil {
			s.mu.Unlock()
			made, steps, err := stepped(ctx, s, "CreateSandbox", func(ctx context.Context) (*api.Sandbox, error) { return s.createSandbox(ctx, req) })
			if err == nil {
				made = proto.CloneOf(made) // other callers get no steps
				made.Steps = steps
			}
			return made, err
		}
		defer s.mu.Unlock()
		if box.removing {
			return nil, fault.New(fault.Unavailable, "sandbox %s is being removed", req.Id)
		}
		return box.reported, nil
	})
	return box, err
}

func (s *Server) createSandbox(ctx context.Context, req *api.CreateSandboxRequest) (*api.Sandbox, error) {
	defer s.stir()
	box := &sandbox{id: req.Id}
	back := undo.New(ctx)
	defer back.Run()

	// 1. The record of the intent, so that a successor can revert incomplete work.
	step.Enter(ctx, "record")
	box.rec = s.recordOf(req)
	path := s.recordPath(sandboxRecords, req.Id)
	if err := writeRecord(path, &box.rec); err != nil {
		return nil, err
	}
	back.Add("remove the record", func(context.Context) error { return removeRecord(path) })

	failpoint.At("create sandbox: intent recorded")

	// 2. The namespaces and the init in them.
	step.Enter(ctx, "namespaces")
	if err := s.makeNamespaces(ctx, box, req, back); err != nil {
		return nil, err
	}

	failpoint.At("create sandbox: namespaces made")

	// 3. Its /dev/shm.
	if req.ShmBytes > 0 {
		step.Enter(ctx, "shm")
		if err := s.makeShm(box, req, back); err != nil {
			return nil, err
		}
	}

	failpoint.At("create sandbox: /dev/shm made")

	// 4. The holder keeps its namespaces as well, and the record has their inodes.
	step.Enter(ctx, "holder")
	back.Add("have the namespaces kept no longer", func(context.Context) error { box.dropFrom(s.keep); return nil })
	if err := box.keepIn(s.keep); err != nil {
		return nil, err
	}
	failpoint.At("create sandbox: namespaces kept")
	step.Enter(ctx, "record")
	box.rec.Made = true
	if err := writeRecord(path, &box.rec); err != nil {
		return nil, err
	}

	failpoint.At("create sandbox: recorded")

	// 5. The sandbox becomes visible.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retired {
		return nil, fault.New(fault.Unavailable, "the keeper is ending")
	}
	if box.gone != "" {
		return nil, fault.New(fault.Unavailable, "sandbox %s: %s", req.Id, box.gone)
	}
	box.reported = box.message()
	s.sandboxes[req.Id] = box
	back.Release()
	return box.reported, nil
}

// makeNamespaces creates the namespaces of box, and the pod's init if it has one.
func (s *Server) makeNamespaces(ctx context.Context, box *sandbox, req *api.CreateSandboxRequest, back *undo.Stack) error {
	config, err := namespaceConfig(req)
	if err != nil {
		return err
	}
	config.CreateUser = s.runtime.CreateUser
	box.ids = config.User
	release := s.reaper.hold()
	box.set, err = namespace.Make(config, func(attr *syscall.SysProcAttr) (int, error) { return s.startInit(ctx, box, req, attr) })
	release()
	back.Add("end the pod's init", func(context.Context) error { return s.endInit(box) })
	if err != nil {
		return fmt.Errorf("namespaces of sandbox %s: %w", req.Id, err)
	}
	back.Add("give the namespaces up", func(context.Context) error { return box.set.Close() })
	return nil
}

func namespaceConfig(req *api.CreateSandboxRequest) (namespace.Config, error) {
	config := namespace.Config{
		Network: req.Network, NetnsPath: req.NetnsPath, IPC: req.Ipc, UTS: req.Uts, Hostname: req.Hostname,
		Sysctls: req.Sysctls, SysctlDefaults: req.DefaultSysctls,
	}
	if req.Network && !filepath.IsAbs(req.NetnsPath) {
		return config, fault.New(fault.Invalid, "netns_path %q is not an absolute path", req.NetnsPath)
	}
	config.User = userMapping(req)
	return config, nil
}

// userMapping returns the mapping of the pod's user namespace, nil without one.
func userMapping(req *api.CreateSandboxRequest) *namespace.Mapping {
	if len(req.UidMappings) == 0 {
		return nil
	}
	return &namespace.Mapping{UIDs: idMap(req.UidMappings), GIDs: idMap(req.GidMappings)}
}

// makeShm creates the pod's /dev/shm, and the directory on which containers mount it in their own
// mount namespaces.
func (s *Server) makeShm(box *sandbox, req *api.CreateSandboxRequest, back *undo.Stack) (err error) {
	uid, gid := userMapping(req).Root()
	box.rec.ShmUID, box.rec.ShmGID = uid, gid
	if box.rec.ShmDevice, err = s.shm.AddShm(req.Id, req.ShmBytes, uid, gid, req.MountLabel); err != nil {
		return err
	}
	back.Add("remove /dev/shm", func(context.Context) error { return s.shm.RemoveShm(req.Id) })
	if err := os.MkdirAll(req.ShmPath, 0o755); err != nil {
		return err
	}
	back.Add("remove the directory of /dev/shm", func(context.Context) error { return removeDirs(req.ShmPath) })
	box.shmPath = req.ShmPath
	return nil
}

func idMap(mappings []*api.IDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range mappings {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerId), HostID: int(m.HostId), Size: int(m.Length)})
	}
	return out
}

// startInit runs on the thread that is in the new namespaces, or with the attributes with which the
// init creates them. It returns the pid of the init, or 0 if there is none.
func (s *Server) startInit(ctx context.Context, box *sandbox, req *api.CreateSandboxRequest, attr *syscall.SysProcAttr) (pid int, err error) {
	if !req.Pid {
		return 0, nil
	}
	step.Enter(ctx, "init")
	if box.init, err = namespace.StartInit(int(req.OomScoreAdj), req.MountLabel, attr); err != nil {
		return 0, err
	}
	failpoint.At("create sandbox: init started")
	if box.initFD, err = process.Open(box.init.Pid); err != nil {
		unix.Kill(box.init.Pid, unix.SIGKILL) // the reaper collects it as a stray
		return 0, err
	}
	s.reaper.mine(box.init.Pid)
	box.initEnd = make(chan struct{})
	go s.watchInit(box, box.init.Pid)
	box.cgroup, err = oci.EnterCgroup(req.CgroupsPath, "kuri-"+req.Id, req.SystemdCgroup, box.init.Pid)
	return box.init.Pid, err
}

// watchInit waits for the end of the init and reaps it. Unless the sandbox is being removed, it
// publishes an event: no process can start in the PID namespace any more (pid_namespaces(7)).
func (s *Server) watchInit(box *sandbox, pid int) {
	defer close(box.initEnd)
	end := "it cannot be had"
	err := fault.Contained(func() error {
		if box.adopted {
			return box.initFD.Wait()
		}
		switch ws := s.reaper.await(pid, box.initFD); {
		case ws.Signaled():
			end = fmt.Sprintf("signal %d, %s", ws.Signal(), unix.SignalName(ws.Signal()))
		default:
			end = fmt.Sprintf("exit code %d", ws.ExitStatus())
		}
		return nil
	})
	if err != nil && !box.adopted {
		s.reaper.forget(pid) // this also reaps it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if box.removing {
		return
	}
	box.gone = fmt.Sprintf("the init of its PID namespace, process %d, has ended (%s)", pid, end)
	if box.reported == nil {
		return // it is being created, and that will fail
	}
	box.reported = proto.CloneOf(box.reported)
	box.reported.Gone = box.gone
	slog.Warn("a pod can run nothing any more", "pod", box.id, "why", box.gone)
	s.events.publish(&api.Event{Sandbox: box.reported})
}

// endInit kills the init, and with it all processes in its PID namespace, and removes its cgroup.
func (s *Server) endInit(box *sandbox) error {
	if box.init == nil {
		return nil
	}
	if box.initEnd != nil {
		if err := box.initFD.Signal(unix.SIGKILL); err != nil {
			return err
		}
		if box.cgroup != nil { // it may be frozen
			if err := box.cgroup.SignalKill(); err != nil {
				return err
			}
		}
		select {
		case <-box.initEnd:
		case <-time.After(killLimit):
			return fmt.Errorf("the init process of sandbox %s cannot be killed: process %s", box.id, process.Describe(box.init.Pid))
		}
		box.initFD.Close()
	}
	if box.init.PidNS != nil {
		box.init.PidNS.Close()
	}
	box.init = nil
	if box.cgroup != nil {
		return box.cgroup.Remove()
	}
	return nil
}

// RemoveSandbox releases all resources that CreateSandbox created. Containers must be deleted
// first.
func (s *Server) RemoveSandbox(ctx context.Context, id string) error {
	_, _, err := s.removals.Do(ctx, "sandbox "+id, func(context.Context) (struct{}, error) {
		return struct{}{}, s.removeSandbox(id)
	})
	return err
}

func (s *Server) removeSandbox(id string) (err error) {
	defer s.stir()
	box, err := s.beginRemoval(id)
	if box == nil && err == nil && checkID(id) == nil {
		return s.removeUnrecorded(id)
	}
	if box == nil {
		return err
	}
	defer func() { s.endRemoval(box, err == nil) }()
	failpoint.At("remove sandbox: closed for containers")
	if err := s.endInit(box); err != nil {
		return err
	}
	failpoint.At("remove sandbox: init ended")
	if err := box.set.Close(); err != nil {
		return fmt.Errorf("give the namespaces of sandbox %s up: %w", id, err)
	}
	failpoint.At("remove sandbox: namespaces given up")
	box.dropFrom(s.keep)
	if box.shmPath != "" {
		if err := errors.Join(s.shm.RemoveShm(id), removeDirs(box.shmPath)); err != nil {
			return err
		}
	}
	failpoint.At("remove sandbox: /dev/shm removed")
	if err := removeRecord(s.recordPath(sandboxRecords, id)); err != nil {
		return err
	}
	failpoint.At("remove sandbox: record removed")
	return nil
}

func (s *Server) recordOf(req *api.CreateSandboxRequest) sandboxRecord {
	r := sandboxRecord{
		ID: req.Id, Boot: s.boot, IPC: req.Ipc, UTS: req.Uts, PID: req.Pid, User: len(req.UidMappings) > 0,
		ShmBytes: req.ShmBytes, ShmPath: req.ShmPath, MountLabel: req.MountLabel,
		CgroupsPath: req.CgroupsPath, SystemdCgroup: req.SystemdCgroup,
	}
	if req.Network {
		r.NetnsPath = req.NetnsPath
	}
	return r
}

// held returns the namespaces that are held by descriptor, by OCI type.
func (b *sandbox) held() map[string]*os.File {
	all := map[string]*os.File{"ipc": b.set.IPC, "uts": b.set.UTS, "user": b.set.User}
	if b.init != nil {
		all["pid"] = b.init.PidNS
	}
	maps.DeleteFunc(all, func(_ string, f *os.File) bool { return f == nil })
	return all
}

// keepIn stores the sandbox's namespaces in the holder, and their inodes in the record.
func (b *sandbox) keepIn(k keep) (err error) {
	b.rec.Namespaces = make(map[string]uint64)
	files := make(map[string]*os.File)
	for kind, f := range b.held() {
		files[sandboxName(b.id, kind)] = f
		b.rec.Namespaces[kind] = inodeOf(f)
	}
	k.putAll(files)
	if b.init != nil {
		b.rec.InitPid = b.init.Pid
		b.rec.InitBorn, err = process.StartTime(b.init.Pid)
	}
	return err
}

func (b *sandbox) dropFrom(k keep) {
	var names []string
	for kind := range b.rec.Namespaces {
		names = append(names, sandboxName(b.id, kind))
	}
	k.drop(names...)
}

// beginRemoval closes the sandbox for new containers. It returns nil if the sandbox does not exist,
// and an error if it still has containers.
func (s *Server) beginRemoval(id string) (*sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []string
	for _, c := range s.containers {
		if c.sandboxID == id {
			left = append(left, c.id)
		}
	}
	if len(left) > 0 {
		return nil, fault.New(fault.Precondition, "sandbox %s still has containers: %s", id, strings.Join(left, ", "))
	}
	box := s.sandboxes[id]
	if box != nil {
		box.removing = true
	}
	return box, nil
}

func (s *Server) endRemoval(box *sandbox, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	box.removing = false
	if done {
		delete(s.sandboxes, box.id)
	}
}

// removeDirs removes the directory <state>/mounts/<id>/<name>, and then its parent if that is
// empty.
func removeDirs(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(filepath.Dir(path)); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func (b *sandbox) message() *api.Sandbox {
	m := &api.Sandbox{Id: b.id, Namespaces: make(map[string]string)}
	for kind, f := range b.held() {
		m.Namespaces[kind] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	}
	if b.set.User != nil {
		// libcontainer takes any path with the prefix /proc/<pid> for the process's own namespace.
		// The keeper's own is the host's.
		m.Namespaces["user"] = "/" + m.Namespaces["user"]
	}
	if b.set.NetnsPath != "" {
		m.Namespaces["network"] = b.set.NetnsPath
	}
	if b.init != nil {
		m.InitPid = int32(b.init.Pid)
	}
	return m
}
