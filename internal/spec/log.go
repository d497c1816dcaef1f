package spec

import (
	"path/filepath"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// LogPath returns the host path of a container's log: its log_path below the pod's log_directory.
// It returns "" if either is empty: the CRI then wants no log. A log_path outside the directory is
// rejected.
func LogPath(pod *runtime.PodSandboxConfig, ctr *runtime.ContainerConfig) (string, error) {
	dir, name := pod.GetLogDirectory(), ctr.GetLogPath()
	if dir == "" || name == "" {
		return "", nil
	}
	if !filepath.IsLocal(name) || strings.ContainsRune(name, 0) || filepath.Clean(name) == "." {
		return "", invalid("log_path", "%q does not name a file below the pod's log_directory %s", name, dir)
	}
	return filepath.Join(dir, name), nil
}
