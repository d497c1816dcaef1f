package pod

import (
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/record"
)

// scopePrefixBefore is the prefix of systemd scope names in releases in which it was not configurable.
const scopePrefixBefore = "kuri"

// Asked returns the requests with which the recorded pods and containers were created, for a predecessor of the keeper
// that kept no records. It changes nothing, and leaves out records that cannot be read.
func Asked(o Options) *keeper.Predecessor {
	o.ScopePrefix = scopePrefixBefore
	p := &Pods{Options: o, paths: paths{root: o.Root, state: o.State}}
	of := &keeper.Predecessor{Sandboxes: make(map[string]*api.CreateSandboxRequest), Containers: make(map[string]*api.CreateRequest)}
	for _, id := range namesIn(filepath.Join(o.Root, "pods")) {
		pod := &SandboxRecord{}
		if record.Read(p.paths.podRecord(id), sandboxFormat, pod) != nil {
			continue
		}
		of.Sandboxes[id] = p.sandboxRequest(pod)
		for _, c := range namesIn(filepath.Join(p.paths.podDir(id), "containers")) {
			r := &ContainerRecord{}
			if record.Read(p.paths.containerRecord(id, c), containerFormat, r) == nil {
				of.Containers[c] = p.containerRequest(pod, r)
			}
		}
	}
	return of
}

// containerRequest returns the request to the keeper for a container, without the root filesystem.
func (p *Pods) containerRequest(pod *SandboxRecord, r *ContainerRecord) *api.CreateRequest {
	cfg := r.config()
	return &api.CreateRequest{
		Id:            r.ID,
		SandboxId:     r.SandboxID,
		Bundle:        p.paths.bundle(r.SandboxID, r.ID),
		LogPath:       r.LogPath,
		LogDirectory:  pod.config().GetLogDirectory(),
		LogMaxBytes:   p.LogMaxSize,
		LogMaxFiles:   int32(p.LogMaxFiles),
		LogRateBytes:  p.LogRate,
		Tty:           cfg.GetTty(),
		Stdin:         cfg.GetStdin(),
		StdinOnce:     cfg.GetStdinOnce(),
		SystemdCgroup: p.Driver == cgroup.Systemd,
	}
}
