// Package critest runs the CRI validation suite of sigs.k8s.io/cri-tools against the real daemon.
//
// The suite is built from its module (tools/) with two changes: one pinned digest is replaced by
// that of an image built here, and two listeners stay on the loopback address. Its images are not
// available without a network. A registry on the loopback address serves equivalents under the same
// names, and hosts.toml files direct the daemon to it.
//
// expected.txt lists every spec of the suite: "pass NAME" for one that must pass, "apparmor NAME"
// or "selinux NAME" for one that must pass if the kernel has AppArmor or SELinux, and "skip NAME #
// reason" for one that may fail for now. A spec that is not listed, or that is listed and did not run, fails the test.
//
// Build results that take time are kept in .cache/critest of the source tree, or below $KURI_CACHE.
package critest
