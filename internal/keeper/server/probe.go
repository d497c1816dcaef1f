package server

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
)

// Probe tests the requirements of a pod with a user namespace: the namespace, and an overlay with
// layers in dir, mounted with mapped ids, and a writable layer in writable. It leaves nothing
// behind.
func (s *Server) Probe(req *api.ProbeRequest) (*api.ProbeResponse, error) {
	if !filepath.IsAbs(req.Dir) {
		return nil, fault.New(fault.Invalid, "dir %q is not an absolute path", req.Dir)
	}
	if req.Writable == "" {
		req.Writable = req.Dir
	}
	dir, err := probeDirs(req.Dir, "a", "b", "mnt/rootfs", "mnt/"+mappedDir)
	defer os.RemoveAll(dir)
	if err != nil {
		return nil, err
	}
	writable, err := probeDirs(req.Writable, "upper", "work")
	defer os.RemoveAll(writable)
	if err != nil {
		return nil, err
	}
	release := s.reaper.hold()
	defer release()
	err = passable(s.mounts(), probeID)
	if err == nil {
		err = tryUserNamespace(dir, writable)
	}
	if err != nil {
		return &api.ProbeResponse{NoUserNamespaces: err.Error()}, nil
	}
	return &api.ProbeResponse{}, nil
}

// probeDirs creates a directory in parent with subdirectories. The caller must remove it, also
// after an error.
func probeDirs(parent string, names ...string) (string, error) {
	dir, err := os.MkdirTemp(parent, "probe-")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// probeID is the host id of root in the user namespace.
const probeID = 1 << 16

// passable returns an error if an unprivileged user of the host cannot reach dir. The init of a
// container in a user namespace is such a user, and its root filesystem is mounted below dir.
func passable(dir string, id uintptr) error {
	return namespace.OnThread(func() error {
		// Changing ids makes the process undumpable, and then helpers without CAP_SYS_PTRACE cannot
		// read its /proc.
		if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err == nil {
			defer unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0)
		}
		for _, call := range [][4]uintptr{
			// this thread only
			{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, id, id, id}, {unix.SYS_SETRESUID, id, id, id},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				return fmt.Errorf("become user %d: %w", id, errno)
			}
		}
		for end := 1; end <= len(dir); end++ {
			if end < len(dir) && dir[end] != '/' {
				continue
			}
			if err := unix.Access(dir[:end], unix.X_OK); err != nil {
				return fmt.Errorf("the root of a user namespace does not get to %s, where root filesystems are mounted: search %s: %w; "+
					"let others pass that directory (chmod o+x), or choose another state directory", dir, dir[:end], err)
			}
		}
		return nil
	})
}

func tryUserNamespace(dir, writable string) error {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: probeID, Size: 1 << 16}}
	set, err := namespace.Make(namespace.Config{User: &namespace.Mapping{UIDs: ids, GIDs: ids}}, nil)
	if err != nil {
		return err
	}
	defer set.Close()
	return namespace.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		target := filepath.Join(dir, "mnt", "rootfs")
		err := mountRootfs(target, &api.CreateRequest{Rootfs: &api.Rootfs{
			Lowerdirs: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")},
			Upperdir:  filepath.Join(writable, "upper"),
			Workdir:   filepath.Join(writable, "work"),
		}}, "", set.User)
		if err != nil {
			return err
		}
		return unix.Access(target, unix.R_OK)
	})
}
