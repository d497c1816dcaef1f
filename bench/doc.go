// Command bench does the same work on containerd and on Kuri, in one run, and prints what each takes
// and the ratio. bench/run builds what it needs and starts it in a cell (bench/cell): process, mount,
// network and cgroup namespaces of its own, so it may assume that every process it sees is its own and
// that nothing it leaves behind survives it.
//
// Both daemons run at the same time, each idle while the other works, and take turns in rounds, so that
// what disturbs the machine disturbs both. Both are spoken to by the same client over the CRI, pull
// the same images from the same registry (in this process, on loopback) and write to the same disk.
//
// On disk it owns $CELL_DIR; in the kernel the cgroups /bench (itself), /containerd and /kuri.
package main
