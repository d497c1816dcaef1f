// Package node reads, once at start, what this machine's kernel has and what this process may do on it.
//
// It only reads (/proc, /sys, prctl) and keeps nothing. What kuri check asks too is asked by package probe.
package node
