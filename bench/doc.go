// Command bench runs the same operations on containerd and on Kuri, and prints the cost of each and
// the ratio. bench/run builds the programs and starts it in a cell (bench/cell) with process,
// mount, network and cgroup namespaces of its own. So it may assume that all visible processes
// belong to it, and that nothing it leaves behind outlives the cell.
//
// Both daemons run at the same time and take turns in rounds. One is idle while the other works, so
// that disturbances of the machine affect both. The same client calls both over the CRI. They pull
// the same images from the same registry (in this process, on loopback) and write to the same disk.
//
// On disk it owns $CELL_DIR. In the kernel it owns the cgroups /bench (its own process),
// /containerd and /kuri.
package main
