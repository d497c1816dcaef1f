// Package rootfs reads a container's files before anything is mounted: the user in etc/passwd and
// etc/group of the image, the target of a host path, the type of a device node, the changes of a
// layer, the differences between two root filesystems.
//
// It only reads, and keeps nothing. An image's layers are hostile. Their files are read by the
// rules of overlayfs (topmost layer first, whiteouts, opaque directories). Symbolic links are
// resolved inside the stack, never on the host. File size and depth are limited.
package rootfs
