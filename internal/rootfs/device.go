package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// Devices resolves the requested devices of a container. A privileged container gets all devices of
// the node first.
func Devices(devices []*runtime.Device, privileged bool) ([]spec.ResolvedDevice, error) {
	var out []spec.ResolvedDevice
	if privileged {
		all, err := below("/dev", "/dev", "rwm")
		if err != nil {
			return nil, fmt.Errorf("list the node's devices: %w", err)
		}
		out = all
	}
	for i, d := range devices {
		found, err := Device(d.GetHostPath(), d.GetContainerPath(), d.GetPermissions())
		if err != nil {
			return nil, fmt.Errorf("devices[%d]: %w", i, err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// Device returns the device at hostPath, following links, or all devices below it if it is a
// directory. In the container it is at containerPath, or at hostPath if containerPath is empty.
func Device(hostPath, containerPath, permissions string) ([]spec.ResolvedDevice, error) {
	resolved, isDir, err := resolve("device", hostPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Precondition, "device %s is not on this node; is its driver loaded?", hostPath)
	}
	if err != nil {
		return nil, err
	}
	if containerPath == "" {
		containerPath = hostPath
	}
	if isDir {
		return below(resolved, containerPath, permissions)
	}
	d, ok, err := device(resolved, containerPath, permissions)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fault.New(fault.Invalid, "%s is not a device", hostPath)
	}
	return []spec.ResolvedDevice{d}, nil
}

// maxEntries limits the number of files below a directory of devices: /dev has some hundreds, /
// would take minutes.
const maxEntries = 10_000

// below returns the devices in dir and its subdirectories. It leaves out the directories of which
// every container has its own (pts, shm, mqueue, fd), the console, and files that vanish meanwhile.
func below(dir, containerDir, permissions string) ([]spec.ResolvedDevice, error) {
	var out []spec.ResolvedDevice
	entries := 0
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if entries++; entries > maxEntries {
			return fault.New(fault.Invalid, "%s has more than %d files below it: name the devices themselves", dir,
				maxEntries)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.IsDir() && slices.Contains([]string{"pts", "shm", "mqueue", "fd", ".udev", ".lxc"}, e.Name()) {
			return fs.SkipDir
		}
		if e.Type()&fs.ModeDevice == 0 || p == "/dev/console" {
			return nil
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		d, ok, err := device(p, path.Join(containerDir, rel), permissions)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && ok {
			out = append(out, d)
		}
		return err
	})
	return out, fault.As(fault.Precondition, err) // an unreadable directory is a problem of this node
}

func device(hostPath, containerPath, permissions string) (d spec.ResolvedDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(hostPath, &st); err != nil {
		return d, false, &fs.PathError{Op: "lstat", Path: hostPath, Err: err}
	}
	typ := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		typ = "c"
	case unix.S_IFBLK:
		typ = "b"
	default:
		return d, false, nil
	}
	return spec.ResolvedDevice{
		Path: containerPath, Source: hostPath, Type: typ,
		Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		FileMode: os.FileMode(st.Mode & 0o777), UID: st.Uid, GID: st.Gid, Permissions: permissions,
	}, true, nil
}
