package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/step"
)

// Libcontainer is the [Runtime] that uses only runc's libcontainer, which supports the whole
// specification. Each container and each exec starts this program as libcontainer's init.
type Libcontainer struct {
	root string
	held cgroupFiles
	pins pins

	profiles profiles
}

// NewLibcontainer returns a runtime with its records below root, which is created when needed. It
// must be called in the host's mount namespace.
func NewLibcontainer(root string) *Libcontainer {
	primeLibraries()
	return &Libcontainer{root: root}
}

// Close releases the runtime's memory and descriptors. Containers and their processes continue.
func (l *Libcontainer) Close() { l.held.close() }

// alone is the reason for libcontainer instead of our own init in a [Libcontainer].
const alone = "a runtime that is libcontainer alone"

// Create creates a container with libcontainer. See [Runtime].
func (l *Libcontainer) Create(ctx context.Context, id, bundle string, spec *specs.Spec, systemdCgroup bool, stdio Stdio) (*Created, error) {
	config, err := l.configure(ctx, id, bundle, spec, systemdCgroup)
	if err != nil {
		return nil, err
	}
	return l.create(ctx, id, spec, config, stdio, alone)
}

// create creates a container with libcontainer. why is the reason not to use our own init.
func (l *Libcontainer) create(ctx context.Context, id string, spec *specs.Spec, config *configs.Config, stdio Stdio, why string) (*Created, error) {
	step.Enter(ctx, "libcontainer")
	made, err := l.createByLibcontainer(id, spec, config, stdio)
	if err == nil {
		made.Init = InitLibcontainer + ": " + why
		l.pins.pin(l.root, id)
	}
	return made, err
}

// configure converts a specification to libcontainer's configuration. It changes the working
// directory to the bundle.
func (l *Libcontainer) configure(ctx context.Context, id, bundle string, spec *specs.Spec, systemdCgroup bool) (*configs.Config, error) {
	step.Enter(ctx, "config")
	if err := startable(spec.Process); err != nil {
		return nil, err
	}
	// By the specification the bundle is the working directory; libcontainer relies on that.
	if err := unix.Chdir(bundle); err != nil {
		return nil, fmt.Errorf("enter bundle %s: %w", bundle, err)
	}
	unfiltered := *spec
	unfiltered.Linux = new(*spec.Linux)
	unfiltered.Linux.Seccomp = nil
	user := takeUserPath(&unfiltered)
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       id,
		UseSystemdCgroup: systemdCgroup,
		Spec:             &unfiltered,
	})
	if err == nil && spec.Linux.Seccomp != nil {
		config.Seccomp, err = l.profiles.convert(spec.Linux.Seccomp)
	}
	if err != nil {
		return nil, fault.As(fault.Unstartable, fmt.Errorf("configuration of container %s: %w", id, err))
	}
	if user != "" {
		config.Namespaces.Add(configs.NEWUSER, user)
	}
	if p := swapProperty(config.Cgroups); p != nil {
		config.Cgroups.SystemdProps = append(config.Cgroups.SystemdProps, *p)
	}
	return config, nil
}

// takeUserPath removes the path of a user namespace from a specification that also has its mappings,
// and returns it: with the path, libcontainer would fork this process twice to read the mappings.
// If libcontainer needs the path, because a mount takes its mapping from the namespace, it removes
// the mappings instead, and returns "".
func takeUserPath(spec *specs.Spec) (path string) {
	i := slices.IndexFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace && ns.Path != "" })
	if i < 0 || spec.Linux.UIDMappings == nil || spec.Linux.GIDMappings == nil {
		return ""
	}
	for _, m := range spec.Mounts {
		if m.UIDMappings == nil && (slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap")) {
			spec.Linux.UIDMappings, spec.Linux.GIDMappings = nil, nil
			return ""
		}
	}
	spec.Linux.Namespaces = slices.Clone(spec.Linux.Namespaces)
	path, spec.Linux.Namespaces[i].Path = spec.Linux.Namespaces[i].Path, ""
	return path
}

func (l *Libcontainer) createByLibcontainer(id string, spec *specs.Spec, config *configs.Config, stdio Stdio) (_ *Created, err error) {
	p, err := processOf(spec.Process)
	if err != nil {
		return nil, err
	}
	p.Init = true
	if err := stdio.give(p, *config); err != nil {
		return nil, err
	}

	c, err := libcontainer.Create(l.root, id, config)
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
		// The process and its cgroup are gone, but the state directory is not.
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
	if err := l.held.hold(id, toHold(config, state.CgroupPaths)); err != nil {
		l.held.release(id)
		kerr := unix.Kill(pid, unix.SIGKILL)
		_, _ = p.Wait() // the error is only that the process was killed
		return nil, errors.Join(fault.As(fault.Precondition, fmt.Errorf("create container %s: %w", id, err)), kerr, c.Destroy())
	}
	return &Created{Pid: pid, PrivatePID: config.Namespaces.IsPrivate(configs.NEWPID), Cgroup: cgroup.Of(state.CgroupPaths)}, nil
}

// Spec reads the specification in a bundle. See [Runtime].
func (l *Libcontainer) Spec(bundle string) (*specs.Spec, error) {
	return readSpec(bundle, l.profiles.decode)
}

// Delete removes the runtime's records and the cgroup of a container whose processes have ended. It
// does nothing for an unknown id.
func (l *Libcontainer) Delete(id string) error {
	err := l.delete(id)
	if err == nil {
		l.pins.unpin(id)
	}
	return err
}

func (l *Libcontainer) delete(id string) error {
	if done, err := l.deleteEnded(id); done || err != nil {
		return err
	}
	c, err := l.load(id)
	if errors.Is(err, fault.NotFound) { // or the remains of an interrupted Delete
		return os.RemoveAll(filepath.Join(l.root, id))
	}
	if err != nil {
		return err
	}
	l.held.release(id)
	if err := c.Destroy(); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

// deleteEnded deletes a container with our own init whose process has ended, and which has a PID
// namespace of its own, so no other process is left. It reports whether it did. All else needs the
// configuration; to decode that takes longer than the rest.
func (l *Libcontainer) deleteEnded(id string) (done bool, err error) {
	dir := filepath.Join(l.root, id)
	if !filepath.IsLocal(id) || unix.Access(filepath.Join(dir, nativeFile), unix.F_OK) != nil {
		return false, nil
	}
	body, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return false, nil
	}
	var state struct { // the part of libcontainer.State
		Pid    int               `json:"init_process_pid"`
		Born   uint64            `json:"init_process_start"`
		Paths  map[string]string `json:"cgroup_paths"`
		Config struct {
			Namespaces configs.Namespaces `json:"namespaces"`
		} `json:"config"`
	}
	if json.Unmarshal(body, &state) != nil || len(state.Paths) == 0 || !state.Config.Namespaces.IsPrivate(configs.NEWPID) {
		return false, nil
	}
	stat, err := process.ReadStat(state.Pid)
	if err != nil || stat.Started == strconv.FormatUint(state.Born, 10) && stat.State != 'Z' && stat.State != 'X' {
		return false, nil
	}
	if err := cgroups.RemovePaths(state.Paths); err != nil {
		return false, fmt.Errorf("delete container %s: unable to remove container's cgroup: %w", id, err)
	}
	return true, os.RemoveAll(dir)
}

func (l *Libcontainer) load(id string) (*libcontainer.Container, error) {
	c, err := libcontainer.Load(l.root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "the runtime has no container %s", id)
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	return c, nil
}
