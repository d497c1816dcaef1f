// Package critest runs the CRI validation suite of sigs.k8s.io/cri-tools against the real daemon.
//
// The suite is built from its module (tools/), with two changes: one pinned digest is that of an image made here, and
// two listeners stay on the loopback address. The images that it asks for cannot be had; equivalents under the same names
// are served by a registry on the loopback address, to which the daemon is sent by hosts.toml files.
//
// expected.txt lists every spec of the suite: "pass NAME" for one that must pass, "apparmor NAME" for one that must where
// the kernel has AppArmor, "skip NAME # reason" for one that need not yet. A spec that is in neither, or that is listed and did not run, fails the test.
//
// What takes time to build is kept in .cache/critest of the source tree, or below $KURI_CACHE.
package critest
