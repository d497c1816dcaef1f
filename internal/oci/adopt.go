package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// Left is the runtime's record of a container that an earlier process has created.
type Left struct {
	Created
	Born   string // start time of the first process, as in proc_pid_stat(5)
	Bundle string
}

// All returns the ids of all containers with a record, including incomplete ones.
func (l *Libcontainer) All() ([]string, error) {
	entries, err := os.ReadDir(l.root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	for _, entry := range entries {
		if entry.IsDir() {
			ids = append(ids, entry.Name())
		}
	}
	return ids, err
}

// Left reads the runtime's record of a container. The error is of kind NotFound if there is none or
// it is incomplete.
func (l *Libcontainer) Left(id string) (*Left, error) {
	c, err := l.load(id)
	if err != nil {
		return nil, err
	}
	state, err := c.State()
	if err != nil {
		return nil, err
	}
	left := &Left{
		Created: Created{
			Pid: state.InitProcessPid, PrivatePID: state.Config.Namespaces.IsPrivate(configs.NEWPID),
			Cgroup: cgroup.Of(state.CgroupPaths),
		},
		Born: strconv.FormatUint(state.InitProcessStartTime, 10),
	}
	for _, label := range state.Config.Labels {
		if bundle, ok := strings.CutPrefix(label, "bundle="); ok {
			left.Bundle = bundle
		}
	}
	return left, nil
}

// Rehold watches an adopted container's limits that systemd overwrites, as Create does.
func (l *Libcontainer) Rehold(id string) error {
	c, err := l.load(id)
	if err != nil {
		return err
	}
	state, err := c.State()
	if err != nil {
		return err
	}
	config := c.Config()
	return l.held.hold(id, toHold(&config, state.CgroupPaths))
}

// TakeBack removes the remains of an interrupted Create: processes, the cgroup, the records. It
// does nothing if there are none.
func (l *Libcontainer) TakeBack(id, cgroupsPath string, systemd bool, limit time.Duration) error {
	cgroup, err := OpenCgroup(cgroupsPath, id, systemd)
	if err != nil {
		return err
	}
	if err := cgroup.Kill(limit); err != nil {
		return err
	}
	c, err := libcontainer.Load(l.root, id)
	if err == nil {
		err = c.Destroy()
	} else {
		err = nil
	}
	if err == nil {
		err = cgroup.Remove()
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(l.root, id)))
}
