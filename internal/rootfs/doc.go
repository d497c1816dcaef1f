// Package rootfs answers what a container's files say before anything is mounted: who its user is, according to
// etc/passwd and etc/group of the image's layers; where a host path leads; what device a node is; what a layer changes; in what two
// root filesystems differ.
//
// It only reads, and keeps nothing. An image's layers are hostile: their files are read through the overlay's rules (top
// layer first, whiteouts, opaque directories) with symbolic links resolved inside the stack, never on the host, and with
// bounds on size and depth.
package rootfs
