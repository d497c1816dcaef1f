package poddir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// Files are the files of one pod of kuri run on the node:
//
//	<pods-dir>/<uid>/runtime                      the socket of the runtime that has the pod; kuri doctor compares it
//	<pods-dir>/<uid>/volumes/<volume>/            an emptyDir, or the files of ConfigMaps, Secrets and fields of the pod; a
//	                                              tmpfs is mounted for an emptyDir in memory, and for secrets
//	<pods-dir>/<uid>/subpaths/<container>/<n>     a path within a volume, mounted here for the n-th mount of a container
//	<pods-dir>/<uid>/hosts                        /etc/hosts of a pod with hostAliases
//	<pods-dir>/claims/<namespace>/<claim>/        a PersistentVolumeClaim, which outlives the pod
//	<logs-dir>/<namespace>_<name>_<uid>/<container>/0.log
//
// The paths are derived from the pod's names and never stored, so no text of a runtime or an
// annotation becomes a path. The names are validated by Kubernetes' rules, and each is one path
// element. Removal does not follow links and does not enter foreign mounts.
type Files struct {
	podsDir, logsDir     string
	namespace, name, uid string
}

func Of(c *cli.CLI, namespace, name, uid string) Files {
	return Files{podsDir: c.PodsDir, logsDir: c.LogsDir, namespace: namespace, name: name, uid: uid}
}

// oldLogsDir had the logs of pods run by earlier versions of kuri.
const oldLogsDir = "/var/log/pods"

var (
	UIDForm  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	nameForm = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`) // of a DNS subdomain, and of a label
)

// check refuses names that kuri run cannot have assigned.
func (f Files) check() error {
	if !UIDForm.MatchString(f.uid) || !nameForm.MatchString(f.namespace) || !nameForm.MatchString(f.name) {
		return fmt.Errorf("namespace %q, name %q, uid %q are not those of a pod of kuri run: its files are left alone",
			f.namespace, f.name, f.uid)
	}
	return nil
}

func (f Files) dir() string    { return filepath.Join(f.podsDir, f.uid) }
func (f Files) Hosts() string  { return filepath.Join(f.dir(), "hosts") }
func (f Files) logDir() string { return f.namespace + "_" + f.name + "_" + f.uid } // below logsDir

// Make creates the pod's volumes and log directories, and returns the host path of each volume.
// socket is the path of the runtime's socket. After a failure, call Remove for the files that exist
// by then.
func (f Files) Make(socket string, volumes []manifest.Volume,
	containers []manifest.Container) (map[string]string, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(f.dir(), "volumes"), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(f.dir(), "runtime"), []byte(socket+"\n"), 0o600); err != nil {
		return nil, err
	}
	for _, ct := range containers {
		if err := os.MkdirAll(filepath.Join(f.logsDir, f.logDir(), filepath.Dir(ct.LogPath())), 0o755); err != nil {
			return nil, err
		}
	}
	paths := map[string]string{}
	for _, v := range volumes {
		path := v.HostPath
		var err error
		switch {
		case path != "":
			err = hostPath(path, v.Type)
		case v.Claim != "":
			path, err = f.claim(v)
		default:
			path = filepath.Join(f.dir(), "volumes", v.Name)
			if err = emptyDir(path, v); err == nil {
				err = writeFiles(path, v)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		paths[v.Name] = path
	}
	return paths, nil
}

func emptyDir(path string, v manifest.Volume) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if v.Memory {
		options := "mode=0700"
		if v.SizeLimit > 0 {
			options += ",size=" + strconv.FormatInt(v.SizeLimit, 10)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount a tmpfs at %s: %w", path, err)
		}
	}
	return own(path, v)
}

// own sets the mode of a volume's directory and, if the pod has an fsGroup, its group.
func own(path string, v manifest.Volume) error {
	mode := v.Mode
	if v.Group != nil { // files created inside belong to the group, too
		if err := os.Chown(path, 0, int(*v.Group)); err != nil {
			return err
		}
		if mode |= unix.S_ISGID | 0o770; v.Files != nil {
			mode &^= 0o20 // containers do not write there
		}
	}
	return unix.Chmod(path, mode) // os.Chmod encodes the bits above 0777 differently
}

// hostPath checks or creates the path of a hostPath volume, as its type requires.
func hostPath(path string, kind corev1.HostPathType) error {
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case missing && kind == corev1.HostPathDirectoryOrCreate:
		return os.MkdirAll(path, 0o755)
	case missing && kind == corev1.HostPathFileOrCreate:
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		return file.Close()
	case err != nil:
		return fmt.Errorf("hostPath: %w", err)
	}
	is, want := info.Mode().Type(), fs.FileMode(0)
	switch kind {
	case corev1.HostPathUnset:
		return nil
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		want = fs.ModeDir
	case corev1.HostPathSocket:
		want = fs.ModeSocket
	case corev1.HostPathCharDev:
		want = fs.ModeDevice | fs.ModeCharDevice
	case corev1.HostPathBlockDev:
		want = fs.ModeDevice
	}
	if is != want {
		return fmt.Errorf("hostPath %s is not of type %s", path, kind)
	}
	return nil
}

// Remove removes the directories that Make created. It is idempotent.
func (f Files) Remove() error {
	if err := f.check(); err != nil {
		return err
	}
	if err := unmountBelow(f.dir()); err != nil {
		return err
	}
	errs := []error{RemoveBelow(f.podsDir, f.uid), RemoveBelow(f.logsDir, f.logDir())}
	if f.logsDir == cli.DefaultLogsDir {
		errs = append(errs, RemoveBelow(oldLogsDir, f.logDir()))
	}
	return errors.Join(errs...)
}

// RemoveBelow removes the directory name, one path element, in dir.
func RemoveBelow(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

// unmountBelow unmounts everything at or below dir: our tmpfs, and mounts that a container with
// Bidirectional propagation has left in a volume. Otherwise the removal of the directory would
// empty somebody else's filesystem.
func unmountBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) { // in reverse order of mounting
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	if left, err := mountsBelow(dir); err != nil || len(left) > 0 {
		return fmt.Errorf("%v still mounted, nothing is removed: %w", left, errors.Join(err, unix.EBUSY))
	}
	return nil
}

// mountsBelow returns the mount points at and below dir, in the order in which they were mounted.
func mountsBelow(dir string) ([]string, error) {
	body, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return mountsIn(string(body), dir), nil
}

// mountsIn implements mountsBelow for the text of /proc/self/mountinfo.
func mountsIn(mountinfo, dir string) (out []string) {
	for line := range strings.Lines(mountinfo) { // an overlay with many lower layers has a long one
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if at := unescape(fields[4]); at == dir || strings.HasPrefix(at, dir+"/") {
			out = append(out, at)
		}
	}
	return out
}

// unescape decodes the octal escapes of mountinfo, see proc_pid_mountinfo(5).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
