package poddir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// claimsDir contains the directories of PersistentVolumeClaims, below the pods' directory. Its name
// cannot be a UID.
const claimsDir = "claims"

// claim creates the directory of a PersistentVolumeClaim if it does not exist.
func (f Files) claim(v manifest.Volume) (string, error) {
	path := filepath.Join(f.podsDir, claimsDir, f.namespace, v.Claim)
	_, err := os.Lstat(path)
	if err == nil {
		return path, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", err
	}
	return path, own(path, v)
}

// writeFiles writes the files of a volume. A pod's fsGroup may read them.
func writeFiles(dir string, v manifest.Volume) error {
	for _, file := range v.Files {
		path := filepath.Join(dir, filepath.FromSlash(file.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, file.Data, 0o600); err != nil {
			return err
		}
		group, mode := 0, file.Mode
		if v.Group != nil {
			group, mode = int(*v.Group), mode|0o440
		}
		if err := os.Chown(path, int(file.User), group); err != nil {
			return err
		}
		if err := unix.Chmod(path, mode); err != nil {
			return fmt.Errorf("chmod %s: %w", path, err)
		}
	}
	return nil
}

// SubPath mounts a path within a volume at a path owned by this pod, and returns the latter. The
// kernel resolves the path below the volume and refuses links that lead out of it, so a container
// cannot redirect it, now or later. A missing path becomes a directory, as with a kubelet.
func (f Files) SubPath(container string, s manifest.SubPath, volume string) (string, error) {
	fd, err := openBelow(volume, s.Path)
	if errors.Is(err, unix.ENOENT) {
		if err := makeBelow(volume, s.Path); err != nil {
			return "", fmt.Errorf("subPath %s: %w", s.Path, err)
		}
		fd, err = openBelow(volume, s.Path)
	}
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
		return "", fmt.Errorf("subPath %s: a link on it leads out of the volume", s.Path)
	}
	if err != nil {
		return "", fmt.Errorf("subPath %s: %w", s.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	at := filepath.Join(f.dir(), "subpaths", container, strconv.Itoa(s.Mount))
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("mount subPath %s: %w", s.Path, err)
	}
	return at, nil
}

// openBelow opens a path below a directory. No link may lead out of the directory, see openat2(2).
// The caller closes the descriptor.
func openBelow(dir, path string) (int, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, path,
		&unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
}

// makeBelow creates a directory below a volume and its parents, each with the volume's own mode.
func makeBelow(dir, path string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	if err := root.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return root.Chmod(path, info.Mode().Perm()|info.Mode()&os.ModeSetgid)
}

// RemoveClaims removes the directories of a pod's claims.
func RemoveClaims(c *cli.CLI, r manifest.Ref) error {
	var errs []error
	for _, claim := range r.Claims {
		dir := filepath.Join(c.PodsDir, claimsDir, r.Namespace)
		if err := unmountBelow(filepath.Join(dir, claim)); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, RemoveBelow(dir, claim))
		_ = os.Remove(dir) // unless other claims are left in it
	}
	return errors.Join(errs...)
}
