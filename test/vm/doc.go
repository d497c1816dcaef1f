// Package vm has the stories that need a machine of its own: systemd as process 1, Kuri as its packaged unit, cgroup v2
// with every controller. They run in the virtual machine that test/vm/run boots (make test-vm), and nowhere else, for they
// leave the machine's units, /run/kuri and /var/lib/kuri as they are when they end.
package vm
