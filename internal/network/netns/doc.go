// Package netns enters and identifies network namespaces, and sets their kernel parameters.
//
// [Do] runs a function on a thread of its own that is in a namespace; sockets opened there belong
// to that namespace. Other functions work on the namespace of the calling thread. [LockHost] takes
// a flock on the namespace's inode, which every daemon of the node can take: it serialises the
// choice of link names and ranges. The package keeps no state.
package netns
