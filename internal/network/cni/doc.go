// Package cni attaches pods by the plugins of a CNI configuration, run through libcni. The
// configuration is read for each pod; DEL uses the configuration of the ADD.
//
// What it owns on the host, for a cache directory CACHE:
//
//	CACHE/attachments/<podID>.json  one ADD: written before it, removed after its DEL
//	CACHE/results                   libcni's cache of results
//	CACHE/podcidr.json              the pod CIDR that a kubelet gave (package ipam)
//
// Links, addresses and rules belong to the plugins. CACHE must outlive a reboot, because the leases of plugins do.
//
// [Network] is safe for concurrent use. Its lock gc keeps GC apart from ADD, DEL and CHECK, which run side by side.
//
// A plugin that runs when its daemon is killed goes on. The next daemon kills it before the DEL of its pod (orphan.go).
// [Network.Attached] lists the pods whose DEL is outstanding, whichever daemon attached them.
package cni
