package spec

import (
	"path/filepath"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// LogPath returns the host path of a container's log: its log_path below the pod's log_directory. It is "" when either
// is not set: then no log is kept, as the CRI has it. A log_path that leads out of the directory is refused.
func LogPath(pod *runtime.PodSandboxConfig, ctr *runtime.ContainerConfig) (string, error) {
	dir, name := pod.GetLogDirectory(), ctr.GetLogPath()
	if dir == "" || name == "" {
		return "", nil
	}
	if !filepath.IsLocal(name) || filepath.Clean(name) == "." {
		return "", invalid("log_path", "%q does not name a file below the pod's log_directory %s", name, dir)
	}
	return filepath.Join(dir, name), nil
}
