package pod

import (
	"maps"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Handler is a runtime handler, what a RuntimeClass of the cluster names. The default one has the empty name, is always
// there and is the zero Handler: the embedded OCI runtime, the node's networks.
//
// A pod keeps the handler that it was made with, whatever becomes of the configuration: its record has the whole of it.
type Handler struct {
	Platform   string `json:"platform,omitempty"`     // of the images of its containers, as image.ParsePlatform returns it; "": this node's
	CNIConfDir string `json:"cni_conf_dir,omitempty"` // where the CNI configurations of its pods are; "": where those of the default handler are
}

// handlerOf returns the handler of a pod. In records of earlier versions there is but its name, which may be configured no
// more: then it is the default one.
func (p *Pods) handlerOf(r *SandboxRecord) Handler {
	if r.Resolved != nil {
		return *r.Resolved
	}
	return p.Handlers[r.Handler]
}

// withDefault is the configured handlers and the default one.
func withDefault(configured map[string]Handler) map[string]Handler {
	all := map[string]Handler{"": {}}
	maps.Copy(all, configured)
	return all
}

// HandlerNames returns the names of all runtime handlers, sorted: the default one, "", is the first.
func (p *Pods) HandlerNames() []string {
	return slices.Sorted(maps.Keys(p.Handlers))
}

// Handler returns the runtime handler of that name. The error is of kind NotFound and says which there are.
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
