package cni

import (
	"cmp"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
)

// addCapabilities fills in the runtimeConfig of the plugins, by the CNI conventions; libcni passes
// each plugin the parts that it declares. Host ports and a hardware address that no plugin takes
// are an error; the rest is advice.
func (a *attachment) addCapabilities(list *libcni.NetworkConfigList, pod network.Pod, podCIDR []netip.Prefix) error {
	if ports := pod.HostPorts(); len(ports) > 0 {
		if !takes(list, "portMappings") {
			return fault.New(fault.Precondition,
				"the pod asks for host port %s, and no plugin of CNI network %s has the capability portMappings; add the portmap plugin to its configuration", ports[0], list.Name)
		}
		a.Runtime["portMappings"] = cniPorts(ports)
	}
	if name, asked := network.HardwareAddress(pod.Annotations); asked != "" {
		mac, err := net.ParseMAC(asked)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fault.New(fault.Invalid, "annotation %s: %q is not the hardware address of one Ethernet interface", name,
				asked)
		}
		if !takes(list, "mac") {
			return fault.New(fault.Precondition,
				"the pod asks for the hardware address %s by its annotation %s, and no plugin of CNI network %s has the capability mac", asked, name, list.Name)
		}
		a.Runtime["mac"] = mac.String()
	}
	if takes(list, "bandwidth") {
		limits, err := network.Bandwidth(pod.Annotations)
		if err != nil {
			return err
		}
		if len(limits) > 0 {
			a.Runtime["bandwidth"] = limits
		}
	}
	if len(podCIDR) > 0 {
		a.Runtime["ipRanges"] = cniRanges(podCIDR)
	}
	if d := pod.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		a.Runtime["dns"] = map[string][]string{"servers": d.Servers, "searches": d.Searches, "options": d.Options}
	}
	if pod.CgroupParent != "" {
		a.Runtime["cgroupPath"] = pod.CgroupParent
	}
	return nil
}

// cniPorts is the shape of the capability portMappings. Mappings for one address come first: the
// first rule of portmap that matches a packet counts.
func cniPorts(ports []network.PortMapping) []map[string]any {
	var all []map[string]any
	ports = slices.Clone(ports)
	slices.SortStableFunc(ports, func(a, b network.PortMapping) int { return cmp.Compare(a.Width(), b.Width()) })
	for _, m := range ports {
		entry := map[string]any{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": string(m.Protocol)}
		if m.HostIP.IsValid() {
			entry["hostIP"] = m.HostIP.String()
		}
		all = append(all, entry)
	}
	return all
}

// cniRanges is the shape of the capability ipRanges: a list of sets, each of which gives the pod an address.
func cniRanges(podCIDR []netip.Prefix) [][]map[string]string {
	var sets [][]map[string]string
	for _, r := range podCIDR {
		sets = append(sets, []map[string]string{{"subnet": r.String()}})
	}
	return sets
}
