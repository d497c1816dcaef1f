// Package vm has the stories that need a separate machine: systemd as process 1, Kuri as its packaged unit,
// and cgroup v2 with every controller. They run only in the virtual machine that test/vm/run boots (make
// test-vm), because they do not restore the machine's units, /run/kuri and /var/lib/kuri.
package vm
