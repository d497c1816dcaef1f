package pod

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/fault"
)

// makeLogDir makes the directory of a container's log, which is below the pod's log directory; "" is no log. A pod that
// mounts the node's directory of logs can put a link in place of its own log directory, or of one below it: a link there is an
// error of kind Invalid. (The keeper, which opens the log, follows none either, should one come meanwhile.)
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
		return fmt.Errorf("make the log's directory: %w", err)
	}
	return nil
}
