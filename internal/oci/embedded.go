package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, which the cgroup library has apart
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C half of a container's init, which enters its namespaces
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/step"
)

// Init is the program of a container's first process up to its exec, and never returns. The program that links
// [Embedded] calls it first of all when its first argument is "init".
func Init() { libcontainer.Init() }

// Embedded is the OCI runtime that is linked in.
type Embedded struct {
	root    string
	forks   forkServer
	filters filters
	held    held
	pins    pins

	hierarchies hierarchies
}

// NewEmbedded returns a runtime that keeps its records below root, which it makes when it needs it. It is called in the
// host's mount namespace.
func NewEmbedded(root string) *Embedded {
	// The cgroup library opens the cgroup root once, at its first use. That must not be in the mount namespace of a
	// container's start, which passes. (On v1 the root is a tmpfs, which it opens and then does not give out.)
	if f, err := cgroups.OpenFile("/sys/fs/cgroup", "", unix.O_PATH|unix.O_DIRECTORY); err == nil {
		f.Close()
	}
	learnNames()
	sealed()
	return &Embedded{root: root, forks: forkServer{sock: -1}}
}

// learnNames has the cgroup library find out, on v1, how the kernel calls the files of block I/O weights. It keeps that in a
// variable without a lock, at the first container's start, while others may be reading it. Nothing is set.
func learnNames() {
	if cgroup.Unified() {
		return
	}
	dir, _ := cgroups.GetOwnCgroupPath("blkio") // where there is none, no weight can be set
	none := &cgroups.Resources{SkipDevices: true}
	if m, err := fs.NewManager(&cgroups.Cgroup{Resources: none}, map[string]string{"blkio": dir}); err == nil {
		m.Set(none)
	}
}

// Close gives up what the runtime has in memory. Containers and their processes go on.
func (e *Embedded) Close() {
	e.forks.close()
	e.held.close()
}

// Stdio is what a process gets as its standard streams. With a Console they are a terminal, whose other end is sent over
// that socket, and the rest is nil. A nil Stdin is /dev/null.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	Console               *os.File
}

func (s Stdio) give(p *libcontainer.Process, config configs.Config) error {
	if s.Console != nil {
		p.ConsoleSocket = s.Console
		return nil
	}
	if err := s.chown(config); err != nil {
		return fmt.Errorf("give the standard streams to the container's root: %w", err)
	}
	// A nil *os.File must not become an io.Reader that is not nil.
	if s.Stdin != nil {
		p.Stdin = s.Stdin
	}
	if s.Stdout != nil {
		p.Stdout = s.Stdout
	}
	if s.Stderr != nil {
		p.Stderr = s.Stderr
	}
	return nil
}

// chown makes the root of a user namespace the owner of the pipes: libcontainer, in the namespace, could not give what
// belongs to the host's root to the process's user, and the process could not open /dev/stdout.
func (s Stdio) chown(config configs.Config) error {
	if !config.Namespaces.Contains(configs.NEWUSER) {
		return nil
	}
	uid, err := config.HostRootUID()
	if err != nil {
		return err
	}
	gid, err := config.HostRootGID()
	if err != nil {
		return err
	}
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			if err := f.Chown(uid, gid); err != nil {
				return err
			}
		}
	}
	return nil
}

// Created is what create makes.
type Created struct {
	Pid        int          `json:"pid"` // of the first process, in the PID namespace of this process
	PrivatePID bool         `json:"private_pid,omitempty"`
	Cgroup     cgroup.Group `json:"cgroup"`
	Init       string       `json:"init,omitempty"` // who made the process, for people: InitNative, or InitLibcontainer with the reason
}

// The ways in which a container's first process is made. The second is followed by a colon and why.
const (
	InitNative       = "native"
	InitLibcontainer = "libcontainer"
)

