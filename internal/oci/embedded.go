package oci

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, which the cgroup library has apart
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C half of a container's init, which enters its namespaces
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// Init is the program of a container's first process up to its exec, and never returns. The program that links
// [Embedded] calls it first of all when its first argument is "init".
func Init() { libcontainer.Init() }

// Embedded is the [Runtime] that is linked in: our own init and the fork server, and [Libcontainer] for what is beyond them.
type Embedded struct {
	Libcontainer
	forks   forkServer
	filters filters

	hierarchies hierarchies
}

// NewEmbedded is [NewLibcontainer] for an Embedded.
func NewEmbedded(root string) *Embedded {
	primeLibraries()
	return &Embedded{Libcontainer: Libcontainer{root: root}, forks: forkServer{sock: -1}}
}

// primeLibraries does once what must not be done in the mount namespace of a container's start, or beside another start.
func primeLibraries() {
	// The cgroup library opens the cgroup root once, at its first use. That must not be in the mount namespace of a
	// container's start, which passes. (On v1 the root is a tmpfs, which it opens and then does not give out.)
	if f, err := cgroups.OpenFile("/sys/fs/cgroup", "", unix.O_PATH|unix.O_DIRECTORY); err == nil {
		f.Close()
	}
	learnNames()
	sealed()
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

// Close ends the fork server, too.
func (e *Embedded) Close() {
	e.forks.close()
	e.Libcontainer.Close()
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

// Create makes a container by our own init, or by libcontainer where that is beyond it. See [Runtime].
func (e *Embedded) Create(ctx context.Context, id, bundle string, spec *specs.Spec, systemdCgroup bool, stdio Stdio) (_ *Created, err error) {
	config, err := configure(ctx, id, bundle, spec, systemdCgroup)
	if err != nil {
		return nil, err
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
	return e.create(ctx, id, spec, config, stdio, why)
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
