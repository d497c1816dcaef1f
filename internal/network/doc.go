// Package network gives pods their network: an interface eth0 in the pod's network namespace, addresses, and routes.
//
// There are two networks behind one interface, [Network], and one conformance suite (TestConformance) that both pass:
//
//   - [Bridge], the built-in one: a Linux bridge on the host and a veth pair for each pod, made with netlink and
//     nftables in this process. It needs no configuration and no other program.
//   - [CNI]: the plugins that a CNI configuration names, run through libcni.
//
// [Select] is what the daemon uses: the network that is configured, or CNI when its configuration directory has a
// configuration at the moment of the request, else the bridge. A [Result] says which of them attached the pod, so that
// Detach goes to the same one after the configuration has changed. A Detach that fails is tried again in the background;
// Select owns the goroutines that do this, and the hourly GC, and Close ends them.
//
// What the package owns on the host, for a daemon whose bridge state directory is STATE (h is a hash of STATE, so that two
// daemons with different directories keep apart):
//
//	STATE/leases/<podID>.json   the addresses and host ports of a pod; a record of package record
//	a bridge link               named as configured (kuri0) or, when another has that name, kuri-<h>; known as ours by its hardware address
//	veth links kuri<11 digits>  one for each pod, a port of the bridge; named by the pod's ID
//	nftables table inet kuri-<h>  masquerade and host ports; no rule of anybody else is changed, and two are added to a chain of theirs where OpenFirewall says so
//	nftables tables bridge kuri-<h>, inet kuri-<h>-apart  with isolation alone; they know pods by the group of their links
//	a route for ::1             in table local, on the bridge, while host ports are in effect
//	sysctls                     ip_forward, IPv6 forwarding, and those of our own links
//	CACHE/attachments, CACHE/results  (CNI) what has been added for which pod, with the configuration that did it
//	STATE/firewalld.json  that firewalld has the bridge in its zone trusted, because we asked; Prune takes both back
//	STATE/podcidr.json, CACHE/podcidr.json  the pod CIDR that a kubelet told
//
// From connection tracking it removes UDP flows to host ports that came or went, and nothing else.
//
// A CNI plugin that runs when its daemon is killed goes on; it is ended before the DEL of its pod by the next daemon.
//
// A daemon's death leaves all of it standing, and pods keep their network while it is away. At start [Select.Reclaim]
// takes away what belongs to no pod any more, what CNI plugins have to take away in the background. The bridge and the
// table exist while a pod has an address, and for [BridgeConfig.Idle] after that, so that pods that come one after another
// do not pay for making them. CACHE must outlive a reboot, for so do the leases of CNI plugins.
//
// The caller (package pod) makes and pins the network namespace, brings up its loopback, keeps the Result in the pod's
// record, and never runs two calls for one pod at once. Calls for different pods may run at the same time: the bridge has
// one lock over its leases, the link and the table, held for calls into the local kernel only; CNI keeps GC apart from all
// else, which runs at the same time.
//
// A firewall that is not its own the bridge cannot open: where another's forward chain drops what comes from the bridge, pods
// reach each other and the host, but nothing beyond it, until that firewall accepts the bridge. firewalld is asked to; of the
// others, which are walked to find out, [Network.Notice] tells. See firewall.
package network