// Create makes the container id of a bundle (runtime specification, "create"): its process waits at its start line.
// It takes the mount namespace of the calling thread, in which spec's root.path is the root filesystem, and in which no
// other namespace sees what is mounted below the runtime's records. When it fails nothing of the container stays. The error
// does not name it: whoever asks for it knows a better name.
// The operation that ctx carries is told of the steps.
func (e *Embedded) Create(ctx context.Context, id, bundle string, spec *specs.Spec, systemdCgroup bool, stdio Stdio) (_ *Created, err error) {
	step.Enter(ctx, "config")
	// The bundle is the working directory, by the specification; libcontainer takes it from there.
	if err := unix.Chdir(bundle); err != nil {
		return nil, fmt.Errorf("enter bundle %s: %w", bundle, err)
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       id,
		UseSystemdCgroup: systemdCgroup,
		Spec:             spec,
	})
	if err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("configuration of container %s: %w", id, err))
	}
	if p := swapProperty(config.Cgroups); p != nil {
		config.Cgroups.SystemdProps = append(config.Cgroups.SystemdProps, *p)
	}
	why := beyondInit(spec, config, systemdCgroup)
	if why == "" && !sealed() {
		why = "a keeper that does not run from a sealed copy"
	}
	if why == "" {
		made, err := e.createNative(ctx, id, spec, config, stdio)
		if err == nil {
			made.Init = InitNative
			e.pins.pin(e.root, id)
		}
		if !unable(err) {
			return made, err
		}
		why = "this kernel: " + err.Error()
	}
	step.Enter(ctx, "libcontainer")
	made, err := e.createByLibcontainer(id, spec, config, stdio)
	if err == nil {
		made.Init = InitLibcontainer + ": " + why
		e.pins.pin(e.root, id)
	}
	return made, err
}

// createByLibcontainer is Create the long way, which has all of the specification.
func (e *Embedded) createByLibcontainer(id string, spec *specs.Spec, config *configs.Config, stdio Stdio) (_ *Created, err error) {
	p, err := processOf(spec.Process)
	if err != nil {
		return nil, err
	}
	p.Init = true
	if err := stdio.give(p, *config); err != nil {
		return nil, err
	}

	c, err := libcontainer.Create(e.root, id, config)
	if err != nil {
		return nil, err
	}
	planned, err := c.State()
	if err != nil {
		return nil, err
	}
	pids := cgroup.ControllerDir(planned.CgroupPaths, "pids")
	if err := c.Start(p); err != nil {
		err = explain(pids, err)
		// The process is gone and its cgroup too, the state directory is not.
		if derr := c.Destroy(); derr != nil {
			err = fmt.Errorf("%w (and then: %w)", err, derr)
		}
		return nil, classifyCreate(err)
	}
	pid, err := p.Pid()
	if err != nil {
		return nil, err
	}
	state, err := c.State()
	if err != nil {
		return nil, err
	}
	if err := e.held.hold(id, toHold(config, state.CgroupPaths)); err != nil {
		e.held.release(id)
		kerr := unix.Kill(pid, unix.SIGKILL)
		p.Wait() // it says that the process was killed
		return nil, errors.Join(fault.As(fault.Precondition, fmt.Errorf("create container %s: %w", id, err)), kerr, c.Destroy())
	}
	return &Created{Pid: pid, PrivatePID: config.Namespaces.IsPrivate(configs.NEWPID), Cgroup: cgroup.Of(state.CgroupPaths)}, nil
}

// Delete removes what the runtime keeps of a container whose processes have ended, its cgroup included. An unknown id is
// a success.
func (e *Embedded) Delete(id string) error {
	err := e.delete(id)
	if err == nil {
		e.pins.unpin(id)
	}
	return err
}

func (e *Embedded) delete(id string) error {
	c, err := e.load(id)
	if errors.Is(err, fault.NotFound) { // or the rest of what was being deleted by one who was killed
		return os.RemoveAll(filepath.Join(e.root, id))
	}
	if err != nil {
		return err
	}
	e.held.release(id)
	if err := c.Destroy(); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

func (e *Embedded) load(id string) (*libcontainer.Container, error) {
	c, err := libcontainer.Load(e.root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "the runtime has no container %s", id)
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	return c, nil
}

// Kill kills the process and all that it has started, those that made themselves independent of it included.
func (r *Running) Kill(limit time.Duration) error {
	if r.cgroup.Dir() == "" {
		if r.Pid == 0 {
			return nil
		}
		return unix.Kill(r.Pid, unix.SIGKILL)
	}
	return r.cgroup.Kill(limit)
}

// leaveLimit is how long a process may take to be out of its cgroup that is on its way out, and cannot be moved any more.
const leaveLimit = 10 * time.Second

// Leave removes the process's own cgroup after its end. Children that live on are moved to the container's.
func (r *Running) Leave() error {
	return r.cgroup.RemoveInto(r.home, leaveLimit)
}
