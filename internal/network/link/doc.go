// Package link works on network links by netlink: it removes them, waits until they carry packets,
// and reads their counters. It keeps no state. What it does, it does in the network namespace of
// the calling thread, unless a path is given.
package link
