// Package node reads, once at start, the features of this machine's kernel and the privileges of this process.
//
// It only reads (/proc, /sys, prctl) and has no state. Checks that it shares with kuri check are in package probe.
package node
