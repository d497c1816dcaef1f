package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/seal"
)

// Executor starts processes in one running container. It is built from the container's bundle and
// the runtime's record, and has a few kilobytes: the beginning of each request to the fork server,
// computed once. It is immutable and holds no descriptor.
type Executor struct {
	id      string
	request []byte  // common to all processes of the container
	env     environ // position of the environment in the request
	filter  *filter // shared by containers with one profile; nil for none
	cwd     string
	cgroups map[string]string // the container's cgroup, by controller
	home    cgroup.Group
	beyond  string // why libcontainer starts its processes; "" if the fork server does
	bundle  string
}

// Beyond returns the reason why libcontainer, ten times slower, starts the processes; "" if the
// fork server does.
func (x *Executor) Beyond() string { return x.beyond }

// Executor prepares the execs of a running container. See [Runtime].
func (l *Libcontainer) Executor(id, bundle string) (*Executor, error) {
	x, _, _, err := l.executor(id, bundle)
	if err == nil {
		x.beyond = alone
	}
	return x, err
}

// executor returns an Executor without a request, and its specification and configuration.
func (l *Libcontainer) executor(id, bundle string) (*Executor, *specs.Spec, *configs.Config, error) {
	spec, err := l.Spec(bundle)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := l.load(id)
	if err != nil {
		return nil, nil, nil, err
	}
	state, err := c.State()
	if err != nil {
		return nil, nil, nil, err
	}
	config := c.Config()
	x := &Executor{id: id, bundle: bundle, cwd: spec.Process.Cwd, cgroups: state.CgroupPaths, home: cgroup.Of(state.CgroupPaths)}
	return x, spec, &config, nil
}

// Executor prepares the execs of a running container, for the fork server if that supports them.
// See [Runtime].
func (e *Embedded) Executor(id, bundle string) (*Executor, error) {
	x, spec, config, err := e.executor(id, bundle)
	if err != nil {
		return nil, err
	}
	if x.beyond = beyond(spec, x.home); x.beyond != "" {
		return x, nil
	}
	if config.Seccomp != nil {
		// A container with the host's PID namespace may see the process that compiles the filter:
		// CVE-2019-5736.
		if err := seal.Check(); err != nil {
			x.beyond = err.Error()
			return x, nil
		}
		if x.filter, err = e.filters.of(config.Seccomp); err != nil {
			x.beyond = err.Error()
			return x, nil
		}
		if !spec.Process.NoNewPrivileges && !x.filter.talks() { // which a process does before its exec
			x.beyond = "a seccomp filter that forbids read or write"
			return x, nil
		}
	}
	m, env, err := request(id, spec, config, cgroup.Entries(x.cgroups, x.home.Dir()))
	x.request, x.env = slices.Clone(m), env // without the spare capacity
	return x, err
}

// beyond names the part of a container's specification that the fork server does not support; ""
// for none.
func beyond(spec *specs.Spec, home cgroup.Group) string {
	p := spec.Process
	switch {
	case home.Dir() == "":
		return "it has no cgroup"
	case spec.Linux.Seccomp != nil && notifies(spec.Linux.Seccomp):
		return "a seccomp filter with a listener"
	case p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil || spec.Linux.MemoryPolicy != nil:
		return "a scheduler, I/O priority, CPU affinity or memory policy"
	case spec.Linux.Personality != nil:
		return "a personality"
	case spec.Linux.IntelRdt != nil:
		return "Intel RDT"
	}
	return ""
}

// notifies reports whether a filter notifies another process, to which libcontainer sends the
// listener.
func notifies(s *specs.LinuxSeccomp) bool {
	return s.ListenerPath != "" || s.DefaultAction == specs.ActNotify ||
		slices.ContainsFunc(s.Syscalls, func(c specs.LinuxSyscall) bool { return c.Action == specs.ActNotify })
}

// The switches of a request, as in forkserver.c.
const (
	noNewPrivs = 1 << iota
	capabilities
	withoutHome
	withUmask
	withOOM
	withOwner
	inUserns
)

