package pod

import (
	"maps"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Handler is a runtime handler, which a RuntimeClass of the cluster names. The default handler always exists. Its name
// is empty and it is the zero Handler: the embedded OCI runtime and the node's networks.
//
// A pod keeps the handler with which it was created, even if the configuration changes: its record has a copy.
type Handler struct {
	Platform   string `json:"platform,omitempty"`     // of the images of its containers, as image.ParsePlatform returns it; "": this node's
	CNIConfDir string `json:"cni_conf_dir,omitempty"` // directory of the CNI configurations of its pods; "": that of the default handler
}

// handlerOf returns the handler of a pod. Records of earlier versions have only its name. If that is no longer
// configured, handlerOf returns the default handler.
func (p *Pods) handlerOf(r *SandboxRecord) Handler {
	if r.Resolved != nil {
		return *r.Resolved
	}
	return p.Handlers[r.Handler]
}

// withDefault returns the configured handlers and the default one.
func withDefault(configured map[string]Handler) map[string]Handler {
	all := map[string]Handler{"": {}}
	maps.Copy(all, configured)
	return all
}

// HandlerNames returns the names of all runtime handlers, sorted. The first is the default one, "".
func (p *Pods) HandlerNames() []string {
	return slices.Sorted(maps.Keys(p.Handlers))
}

// Handler returns the runtime handler with that name. The error is of kind NotFound and lists the handlers.
func (p *Pods) Handler(name string) (Handler, error) {
	h, ok := p.Handlers[name]
	if ok {
		return h, nil
	}
	there := "the one there is has the empty name (the embedded OCI runtime)"
	if names := p.HandlerNames()[1:]; len(names) > 0 {
		there = "there are the default one, with the empty name, and " + strings.Join(names, ", ")
	}
	return h, fault.New(fault.NotFound, "there is no runtime handler %q; %s; more can be configured, as [handler.NAME]", name, there)
}
