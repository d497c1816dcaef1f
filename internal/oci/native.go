package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/system"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/cgroup/creation"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/step"
)

// beyondInit names the part of a container's specification that our own init (containerinit.h) does
// not support; "" for none. Only this function decides which init creates a container.
func beyondInit(spec *specs.Spec, config *configs.Config, systemd bool) string {
	p := spec.Process
	switch {
	case systemd:
		return "a cgroup that systemd makes"
	case config.Namespaces.IsPrivate(configs.NEWUSER):
		return "a user namespace that is not the pod's"
	case config.Namespaces.Contains(configs.NEWUSER) && cgroup.Unified() && !config.Namespaces.Contains(configs.NEWCGROUP):
		return "a user namespace without a cgroup namespace"
	case !config.Namespaces.IsPrivate(configs.NEWNS):
		return "a mount namespace that is not its own"
	case len(config.Networks) > 0 || len(config.Routes) > 0 || len(config.NetDevices) > 0 || config.Namespaces.IsPrivate(configs.NEWNET):
		return "a network that the runtime sets up"
	case config.Namespaces.Contains(configs.NEWTIME):
		return "a time namespace"
	case config.Namespaces.Contains(configs.NEWCGROUP) && !cgroup.Unified():
		return "a cgroup namespace on cgroup v1"
	case len(config.Hooks) > 0 && slices.ContainsFunc(hookLists(config), func(h configs.HookList) bool { return len(h) > 0 }):
		return "hooks"
	case config.Seccomp != nil && notifies(spec.Linux.Seccomp):
		return "a seccomp filter with a listener"
	case p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil || spec.Linux.MemoryPolicy != nil:
		return "a scheduler, I/O priority, CPU affinity or memory policy"
	case config.Personality != nil:
		return "a personality"
	case config.IntelRdt != nil:
		return "Intel RDT"
	case config.ProcessLabel != "" || config.MountLabel != "":
		return "an SELinux label"
	case len(config.Sysctl) > 0:
		return "sysctls of the container"
	case config.RootlessEUID || config.NoPivotRoot || config.NoNewKeyring || config.Rootfs == "":
		return "a rootless container, or one without a root filesystem of its own"
	case slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, rawEnv) }):
		return "an environment that is not UTF-8"
	}
	return beyondMounts(config)
}

func hookLists(config *configs.Config) (all []configs.HookList) {
	for _, list := range config.Hooks {
		all = append(all, list)
	}
	return all
}

// beyondMounts names the part of a container's mounts that our own init does not support; "" for
// none.
func beyondMounts(config *configs.Config) string {
	if len(config.Mounts) == 0 || config.Mounts[0].Device != "proc" || filepath.Clean(config.Mounts[0].Destination) != "/proc" {
		return "a first mount that is not /proc"
	}
	for i, m := range config.Mounts {
		target := filepath.Clean(m.Destination)
		switch {
		case m.IDMapping != nil && !mappedAsPod(config, m):
			return "a mount with other ids than those of the pod's user namespace"
		case m.Extensions != 0:
			return "a tmpfs with the contents of the image"
		case i > 0 && (target == "/proc" || strings.HasPrefix(target, "/proc/")):
			return "a mount in /proc"
		case target == "/" || strings.Contains(m.Destination, ".."):
			return "a mount onto the root"
		case m.Flags&^mountFlagsKnown != 0 || m.ClearedFlags&^mountFlagsKnown != 0:
			return "a mount with an option of its filesystem"
		}
	}
	return ""
}

// mappedAsPod reports whether a mount has the id mapping of the user namespace that the container
// joins.
func mappedAsPod(config *configs.Config, m *configs.Mount) bool {
	if !m.IsBind() || !config.Namespaces.Contains(configs.NEWUSER) {
		return false
	}
	if path := m.IDMapping.UserNSPath; path != "" {
		return path == config.Namespaces.PathOf(configs.NEWUSER)
	}
	return slices.Equal(m.IDMapping.UIDMappings, config.UIDMappings) && slices.Equal(m.IDMapping.GIDMappings, config.GIDMappings)
}

