// Package tree packs files of this machine into a tar, and unpacks the tar of a container into
// files of this machine.
//
// A container's tar is untrusted. [Unpack] writes only below one directory: the kernel resolves
// every name from there (os.Root). Symlinks are created last, so that no path leads through one.
// Every file is created under a temporary name and renamed when it is complete, so that an existing
// file or link target is never written to. Entries that are not files, directories or links are
// skipped.
package tree
