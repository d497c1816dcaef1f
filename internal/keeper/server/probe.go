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
// with mapped ids under a writable layer in writable. Nothing of it stays.
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
	if err := tryUserNamespace(dir, writable); err != nil {
		return &api.ProbeResponse{NoUserNamespaces: err.Error()}, nil
	}
	return &api.ProbeResponse{}, nil
}

// probeDirs makes a directory in parent, with others in it. The caller removes it, also after an error.
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

func tryUserNamespace(dir, writable string) error {
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
			Upperdir:  filepath.Join(writable, "upper"),
			Workdir:   filepath.Join(writable, "work"),
		}}, "", set.User)
		if err != nil {
			return err
		}
		return unix.Access(target, unix.R_OK)
	})
}
