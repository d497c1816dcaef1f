package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// HostPath resolves the symbolic links of a host path. The error is of kind Precondition if the
// path does not exist and of kind Invalid if it is not absolute.
func HostPath(path string) (resolved string, isDir bool, err error) {
	resolved, isDir, err = resolve("host path", path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.New(fault.Precondition,
			"host path %s does not exist on this node; create it, or let the pod's volume create it (hostPath type "+
				"DirectoryOrCreate)", path)
	}
	return resolved, isDir, err
}

// resolve resolves the symbolic links of a path on the node. The caller adds advice for a missing
// path (fs.ErrNotExist).
func resolve(what, path string) (resolved string, isDir bool, err error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return "", false, fault.New(fault.Invalid, "%s %q is not an absolute path", what, path)
	}
	resolved, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", false, fault.New(fault.Precondition, "%s %s: %w", what, path, err)
	}
	st, err := os.Stat(resolved)
	if err != nil {
		return "", false, fault.New(fault.Precondition, "%s %s: %w", what, path, err)
	}
	return resolved, st.IsDir(), nil
}

// Mounts resolves the host paths of a container's mounts and checks the mount propagation. If
// create is set, a missing host path is created as a directory, which stays. A mount without a host
// path yields an empty result; package spec reports the error.
func Mounts(mounts []*runtime.Mount, create bool) ([]spec.ResolvedMount, error) {
	out := make([]spec.ResolvedMount, len(mounts))
	for i, m := range mounts {
		if m.GetHostPath() == "" {
			continue
		}
		if create {
			if err := makeHostPath(m.GetHostPath()); err != nil {
				return nil, fmt.Errorf("mounts[%d] to %s: %w", i, m.GetContainerPath(), err)
			}
		}
		source, _, err := HostPath(m.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] to %s: %w", i, m.GetContainerPath(), err)
		}
		if err := propagates(source, m.GetPropagation()); err != nil {
			return nil, fmt.Errorf("mounts[%d] to %s: %w", i, m.GetContainerPath(), err)
		}
		out[i].Source = source
	}
	return out, nil
}

// makeHostPath creates a directory at a missing path. A dangling link is left alone: its target is
// not ours to guess.
func makeHostPath(path string) error {
	if _, err := os.Lstat(path); !filepath.IsAbs(path) || !errors.Is(err, fs.ErrNotExist) {
		return nil // HostPath reports the error
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fault.New(fault.Precondition, "make the host path %s: %w", path, err)
	}
	return nil
}

// propagates checks that the mount below path takes part in propagation on the node: nothing would
// ever arrive from a private mount, and the user would wonder why.
func propagates(path string, p runtime.MountPropagation) error {
	if p == runtime.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return fmt.Errorf("find the mount of %s: %w", path, err)
	}
	var on *mountinfo.Info // the deepest; of two at the same place the later one, which hides the other
	for _, m := range mounts {
		if on == nil || len(m.Mountpoint) >= len(on.Mountpoint) {
			on = m
		}
	}
	if on == nil {
		return fmt.Errorf("find the mount of %s: not found in /proc/self/mountinfo", path)
	}
	shared, slave := strings.Contains(on.Optional, "shared:"), strings.Contains(on.Optional, "master:")
	if shared || slave && p == runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
		return nil
	}
	return fault.New(fault.Precondition,
		"propagation is %s, but host path %s is on the mount %s, which is not shared; make it so: mount "+
			"--make-rshared %s",
		p, path, on.Mountpoint, on.Mountpoint)
}
