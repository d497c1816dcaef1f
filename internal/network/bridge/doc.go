// Package bridge is the built-in network: a Linux bridge on the host and a veth pair for each pod,
// made with netlink and nftables in this process. It needs no configuration and no other program.
//
// What it owns on the host, for a daemon whose state directory is STATE (h is a hash of STATE, so that two daemons with
// different directories keep apart):
//
//	STATE/leases/<podID>.json     addresses and host ports of a pod (package ipam)
//	STATE/podcidr.json            the pod CIDR that a kubelet gave (package ipam)
//	STATE/firewalld.json          that firewalld has the bridge in its zone trusted (package firewall)
//	a bridge link                 named as configured (kuri0) or, when another has that name, kuri-<h>; its hardware address
//	                              identifies it as ours
//	veth links kuri<11 digits>    one for each pod, a port of the bridge; named by the pod's ID
//	nftables tables               inet kuri-<h>; with isolation also bridge kuri-<h> and inet kuri-<h>-apart (package nft)
//	a route for ::1               in table local, on the bridge, while host ports are in effect
//	sysctls                       ip_forward, IPv6 forwarding, and those of our own links
//
// The bridge and the tables exist while a pod has an address, and for [Config.Idle] after that, so
// that pods that come one after another do not pay for making them.
//
// [Network] has one lock, over its leases, the link and the tables. It is held for calls into the local kernel only.
//
// Everything survives the daemon: pods keep their network while it is away. The next daemon reads
// the leases in [New]; at [Network.Reclaim] it removes what belongs to no pod and restores what is
// missing. After a reboot the leases of pods that are gone are given back the same way.
package bridge
