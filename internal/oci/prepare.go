package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/configs/validate"
	"golang.org/x/sys/unix"
)

// prepare validates the configuration, checks that neither the id nor the cgroup is in use, and
// creates the directory of the records, as libcontainer.Create does. It differs in two ways: the
// cgroup's directories come from a cache ([creation.Paths]), and the freezer state is read only if
// there is a freezer.
func (e *Embedded) prepare(id string, config *configs.Config) (dir string, m cgroups.Manager, err error) {
	if id == "." || strings.Contains(id, "/") || !filepath.IsLocal(id) {
		return "", nil, libcontainer.ErrInvalidID
	}
	if err := validate.Validate(config); err != nil {
		return "", nil, err
	}
	paths, err := e.cgroups.Of(config.Cgroups)
	if err != nil {
		return "", nil, err
	}
	if m, err = manager.NewWithPaths(config.Cgroups, paths); err != nil {
		return "", nil, err
	}
	if err := unused(m); err != nil {
		return "", nil, err
	}
	dir = filepath.Join(e.root, id)
	err = os.Mkdir(dir, 0o711)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(e.root, 0o700); err == nil {
			err = os.Mkdir(dir, 0o711)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		err = libcontainer.ErrExist
	}
	return dir, m, err
}

// unused returns an error if the cgroup has processes or is frozen.
func unused(m cgroups.Manager) error {
	if m.Exists() {
		pids, err := m.GetAllPids()
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("list the processes of the container's cgroup: %w", err)
		}
		if len(pids) > 0 {
			return fmt.Errorf("container's cgroup is not empty: %d processes found", len(pids))
		}
	}
	if freezer := m.Path("freezer"); freezer == "" || !cgroups.PathExists(freezer) {
		return nil
	}
	state, err := m.GetFreezerState()
	if err != nil {
		return fmt.Errorf("read the freezer state of the container's cgroup: %w", err)
	}
	if state == cgroups.Frozen {
		return errors.New("container's cgroup is frozen")
	}
	return nil
}
