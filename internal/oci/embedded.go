package oci

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	// the C half of a container's init, which enters its namespaces
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/cgroup/creation"
	"github.com/kuri-cri/kuri/internal/seal"
)

// Init runs a container's first process up to its exec, and never returns. A program that links
// [Embedded] must call it before anything else if its first argument is "init".
func Init() {
	// The container must not inherit the keeper's timer slack. An error changes nothing else.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0)
	libcontainer.Init()
}

// timerSlack is the kernel's default timer slack in nanoseconds, as in forkserver.c.
const timerSlack = 50_000

// Embedded is the [Runtime] with our own init and the fork server. It uses [Libcontainer] for
// everything that they do not support.
type Embedded struct {
	Libcontainer
	forks   forkServer
	filters filters

	cgroups creation.Paths
}

// NewEmbedded returns an Embedded; see [NewLibcontainer].
func NewEmbedded(root string) *Embedded {
	primeLibraries()
	return &Embedded{Libcontainer: Libcontainer{root: root}, forks: forkServer{sock: -1}}
}

// primeLibraries runs one-time initializations that must not run in the mount namespace of a
// container's start, or concurrently with another start.
func primeLibraries() {
	// The cgroup library opens the cgroup root once, at its first use. It must not do so in the
	// mount namespace of a container's start, which is temporary. (On v1 the root is a tmpfs: the
	// library opens it, but returns an error.)
	if f, err := cgroups.OpenFile("/sys/fs/cgroup", "", unix.O_PATH|unix.O_DIRECTORY); err == nil {
		f.Close()
	}
	creation.LearnNames()
	_ = seal.Check() // a failure is reported when the program is needed
}

// Close also ends the fork server.
func (e *Embedded) Close() {
	e.forks.close()
	e.Libcontainer.Close()
}

// Stdio is the standard streams of a process. With a Console they are a terminal, whose master end
// is sent over that socket, and the other fields are nil. A nil Stdin is /dev/null.
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
	// A nil *os.File must not become a non-nil io.Reader.
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

// chown makes root of the user namespace the owner of the pipes. libcontainer runs in the namespace
// and could not give files of the host's root to the process's user, and the process could not open
// /dev/stdout.
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

// Created describes a container that Create has created.
type Created struct {
	Pid        int          `json:"pid"` // of the first process, as seen from this process
	PrivatePID bool         `json:"private_pid,omitempty"`
	Cgroup     cgroup.Group `json:"cgroup"`
	Init       string       `json:"init,omitempty"` // for people: InitNative, or InitLibcontainer and the reason
}

// The ways to create a container's first process. A colon and the reason follow the second.
const (
	InitNative       = "native"
	InitLibcontainer = "libcontainer"
)

// Create creates a container with our own init, or with libcontainer if our own does not support
// it. See [Runtime].
func (e *Embedded) Create(ctx context.Context, id, bundle string, spec *specs.Spec, systemdCgroup bool,
	stdio Stdio) (_ *Created, err error) {
	config, err := e.configure(ctx, id, bundle, spec, systemdCgroup)
	if err != nil {
		return nil, err
	}
	why := beyondInit(spec, config, systemdCgroup)
	if why == "" && seal.Check() != nil {
		why = "a keeper whose program cannot be sealed"
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

// Kill kills the process and all processes that it has started, including daemons. Without a cgroup
// it kills only the process.
func (r *Running) Kill(limit time.Duration) error {
	if r.cgroup.Dir() == "" {
		if r.Pid == 0 {
			return nil
		}
		return unix.Kill(r.Pid, unix.SIGKILL)
	}
	return r.cgroup.Kill(limit)
}

// leaveLimit bounds the wait for an exiting process to leave its cgroup. Such a process can no
// longer be moved.
const leaveLimit = 10 * time.Second

// Leave removes the process's own cgroup after its end. Remaining children are moved to the
// container's cgroup.
func (r *Running) Leave() error {
	return r.cgroup.RemoveInto(r.home, leaveLimit)
}
