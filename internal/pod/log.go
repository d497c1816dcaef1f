package pod

import (
	"cmp"
	"os"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/fault"
)

// makeLogDir creates the directory of a container's log, which is below the pod's log directory. log is "" for no log.
// The error is of kind Invalid if the pod's log directory, or one below it, is a symlink. A pod that mounts the node's
// log directory can create such a link. (The keeper opens the log and follows no link either, in case one is created
// meanwhile.) If the directory cannot be created, the error is of the errno's kind, else Precondition.
func makeLogDir(logDirectory, log string) error {
	if log == "" {
		return nil
	}
	for dir := filepath.Dir(log); ; dir = filepath.Dir(dir) {
		if st, err := os.Lstat(dir); err == nil && st.Mode()&os.ModeSymlink != 0 {
			return fault.New(fault.Invalid, "log_directory: %s is a symlink, which is not followed there; name the directory that it leads to", dir)
		}
		if dir == filepath.Clean(logDirectory) || dir == "/" {
			break
		}
	}
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return fault.New(cmp.Or(fault.OfErrno(err), fault.Precondition), "make the log's directory: %w", err)
	}
	return nil
}
