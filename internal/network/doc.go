// Package network defines what gives a pod its network: an interface eth0 in the pod's network namespace, addresses and
// routes. It has the interface, [Network], and the types that all networks share. The networks are packages below it:
//
//	selector     the network of the daemon: sends each pod to one of the two below
//	bridge, cni  the built-in network, and the plugins of a CNI configuration
//	ipam         ranges of addresses and leases
//	nft          our nftables tables: host ports, masquerading, isolation of namespaces
//	firewall     the node's own firewall, where it drops packets of pods
//	conntrack    UDP flows to host ports that came or went
//	link, netns  network links and network namespaces, by netlink and /proc/sys
//	networktest  for tests: the conformance suite of [Network], and namespaces to run it in
//
// Imports point down in this list (internal/floors_test.go). Each package's comment says what it owns on the node.
//
// This package keeps no state. [WriteRecord] is the one function that writes to the disk.
//
// The caller of a Network (package pod) makes and pins the network namespace, brings up its
// loopback, keeps the [Result] in the pod's record, and never runs two calls for one pod at once.
// Calls for different pods may run at the same time.
package network