const (
	atimeFlags      = unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME
	mountFlagsKnown = unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | atimeFlags |
		unix.MS_NODIRATIME | unix.MS_NOSYMFOLLOW
)

// startFile is the start line, a FIFO, of a container with our own init. It has the name of
// libcontainer's, by which libcontainer recognizes a created container that has not been started.
const startFile = "exec.fifo"

// initLimit bounds the init's steps up to its start line: a mount may hang. It also bounds the creation
// of a user namespace.
const initLimit = time.Minute

// nativeFile marks the records of a container with our own init.
const nativeFile = "native"

// createNative creates a container with our own init, which takes over the mount namespace of the
// calling thread. The thread changes to the node's, because the init's pivot_root would change the
// thread's root too. It changes back if libcontainer may create the container instead (unable).
func (e *Embedded) createNative(ctx context.Context, id string, spec *specs.Spec, config *configs.Config, stdio Stdio) (_ *Created, err error) {
	mounts, err := openNamespace("/proc/thread-self/ns/mnt")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	node, err := openNamespace("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	defer node.Close()
	if err := unix.Setns(int(node.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("leave the mount namespace of container %s: %w", id, err)
	}
	made, err := e.createIn(ctx, mounts, id, spec, config, stdio)
	if unable(err) {
		if err := unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS); err != nil {
			return nil, fmt.Errorf("go back into the mount namespace of container %s: %w", id, err)
		}
	}
	return made, err
}

// openNamespace opens a namespace file. Unlike os.Open it does not try to poll the file, which is
// never possible.
func openNamespace(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// createIn creates the container in a mount namespace that was prepared for it.
func (e *Embedded) createIn(ctx context.Context, mounts *os.File, id string, spec *specs.Spec, config *configs.Config, stdio Stdio) (_ *Created, err error) {
	var f *filter
	if config.Seccomp != nil {
		step.Enter(ctx, "seccomp")
		if f, err = e.filters.of(config.Seccomp); err != nil {
			return nil, err
		}
	}
	step.Enter(ctx, "config")
	dir, manager, err := e.prepare(id, config)
	if err != nil {
		return nil, err
	}
	n := &native{id: id, dir: dir, mounts: mounts, filter: f, cgroups: manager}
	made := false
	defer func() {
		if !made {
			err = errors.Join(err, n.discard())
		}
	}()

	// 1. The cgroups, with all limits set before a process enters.
	step.Enter(ctx, "cgroup")
	if err := creation.Make(n.cgroups, config.Cgroups.Resources); err != nil {
		return nil, classify(fmt.Errorf("unable to apply cgroup configuration: %w", err))
	}
	if err := creation.Limit(n.cgroups, config.Cgroups.Resources); err != nil {
		return nil, classify(fmt.Errorf("setting cgroup config: %w", err))
	}
	n.paths = n.cgroups.GetPaths()

	// 2. The start line.
	step.Enter(ctx, "init")
	start, err := n.startLine()
	if err != nil {
		return nil, err
	}
	defer start.Close()

	// 3. The process.
	if err := n.fork(e, spec, config, start, stdio); err != nil {
		return nil, err
	}

	// 4. The record, from which libcontainer does everything else.
	step.Enter(ctx, "record")
	if err := n.record(*config); err != nil {
		return nil, err
	}
	made = true
	return &Created{Pid: n.pid, PrivatePID: config.Namespaces.IsPrivate(configs.NEWPID), Cgroup: cgroup.Of(n.paths)}, nil
}

// native is a container during its creation.
type native struct {
	id, dir string
	mounts  *os.File // mount namespace of the container, prepared by the starter
	filter  *filter
	list    []*configs.Mount // in the order in which the init mounts them
	cgroups cgroups.Manager
	paths   map[string]string // directories of the cgroups, by controller
	pid     int
}

// discard removes everything, after killing any processes.
func (n *native) discard() error {
	var errs []error
	if len(n.paths) > 0 {
		errs = append(errs, cgroup.Of(n.paths).Kill(killLimit))
	}
	if n.pid > 0 {
		unix.Kill(n.pid, unix.SIGKILL)
		reap(n.pid)
	}
	return errors.Join(append(errs, n.cgroups.Destroy(), os.RemoveAll(n.dir))...)
}

// startLine creates the FIFO on which the init waits. Its descriptor is open for reading and
// writing, so the init never reads an end of file, whichever process dies.
func (n *native) startLine() (*os.File, error) {
	path := filepath.Join(n.dir, startFile)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make the start line: %w", err)
	}
	if err := unix.Mknod(filepath.Join(n.dir, nativeFile), unix.S_IFREG|0o600, 0); err != nil { // creates an empty file
		return nil, fmt.Errorf("mark the container as made by the keeper's own init: %w", err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the start line: %w", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// startNative starts a container with our own init. It returns false for a container of
// libcontainer's.
func (l *Libcontainer) startNative(id string, ended func() bool) (bool, error) {
	dir := filepath.Join(l.root, id)
	if _, err := os.Stat(filepath.Join(dir, nativeFile)); err != nil {
		return false, nil
	}
	path := filepath.Join(dir, startFile)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENXIO && !ended() { // an earlier start released it and was killed before the removal
		return true, os.Remove(path)
	}
	if err != nil { // ENXIO: no reader
		return true, fault.New(fault.Precondition, "start container %s: its process has ended: %w", id, err)
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte{'S'})
	if err == unix.EPIPE { // killed since the reader's end was found open
		return true, fault.New(fault.Precondition, "start container %s: its process has ended: %w", id, err)
	}
	if err != nil {
		return true, fmt.Errorf("start container %s: %w", id, err)
	}
	return true, os.Remove(path)
}

// record writes the record that libcontainer would have written.
func (n *native) record(config configs.Config) error {
	stat, err := system.Stat(n.pid)
	if err != nil {
		return fmt.Errorf("read the start time of the init of container %s: %w", n.id, err)
	}
	state := libcontainer.State{
		BaseState: libcontainer.BaseState{
			ID: n.id, InitProcessPid: n.pid, InitProcessStartTime: stat.StartTime, Created: time.Now().UTC(), Config: config,
		},
		CgroupPaths:    n.paths,
		NamespacePaths: make(map[configs.NamespaceType]string),
	}
	for _, t := range configs.NamespaceTypes() {
		if configs.IsNamespaceSupported(t) {
			ns := configs.Namespace{Type: t}
			state.NamespacePaths[t] = ns.GetPath(n.pid)
		}
	}
	body, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode the record of container %s: %w", n.id, err)
	}
	tmp := filepath.Join(n.dir, "state.json.new")
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(n.dir, "state.json"))
}

// fork makes the fork server create the process, and waits until it is at the start line.
func (n *native) fork(e *Embedded, spec *specs.Spec, config *configs.Config, start *os.File, stdio Stdio) error {
	body, joined, err := n.request(spec, config)
	if err != nil {
		return err
	}
	defer closeAll(joined)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = errors.Join(unix.SetNonblock(pair[0], true), unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
	talk := os.NewFile(uintptr(pair[0]), "talk")
	defer talk.Close()
	var server int
	if err == nil {
		server, err = n.ask(e, config, pair[1], start, joined, stdio)
	}
	unix.Close(pair[1])
	if err != nil {
		return err
	}
	talk.SetDeadline(time.Now().Add(initLimit))
	b, err := converse(talk, server, body, false)
	if b.pid == 0 { // it was not forked again, into a PID namespace
		b = startResult{pid: b.passing, ready: b.ready}
	}
	reap(b.passing)
	n.pid = b.pid
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.New(fault.Deadline, "it did not come to its start line within %s; does a volume lie on a file server that does not answer?", initLimit)
	case errors.Is(err, errKilled) || err == nil && b.ready != b.pid:
		return fault.As(fault.Unstartable, errKilled)
	}
	return n.classify(spec, err)
}

// classify gives an error its message and kind, by its cause: the node, a limit or the container.
func (n *native) classify(spec *specs.Spec, err error) error {
	var failed *startError
	if !errors.As(err, &failed) {
		return err
	}
	switch kind := fault.OfErrno(failed.errno); {
	case failed.errno == unix.EROFS:
		return n.readOnly(failed)
	case kind != "":
		return fault.As(kind, err)
	}
	program := spec.Process.Args[0]
	switch {
	case failed.step == stepFork && failed.errno == unix.EAGAIN:
		return fault.New(fault.Exhausted, "%w (a limit of processes: of the pod's cgroup, of the keeper's, or kernel.pid_max)", err)
	case failed.step == stepMount && int(failed.detail) < len(n.list):
		m := n.list[failed.detail]
		err = fmt.Errorf("mount %s (%s) at %s: %w", m.Source, m.Device, m.Destination, failed.errno)
	case failed.step == stepIDMap && int(failed.detail) < len(n.list):
		m := n.list[failed.detail]
		err = fmt.Errorf("mount %s at %s with mapped ids, which its filesystem may not support: %w", m.Source, m.Destination, failed.errno)
	case failed.step == stepCwd:
		err = fmt.Errorf("enter the working directory %s: %w", spec.Process.Cwd, failed.errno)
	case failed.step == stepSearch && failed.errno == unix.ENOENT:
		return fault.New(fault.Unstartable, "exec: %q: executable file not found in the container", program)
	case failed.step == stepSearch:
		err = fmt.Errorf("exec: %q: %w", program, failed.errno)
	}
	return fault.As(fault.Unstartable, err)
}

// readOnly returns the error for a file or mount point that cannot be made in one of the container's
// own mounts. (The kernel mounts no writable layer on a failed device, so the node's disk is not the
// cause.) The errno is text only: as an error it would mean the node.
func (n *native) readOnly(failed *startError) error {
	if failed.step != stepMount && failed.step != stepIDMap || int(failed.detail) >= len(n.list) {
		return fault.New(fault.Unstartable, "%v, in a read-only mount of the container", failed)
	}
	m := n.list[failed.detail]
	return fault.New(fault.Unstartable, "mount %s at %s: %v: the mount point is missing in a read-only mount of the "+
		"container; make it in that volume, or mount the volume writable", m.Source, m.Destination, failed.errno)
}

// ask sends the request's descriptors, in the order in which arrange_container takes them.
func (n *native) ask(e *Embedded, config *configs.Config, talk int, start *os.File, joined []*os.File, stdio Stdio) (server int, err error) {
	flags, fds := byte(isContainer), []int{talk, int(n.mounts.Fd()), int(start.Fd())}
	if stdio.Console != nil {
		flags, fds = flags|hasTerminal, append(fds, int(stdio.Console.Fd()))
	} else {
		fds = append(fds, int(stdio.Stdout.Fd()), int(stdio.Stderr.Fd()))
	}
	if stdio.Stdin != nil {
		flags, fds = flags|hasStdin, append(fds, int(stdio.Stdin.Fd()))
	}
	for _, f := range joined {
		fds = append(fds, int(f.Fd()))
	}
	// The user namespace must own a container's PID namespace, or /proc could not be mounted. So
	// with one, the init creates the PID namespace later.
	if config.Namespaces.IsPrivate(configs.NEWPID) && !config.Namespaces.Contains(configs.NEWUSER) {
		flags |= newPIDs
	}
	if birth := cgroup.Of(n.paths).Birth(n.paths); birth != "" {
		dir, err := unix.Open(birth, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("open the container's cgroup: %w", err)
		}
		defer unix.Close(dir)
		flags, fds = flags|inCgroup, append(fds, dir)
	}
	return e.forks.ask(flags, byte(len(joined)), fds...)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
