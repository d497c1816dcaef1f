// Package sysctl lists the kernel parameters that a pod can set: those of its network, IPC and UTS
// namespaces. Any other parameter would change the whole node.
//
// It is the only such list. Package spec checks a pod's request with it, package namespace checks
// the keeper's requests, package network/netns writes the parameters of a network namespace, and
// package pod names those that it shall write.
//
// Names are written with dots or slashes, as for sysctl(8). The key of a parameter is its path below /proc/sys, so two
// spellings of a name have the same key.
//
// The package has no state and no locks.
package sysctl