var namespaceFlags = map[specs.LinuxNamespaceType]uint32{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// request writes the part that the requests of all processes of a container have in common, in the
// order in which forkserver.c reads it. entries are the files through which they enter its cgroups;
// see [cgroup.Entries].
func request(id string, spec *specs.Spec, config *configs.Config, entries []string) (message, environ, error) {
	p := spec.Process
	env, hasHome, err := environment(p.Env)
	if err != nil {
		return nil, environ{}, err
	}
	var namespaces, switches, umask uint32
	for _, ns := range spec.Linux.Namespaces {
		namespaces |= namespaceFlags[ns.Type]
	}
	set := func(flag uint32, on bool) {
		if on {
			switches |= flag
		}
	}
	uid, gid := uint32(p.User.UID), uint32(p.User.GID)
	ownerUID, ownerGID, err := owner(config, uid)
	if err != nil {
		return nil, environ{}, err
	}
	var oom int32
	if config.OomScoreAdj != nil { // the bundle does not have updates
		oom = int32(*config.OomScoreAdj)
	}
	if p.User.Umask != nil {
		umask = *p.User.Umask
	}
	set(noNewPrivs, p.NoNewPrivileges)
	set(capabilities, p.Capabilities != nil)
	set(withoutHome, !hasHome)
	set(withUmask, p.User.Umask != nil)
	set(withOOM, config.OomScoreAdj != nil)
	set(withOwner, ownerUID != 0 || ownerGID != 0)
	set(inUserns, namespaces&unix.CLONE_NEWUSER != 0)

	m := make(message, 0, usualSize)
	var width, height uint
	if size := p.ConsoleSize; size != nil {
		width, height = size.Width, size.Height
	}
	m.u32(namespaces, switches, uid, gid, uint32(width), uint32(height), umask, uint32(oom), ownerUID, ownerGID)
	caps := p.Capabilities
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	for _, names := range [][]string{caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient} {
		mask, err := capabilityMask(names)
		if err != nil {
			return nil, environ{}, err
		}
		m.u64(mask)
	}
	m.u32(uint32(len(p.User.AdditionalGids)))
	m.u32(p.User.AdditionalGids...)
	limits := limitsOf(p)
	m.u32(uint32(len(limits)))
	for _, l := range limits {
		number, ok := rlimits[l.Type]
		if !ok {
			return nil, environ{}, fault.New(fault.Invalid, "unknown resource limit %q", l.Type)
		}
		m.u32(uint32(number))
		m.u64(l.Soft, l.Hard)
	}
	m.str("_ses." + id) // the keyring, with libcontainer's name
	m.str(p.ApparmorProfile)
	m.str(p.SelinuxLabel)
	m.str(p.Cwd)
	at := environ{start: len(m), entries: len(env), hasTerm: hasTerm(env)}
	m.strs(env)
	at.end = len(m)
	m.strs(entries)
	return m, at, nil
}

// owner returns the owner of a process's pipes in ids of the host: its user, and the group of root
// in the container.
func owner(config *configs.Config, uid uint32) (uint32, uint32, error) {
	host, err := config.HostUID(int(uid))
	if err != nil {
		return 0, 0, fmt.Errorf("user %d: %w", uid, err)
	}
	group, err := config.HostRootGID()
	if err != nil {
		return 0, 0, fmt.Errorf("group of the container's root: %w", err)
	}
	return uint32(host), uint32(group), nil
}

// capabilityMask returns the mask of the named capabilities, without those that this kernel does
// not have.
func capabilityMask(names []string) (mask uint64, err error) {
	if len(names) == 0 {
		return 0, nil
	}
	supported, err := capability.ListSupported()
	if err != nil {
		return 0, fmt.Errorf("ask the kernel for its capabilities: %w", err)
	}
	for _, c := range supported {
		if slices.Contains(names, "CAP_"+strings.ToUpper(c.String())) {
			mask |= 1 << c
		}
	}
	return mask, nil
}

// Exec starts args with libcontainer, which has no start line. See [Runtime].
func (l *Libcontainer) Exec(ctx context.Context, x *Executor, _ *process.Pidfd, seq uint64, args []string, stdio Stdio, unwaiting func() error) (*Running, error) {
	return x.exec(ctx, seq, args, func(r *Running, sub string) error {
		if err := unwaiting(); err != nil {
			return err
		}
		return l.execByLibcontainer(ctx, x, r, sub, args, stdio)
	})
}

// Copy is not supported: only the fork server has a copier.
func (l *Libcontainer) Copy(_ context.Context, x *Executor, _ *process.Pidfd, _ uint64, _ []string, _ Stdio) (*Running, error) {
	return nil, x.noCopier()
}

// Exec starts args with the fork server, or with libcontainer if the fork server does not support
// the container or the kernel. See [Runtime].
func (e *Embedded) Exec(ctx context.Context, x *Executor, init *process.Pidfd, seq uint64, args []string, stdio Stdio, unwaiting func() error) (*Running, error) {
	return x.exec(ctx, seq, args, func(r *Running, sub string) error { return e.start(ctx, x, init, r, sub, args, stdio, unwaiting) })
}

// Copy starts the copier with the fork server. A filter or a label may forbid it. See [Runtime].
func (e *Embedded) Copy(ctx context.Context, x *Executor, init *process.Pidfd, seq uint64, args []string, stdio Stdio) (*Running, error) {
	return x.exec(ctx, seq, args, func(r *Running, sub string) error { return e.start(ctx, x, init, r, sub, args, stdio, nil) })
}

// exec creates a cgroup for one process in the container's cgroup, and calls start with the process
// and the cgroup's name.
func (x *Executor) exec(ctx context.Context, seq uint64, args []string, start func(r *Running, sub string) error) (_ *Running, err error) {
	for _, a := range args {
		if strings.Contains(a, "\x00") {
			return nil, fault.New(fault.Invalid, "%q contains a NUL byte, which no program can be given", a)
		}
	}
	if err := x.home.AwaitThaw(ctx); err != nil {
		return nil, err
	}
	r := &Running{home: x.home.Dir()}
	sub := fmt.Sprintf("exec-%d", seq)
	if x.home.Dir() != "" {
		r.cgroup = x.home.Sub(sub)
		if err := r.cgroup.Make(); err != nil {
			return nil, fmt.Errorf("make a cgroup in that of the container: %w", err)
		}
	}
	started := false
	defer func() {
		if !started {
			err = errors.Join(err, r.Kill(killLimit), r.Leave())
		}
	}()
	err = start(r, sub)
	started = err == nil
	return r, err
}

// start starts a command, or the copier if unwaiting is nil.
func (e *Embedded) start(ctx context.Context, x *Executor, init *process.Pidfd, r *Running, sub string, args []string, stdio Stdio, unwaiting func() error) error {
	copier := unwaiting == nil
	r.failed = func(err error) error { return x.classify(args[0], err) }
	if copier {
		r.failed = x.classifyCopier
	}
	if x.beyond == "" {
		err := e.fork(ctx, x, init, r, args, stdio, copier)
		if copier || !unable(err) {
			return r.failed(err)
		}
	}
	if copier {
		return x.noCopier()
	}
	if err := unwaiting(); err != nil {
		return err
	}
	return e.execByLibcontainer(ctx, x, r, sub, args, stdio)
}

// noCopier returns the error for a container whose execs the fork server does not support.
func (x *Executor) noCopier() error {
	return fault.New(fault.Unimplemented, "no copier for container %s: %s", x.id, x.beyond)
}

// fork makes the fork server start a process.
func (e *Embedded) fork(ctx context.Context, x *Executor, init *process.Pidfd, r *Running, args []string, stdio Stdio, copier bool) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = errors.Join(unix.SetNonblock(pair[0], true), unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
	talk := os.NewFile(uintptr(pair[0]), "talk")
	defer func() {
		if r.line == nil {
			talk.Close()
		}
	}()
	var server int
	if err == nil {
		server, err = e.askFork(x, init, r, pair[1], stdio, copier)
	}
	unix.Close(pair[1])
	if err != nil {
		return err
	}

	defer context.AfterFunc(ctx, func() { talk.SetDeadline(time.Unix(1, 0)) })()
	b, err := converse(talk, server, x.body(r, args, stdio.Console != nil), true)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if kerr := r.Kill(killLimit); kerr != nil {
			return errors.Join(err, kerr)
		}
		reap(b.pid)
	}
	reap(b.passing)
	r.Pid = b.pid
	if err == nil {
		r.line = talk
	}
	return err
}

