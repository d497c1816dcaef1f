// Package harness runs the real programs for the tests: kurid with the keeper that it starts, a registry, a CRI client.
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
// [Main] puts the whole test program into a cell (bench/cell): its own process, mount, network, IPC and cgroup namespaces
// with an empty /run, /etc/kuri, /etc/cni and /var/lib/kuri. So the tests touch nothing of the machine, several may run
// at once, kurid's defaults can be used as they are, and whatever a crashed test leaves ends with the cell.
//
// Every daemon that a test starts brings a leak check: when the test ends and what it made is removed, mounts, network
// namespaces, links, addresses, routes, firewall rules, cgroups, processes and files must be what they were before.
//
// The tests need root; without it they are skipped. They need the programs in bin/ (make).
package harness
