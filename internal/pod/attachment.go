package pod

import (
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/network"
)

// Attachments returns the ready pods that have a network of their own, by id.
func (v *Inventory) Attachments() map[string]network.Attachment {
	free := map[string]bool{}
	for _, c := range v.Containers {
		if hasCapability(c.config().GetLinux().GetSecurityContext(), "NET_ADMIN") {
			free[c.SandboxID] = true
		}
	}
	all := map[string]network.Attachment{}
	for id, r := range v.Sandboxes {
		if r.State != Ready || r.Network == nil || r.NetnsPath == "" || !r.OfThisBoot() {
			continue
		}
		m := r.config().GetMetadata()
		all[id] = network.Attachment{
			Pod:    network.Pod{ID: id, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), NetnsPath: r.NetnsPath},
			Result: r.Network, Free: free[id],
		}
	}
	return all
}

// hasCapability reports whether a container was given a capability beyond the usual ones.
func hasCapability(c *runtime.LinuxContainerSecurityContext, name string) bool {
	return c.GetPrivileged() || slices.ContainsFunc(c.GetCapabilities().GetAddCapabilities(), func(added string) bool {
		added = strings.TrimPrefix(strings.ToUpper(added), "CAP_")
		return added == name || added == "ALL"
	})
}
