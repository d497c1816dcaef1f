package server

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
)

// Probe tries what a pod with a user namespace needs: the namespace, and an overlay whose layers, in dir, are mounted
// with mapped ids. Nothing of it stays.
func (s *Server) Probe(req *api.ProbeRequest) (*api.ProbeResponse, error) {
	if !filepath.IsAbs(req.Dir) {
		return nil, fault.New(fault.Invalid, "dir %q is not an absolute path", req.Dir)
	}
	dir, err := os.MkdirTemp(req.Dir, "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"a", "b", "upper", "work", "mnt/rootfs", "mnt/" + mappedDir} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	release := s.reaper.hold()
	defer release()
	if err := tryUserNamespace(dir); err != nil {
		return &api.ProbeResponse{NoUserNamespaces: err.Error()}, nil
	}
	return &api.ProbeResponse{}, nil
}

func tryUserNamespace(dir string) error {
	const first = 1 << 16
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: first}}
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
			Upperdir:  filepath.Join(dir, "upper"),
			Workdir:   filepath.Join(dir, "work"),
		}}, set.User)
		if err != nil {
			return err
		}
		return unix.Access(target, unix.R_OK)
	})
}
