// Package sysctl knows which kernel parameters a pod can have of its own: those of its network, IPC and UTS namespaces.
//
// It is the only list of them: package spec judges by it what a pod asks for, package namespace what the keeper is sent, and
// package network writes those of a network namespace. A parameter that is not in it would change the whole node.
//
// A name is written with dots or slashes, as for sysctl(8). Its key is the path below /proc/sys, so that two spellings of one
// parameter are the same key.
//
// The package keeps nothing and has no locks.
package sysctl
