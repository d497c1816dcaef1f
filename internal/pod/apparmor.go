package pod

import (
	"fmt"
	"log/slog"

	"github.com/moby/profiles/apparmor"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// loadAppArmor loads the AppArmor profile of a container into the kernel if necessary. It returns the node as the
// container may use it: without AppArmor if the container requested no profile and the default cannot be loaded. The
// error is of kind Precondition if a profile of the node's administrator is not loaded, or if the requested default
// cannot be loaded.
func (p *Pods) loadAppArmor(sc *runtime.LinuxContainerSecurityContext) (spec.Node, error) {
	profile, asked, err := spec.AppArmor(sc, p.Node)
	if err != nil || profile == "" {
		return p.Node, err
	}
	loaded, err := apparmor.IsLoaded(profile)
	if err != nil {
		return p.Node, fmt.Errorf("ask for the loaded AppArmor profiles: %w", err)
	}
	if loaded {
		return p.Node, nil
	}
	if profile != spec.DefaultAppArmor {
		return p.Node, fault.New(fault.Precondition, "apparmor: the profile %q is not loaded on this node; load it first (apparmor_parser)", profile)
	}
	if err = apparmor.InstallDefault(profile); err == nil {
		return p.Node, nil
	}
	if asked {
		return p.Node, fault.New(fault.Precondition, "apparmor: the default profile cannot be loaded: %w; install apparmor_parser", err)
	}
	slog.Warn("a container runs without an AppArmor profile: the default one cannot be loaded", "err", err)
	node := p.Node
	node.AppArmor = false
	return node, nil
}
