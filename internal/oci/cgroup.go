package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/process"
)

// Cgroup names the directories of a container's cgroup that are of use without the runtime. It is small, to be kept for
// each container.
type Cgroup struct {
	procs  string // one that lists the processes: on v2 the cgroup, on v1 that of the freezer, or of another controller
	memory string // the one of the memory controller, "" when there is none
	v2     bool
}

// cgroupJSON is a Cgroup in a record.
type cgroupJSON struct {
	Procs  string `json:"procs,omitempty"`
	Memory string `json:"memory,omitempty"`
	V2     bool   `json:"v2,omitempty"`
}

// MarshalJSON makes a Cgroup a part of a record.
func (c Cgroup) MarshalJSON() ([]byte, error) {
	return json.Marshal(cgroupJSON{c.procs, c.memory, c.v2})
}

// UnmarshalJSON reads what MarshalJSON has written.
func (c *Cgroup) UnmarshalJSON(body []byte) error {
	var j cgroupJSON
	err := json.Unmarshal(body, &j)
	*c = Cgroup{j.Procs, j.Memory, j.V2}
	return err
}

// cgroupOf picks from the paths by controller; v2 has one, with the key "".
func cgroupOf(paths map[string]string) Cgroup {
	if path, ok := paths[""]; ok && len(paths) == 1 {
		return Cgroup{procs: path, memory: path, v2: true}
	}
	c := Cgroup{memory: paths["memory"]}
	for _, controller := range execControllers {
		if path := paths[controller]; path != "" {
			c.procs = path
			break
		}
	}
	return c
}

// Pids lists the processes of the cgroup and of those below it. A cgroup that is gone has none.
func (c Cgroup) Pids() ([]int, error) {
	if c.procs == "" {
		return nil, nil
	}
	pids, err := cgroups.GetAllPids(c.procs)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return pids, err
}

// Signal sends sig to every process of the cgroup. A frozen one takes it when it runs again; see [Cgroup.SignalKill].
func (c Cgroup) Signal(sig unix.Signal) error {
	pids, err := c.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), pid, err)
		}
	}
	return nil
}

// Kill kills all processes of the cgroup, those that are being forked included, and returns when none is left or after
// limit with an error that names one that stays.
func (c Cgroup) Kill(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids, err := c.Pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %s does not die", process.Describe(pids[0]))
		}
		if err := c.SignalKill(); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// EndExecs kills what an earlier process has executed in the container of the cgroup, and removes the cgroups that it made
// for that: those with a number below first that are not of a process in spared.
func (c Cgroup) EndExecs(limit time.Duration, first uint64, spared []*Running) error {
	if c.procs == "" {
		return nil
	}
	dirs, err := filepath.Glob(filepath.Join(c.procs, "exec-*"))
	for _, dir := range dirs {
		number, nerr := strconv.ParseUint(strings.TrimPrefix(filepath.Base(dir), "exec-"), 10, 64)
		if nerr != nil || number >= first || slices.ContainsFunc(spared, func(r *Running) bool { return r.cgroup.procs == dir }) {
			continue
		}
		r := &Running{cgroup: Cgroup{procs: dir, v2: c.v2}, home: c.procs}
		err = errors.Join(err, r.Kill(limit), r.Leave())
	}
	return err
}

// ProcessCgroup is a cgroup for a single process that is not a container's, such as a pod's init.
type ProcessCgroup struct {
	manager cgroups.Manager
	cgroup  Cgroup
}

// EnterCgroup makes the cgroup of cgroupsPath, in the syntax of the runtime specification, and moves the process into it.
// Name stands in when the path is empty.
func EnterCgroup(cgroupsPath, name string, systemd bool, pid int) (*ProcessCgroup, error) {
	c, err := OpenCgroup(cgroupsPath, name, systemd)
	if err != nil {
		return nil, err
	}
	if err := c.manager.Apply(pid); err != nil {
		c.manager.Destroy()
		return nil, fmt.Errorf("put process %d into cgroup %s: %w", pid, cgroupsPath, err)
	}
	c.cgroup = cgroupOf(c.manager.GetPaths())
	return c, nil
}

// OpenCgroup returns the cgroup of that path, which need not be there.
func OpenCgroup(cgroupsPath, name string, systemd bool) (*ProcessCgroup, error) {
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName:       name,
		UseSystemdCgroup: systemd,
		Spec:             &specs.Spec{Linux: &specs.Linux{CgroupsPath: cgroupsPath}},
	}, nil)
	if err != nil {
		return nil, err
	}
	// Devices are none of its business: it has no capability to make one.
	config.Resources.SkipDevices = true
	m, err := manager.New(config)
	if err != nil {
		return nil, err
	}
	return &ProcessCgroup{m, cgroupOf(m.GetPaths())}, nil
}

// Kill kills all its processes and returns when none is left, or after limit with an error.
func (c *ProcessCgroup) Kill(limit time.Duration) error { return c.cgroup.Kill(limit) }

// SignalKill sends SIGKILL to its processes, as [Cgroup.SignalKill] does.
func (c *ProcessCgroup) SignalKill() error { return c.cgroup.SignalKill() }

// Remove removes the cgroup. Its process has ended.
func (c *ProcessCgroup) Remove() error { return c.manager.Destroy() }
