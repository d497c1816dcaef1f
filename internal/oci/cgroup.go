package oci

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// EndExecs kills the execs of an earlier process in the container with the cgroup home and removes
// their cgroups: those with a number below first, except those of spared.
func EndExecs(home cgroup.Group, limit time.Duration, first uint64, spared []*Running) error {
	if home.Dir() == "" {
		return nil
	}
	dirs, err := filepath.Glob(filepath.Join(home.Dir(), "exec-*"))
	for _, dir := range dirs {
		number, nerr := strconv.ParseUint(strings.TrimPrefix(filepath.Base(dir), "exec-"), 10, 64)
		if nerr != nil || number >= first ||
			slices.ContainsFunc(spared, func(r *Running) bool { return r.cgroup.Dir() == dir }) {
			continue
		}
		r := &Running{cgroup: home.Sub(filepath.Base(dir)), home: home.Dir()}
		err = errors.Join(err, r.Kill(limit), r.Leave())
	}
	return err
}

// ProcessCgroup is a cgroup for a single process outside containers, such as a pod's init.
type ProcessCgroup struct {
	manager cgroups.Manager
	cgroup  cgroup.Group
}

// EnterCgroup creates the cgroup cgroupsPath, in the syntax of the runtime specification, and moves
// the process into it. name is used if the path is empty.
func EnterCgroup(cgroupsPath, name string, systemd bool, pid int) (*ProcessCgroup, error) {
	c, err := OpenCgroup(cgroupsPath, name, systemd)
	if err != nil {
		return nil, err
	}
	if err := c.manager.Apply(pid); err != nil {
		_ = c.manager.Destroy()
		return nil, fmt.Errorf("put process %d into cgroup %s: %w", pid, cgroupsPath, err)
	}
	c.cgroup = cgroup.Of(c.manager.GetPaths())
	return c, nil
}

// OpenCgroup returns the cgroup of a path, in the syntax of the runtime specification. It need not
// exist.
func OpenCgroup(cgroupsPath, name string, systemd bool) (*ProcessCgroup, error) {
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName:       name,
		UseSystemdCgroup: systemd,
		Spec:             &specs.Spec{Linux: &specs.Linux{CgroupsPath: cgroupsPath}},
	}, nil)
	if err != nil {
		return nil, err
	}
	// No device rules: the process has no capability to create devices.
	config.Resources.SkipDevices = true
	m, err := manager.New(config)
	if err != nil {
		return nil, err
	}
	return &ProcessCgroup{m, cgroup.Of(m.GetPaths())}, nil
}

// Kill kills all processes of the cgroup and returns when they have ended, or with an error after
// limit.
func (c *ProcessCgroup) Kill(limit time.Duration) error { return c.cgroup.Kill(limit) }

// SignalKill sends SIGKILL to all processes of the cgroup, as [cgroup.Group.SignalKill] does.
func (c *ProcessCgroup) SignalKill() error { return c.cgroup.SignalKill() }

// Remove removes the cgroup. Its process must have ended.
func (c *ProcessCgroup) Remove() error { return c.manager.Destroy() }
