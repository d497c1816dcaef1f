// Package harness runs the real programs for the tests: kurid with its keeper, a registry, and a CRI client.
//
//	func TestMain(m *testing.M) { harness.Main(m) }
//
//	func TestExitCode(t *testing.T) {
//		d := harness.Start(t, harness.Options{})
//		ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
//		d.Pull(t, ref)
//		pod := d.RunPod(t, harness.Pod("exit"))
//		c := d.Run(t, pod, harness.Container("main", ref, "sh", "-c", "exit 3"))
//		if got := d.WaitExit(t, c).ExitCode; got != 3 { … }
//	}
//
// [Main] runs the whole test program in a cell (bench/cell), with its own process, mount, network,
// IPC and cgroup namespaces and an empty /run, /etc/kuri, /etc/cni and /var/lib/kuri. So the tests
// do not touch the machine, several can run at once, kurid's defaults can be used unchanged, and
// everything that a crashed test leaves behind ends with the cell.
//
// Every daemon of a test has a leak check. When the test has ended and its objects are removed, the
// mounts, network namespaces, links, addresses, routes, firewall rules, cgroups, processes and
// files must be the same as before.
//
// The tests need root; without it they are skipped. They need the programs in bin/ (make).
package harness
