package seal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrUnsealed means that this kernel can seal no program.
var ErrUnsealed = errors.New("the program cannot be sealed")

// program returns the sealed program of this process.
var program = sync.OnceValues(func() (*os.File, error) {
	f, err := overlaid("/proc/self/exe")
	if err == nil {
		return f, nil
	}
	f, cerr := copied("/proc/self/exe")
	if cerr != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsealed, errors.Join(err, cerr))
	}
	return f, nil
})

// Check seals the program. The first call of this package must be made in the node's mount namespace. The error is
// ErrUnsealed.
func Check() error {
	_, err := program()
	return err
}

// Program makes cmd, which has not been started, run the sealed program. The command gets a
// descriptor of it as the last of its ExtraFiles, which it should close. The error is ErrUnsealed.
func Program(cmd *exec.Cmd) error {
	f, err := program()
	if err != nil {
		return err
	}
	// By its number among the command's files: in a child, os/exec may put another file in place of any other number.
	const first = 3
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", first+len(cmd.ExtraFiles))
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	return nil
}

// overlaid opens the file that the link exe names, through an overlay without a writable layer.
func overlaid(exe string) (*os.File, error) {
	path, err := os.Readlink(exe)
	if err != nil {
		return nil, err
	}
	// A link to a file that has been replaced or removed ends in " (deleted)", and no such file is found below.
	dir, name := filepath.Split(path)
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	// Without a writable layer there must be two others, which do not contain each other. Nothing is opened in the second.
	layers := strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(dir) + ":/dev"
	if err := unix.FsconfigSetString(fs, "lowerdir", layers); err != nil {
		return nil, fmt.Errorf("overlay of %s: %w", layers, err)
	}
	_ = unix.FsconfigSetString(fs, "xino", "off") // else some kernels log a line
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("overlay of %s: %w", layers, err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// copied copies the file at a path to memory and seals the copy.
func copied(path string) (*os.File, error) {
	from, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	const name, flags = "kuri-keeper", unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags) // before Linux 6.3
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Chmod(0o511)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("copy %s to memory: %w", path, err)
	}
	return f, nil
}