func (e *Embedded) askFork(x *Executor, init *process.Pidfd, r *Running, talk int, stdio Stdio, copier bool) (server int, err error) {
	err = init.Control(func(pidfd int) (err error) {
		flags, fds := byte(0), []int{talk, pidfd}
		if stdio.Console != nil {
			flags, fds = flags|hasTerminal, append(fds, int(stdio.Console.Fd()))
		} else {
			fds = append(fds, int(stdio.Stdout.Fd()), int(stdio.Stderr.Fd()))
		}
		if copier {
			flags |= isCopier
		}
		if stdio.Stdin != nil {
			flags, fds = flags|hasStdin, append(fds, int(stdio.Stdin.Fd()))
		}
		// On a hybrid node the container has a directory in the v2 hierarchy too.
		if birth := r.cgroup.Birth(x.cgroups); birth != "" {
			dir, err := unix.Open(birth, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(dir)
			flags, fds = flags|inCgroup, append(fds, dir)
		}
		server, err = e.forks.ask(flags, 0, fds...)
		return err
	})
	if errors.Is(err, os.ErrClosed) { // the pidfd
		return 0, fault.New(fault.Precondition, "container %s has exited", x.id)
	}
	return server, err
}

// body returns a whole request.
func (x *Executor) body(r *Running, args []string, terminal bool) []byte {
	m := x.begin(terminal)
	m.filter(x.filter)
	m.strs(args)
	m.str(r.cgroup.Entry())
	return m
}

// execByLibcontainer starts a process with libcontainer, the slow way.
func (l *Libcontainer) execByLibcontainer(ctx context.Context, x *Executor, r *Running, sub string, args []string, stdio Stdio) error {
	spec, err := ReadSpec(x.bundle)
	if err != nil {
		return err
	}
	p := spec.Process
	p.Args, p.Terminal = args, stdio.Console != nil
	if p.Terminal && !hasTerm(p.Env) {
		p.Env = append(p.Env, defaultTerm)
	}
	c, err := l.load(x.id)
	if err != nil {
		return err
	}
	if r.process, err = processOf(p); err != nil {
		return err
	}
	if err := stdio.give(r.process, c.Config()); err != nil {
		return err
	}
	if x.home.Dir() != "" {
		r.process.SubCgroupPaths = map[string]string{cgroup.ProcsController(x.cgroups): sub}
	}
	defer context.AfterFunc(ctx, func() { r.Kill(killLimit) })()
	if err := c.Start(r.process); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return classifyExec(err)
	}
	r.Pid, err = r.process.Pid()
	return err
}
