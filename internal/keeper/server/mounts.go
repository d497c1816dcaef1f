package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// makeMountPoint mounts a small private tmpfs at dir, so that mounts below it in a mount namespace
// copied from the host's are not visible on the host. It is a tmpfs because each container creates
// and removes directories in it, which on a disk filesystem takes longer than the rest of a start.
// A mount that a killed keeper left is used again.
func makeMountPoint(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	there, err := isMountPoint(dir)
	if err != nil {
		return err
	}
	if !there {
		if err := unix.Mount("kuri", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=711"); err != nil {
			return fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

func removeMountPoint(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.Remove(dir)
}

func isMountPoint(dir string) (bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	return listsMount("/proc/self/mountinfo", real)
}

// listsMount reports whether a file like /proc/self/mountinfo lists a mount at dir.
func listsMount(mountinfo, dir string) (bool, error) {
	body, err := os.ReadFile(mountinfo)
	if err != nil {
		return false, err
	}
	// See proc_pid_mountinfo(5). The line of an overlay with many lower layers is long.
	dir = strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(dir)
	for line := range strings.Lines(string(body)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == dir {
			return true, nil
		}
	}
	return false, nil
}

// makeMountPoints creates the empty directories that a container's mount namespace mounts over.
func makeMountPoints(rootfs string, overlays []*api.Overlay) error {
	for _, dir := range []string{rootfs, filepath.Join(filepath.Dir(rootfs), mappedDir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, o := range overlays {
		if filepath.Dir(o.Target) != filepath.Dir(rootfs) || o.Target == rootfs || len(o.Lowerdirs) == 0 {
			return fault.New(fault.Invalid, "overlay at %q: it needs layers, and a target in %s", o.Target, filepath.Dir(rootfs))
		}
		if err := os.Mkdir(o.Target, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeMountPoints removes the directory of a container and the empty directories in it.
func removeMountPoints(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(err, os.Remove(dir))
}

// mountRootfs mounts a container's root filesystem at target, and its other layers, in the calling
// thread's mount namespace. mountLabel is the SELinux label of all files, unless it is "". With a
// user namespace, the owners of the layers' files are mapped to the host ids of that namespace.
func mountRootfs(target string, req *api.CreateRequest, mountLabel string, user *os.File) error {
	root, overlays := req.Rootfs, req.Overlays
	if user != nil {
		all := slices.Clone(root.Lowerdirs)
		for _, o := range overlays {
			all = append(all, o.Lowerdirs...)
		}
		mapped, unmount, err := mapLayers(filepath.Dir(target), all, user)
		if err != nil {
			return err
		}
		defer unmount() // the overlays keep the mounts they use
		root = &api.Rootfs{Lowerdirs: mapped[:len(root.Lowerdirs)], Upperdir: root.Upperdir, Workdir: root.Workdir}
		mapped = mapped[len(root.Lowerdirs):]
		overlays = nil
		for _, o := range req.Overlays {
			overlays = append(overlays, &api.Overlay{Lowerdirs: mapped[:len(o.Lowerdirs)], Target: o.Target})
			mapped = mapped[len(o.Lowerdirs):]
		}
	}
	if err := mountOverlay(target, root, mountLabel); err != nil {
		return err
	}
	if err := makeDirectories(target, req.Rootfs.Directories); err != nil {
		return err
	}
	for _, o := range overlays {
		if err := mountReadOnly(o, mountLabel); err != nil {
			return err
		}
	}
	return nil
}

// mapLayers mounts the common directory of all layers again, over dir, with ids mapped as in the
// user namespace, and returns the paths of the layers there. One mount serves all layers.
func mapLayers(dir string, layers []string, user *os.File) (mapped []string, unmount func(), err error) {
	common := commonDir(layers)
	fd, err := unix.OpenTree(unix.AT_FDCWD, common, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("clone the mount of the layers in %s: %w", common, err)
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH,
		&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user.Fd())})
	if err != nil {
		return nil, nil, fault.New(fault.Unimplemented, "the filesystem of %s cannot be mounted with mapped ids: %w",
			common, err)
	}
	at := filepath.Join(dir, mappedDir)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, nil, fmt.Errorf("mount the layers at %s: %w", at, err)
	}
	for _, l := range layers {
		mapped = append(mapped, filepath.Join(at, strings.TrimPrefix(l, common)))
	}
	return mapped, func() { unix.Unmount(at, unix.MNT_DETACH) }, nil
}

// mappedDir is the name of the mount point of mapLayers, beside the container's root filesystem.
const mappedDir = "layers"

// commonDir returns the deepest directory that is, or contains, each of the paths.
func commonDir(paths []string) string {
	common := paths[0]
	for _, p := range paths[1:] {
		for common != "/" && p != common && !strings.HasPrefix(p, common+"/") {
			common = filepath.Dir(common)
		}
	}
	return common
}

// overlayOptionsMax is the limit of mount(2): one page less the terminating zero.
var overlayOptionsMax = os.Getpagesize() - 1

// mountOverlay mounts a root filesystem at target in the calling thread's mount namespace.
//
// Layers are named by path if the options fit into a page. Otherwise, or if a path has a character
// that is special to overlayfs, they are named by descriptor. So 128 layers fit on any kernel.
func mountOverlay(target string, root *api.Rootfs, mountLabel string) error {
	if options := overlayOptions(root.Lowerdirs, root.Upperdir, root.Workdir, mountLabel); plain(root) &&
		len(options) <= overlayOptionsMax {
		err := overlay(target, options)
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
		// One layer is missing. The code below finds out which.
	}
	all := append([]string{root.Upperdir, root.Workdir}, root.Lowerdirs...)
	short := make([]string, len(all))
	for i, path := range all {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fault.New(fault.Precondition, "open layer %s: %w", path, err)
		}
		defer unix.Close(fd)
		short[i] = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	options := overlayOptions(short[2:], short[0], short[1], mountLabel)
	if len(options) > overlayOptionsMax {
		return fault.New(fault.Invalid, "%d layers are more than this kernel can mount", len(root.Lowerdirs))
	}
	return overlay(target, options)
}

// mountReadOnly mounts layers without a writable layer in the calling thread's mount namespace.
func mountReadOnly(o *api.Overlay, mountLabel string) error {
	lower := o.Lowerdirs
	if len(lower) == 1 {
		lower = append(lower, o.Target) // overlayfs needs two; this one is empty
	}
	// By descriptor: see mountOverlay.
	short := make([]string, len(lower))
	for i, path := range lower {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fault.New(fault.Precondition, "open layer %s: %w", path, err)
		}
		defer unix.Close(fd)
		short[i] = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	options := label.FormatMountLabel("lowerdir="+strings.Join(short, ":"), mountLabel)
	if err := unix.Mount("overlay", o.Target, "overlay", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID,
		options); err != nil {
		return fmt.Errorf("mount overlay at %s (%s): %w", o.Target, options, err)
	}
	return nil
}

func overlayOptions(lower []string, upper, work, mountLabel string) string {
	return label.FormatMountLabel("index=off,lowerdir="+strings.Join(lower, ":")+",upperdir="+upper+",workdir="+work,
		mountLabel)
}

func overlay(target, options string) error {
	err := unix.Mount("overlay", target, "overlay", 0, options)
	if err == unix.EINVAL {
		// A kernel without the index feature rejects the option that disables it.
		err = unix.Mount("overlay", target, "overlay", 0, strings.TrimPrefix(options, "index=off,"))
	}
	if err == unix.ENODEV {
		return fault.New(fault.Unimplemented, "this kernel has no overlay filesystem; load the module overlay")
	}
	if err != nil {
		return fmt.Errorf("mount overlay at %s (%s): %w", target, options, err)
	}
	return nil
}

// plain reports whether no path has a character that is special in the options of overlayfs.
func plain(root *api.Rootfs) bool {
	return !strings.ContainsAny(root.Upperdir+root.Workdir+strings.Join(root.Lowerdirs, ""), `,:\`)
}
