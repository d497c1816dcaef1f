package sysctl

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Namespace is a kind of namespace with kernel parameters.
type Namespace string

// The kinds of a pod's namespaces that have parameters, with their names in the CRI, or namespaces(7) for UTS.
const (
	Network Namespace = "network"
	IPC     Namespace = "ipc"
	UTS     Namespace = "uts"
)

// ipcKeys are the parameters of the IPC namespace other than fs/mqueue/*: see ipc_namespaces(7) and
// the kernel's ipc_sysctl.c.
var ipcKeys = []string{
	"kernel/auto_msgmni", "kernel/msg_next_id", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/sem_next_id", "kernel/shm_next_id", "kernel/shm_rmid_forced", "kernel/shmall", "kernel/shmmax",
	"kernel/shmmni",
}

// domainName is the only parameter of the UTS namespace that a pod can set: the NIS domain name.
const domainName = "kernel/domainname"

// Parse returns the key and the namespace of a parameter. The error is of kind Invalid if the name
// is malformed, or if the parameter belongs to no namespace of a pod.
func Parse(name string) (key string, ns Namespace, err error) {
	key = Key(name)
	switch {
	case !filepath.IsLocal(key) || filepath.Clean(key) != key || strings.ContainsAny(key, "\x00\n") || key == ".":
		return "", "", fault.New(fault.Invalid, "%q is not the name of a kernel parameter", name)
	case strings.HasPrefix(key, "net/"):
		return key, Network, nil
	case strings.HasPrefix(key, "fs/mqueue/"), slices.Contains(ipcKeys, key):
		return key, IPC, nil
	case key == domainName:
		return key, UTS, nil
	case key == "kernel/hostname":
		return "", "", fault.New(fault.Invalid, "set the pod's hostname instead of the parameter %s", name)
	}
	return "", "", fault.New(fault.Invalid,
		"%s belongs to no namespace of a pod, so setting it would change the whole node; a pod can set net.*, fs.mqueue.*, %s and kernel.domainname",
		name, Name(strings.Join(ipcKeys, ", ")))
}

// Key returns the path of a parameter below /proc/sys. As in sysctl(8), the first separator decides the syntax: in
// "net.ipv4.conf.eth0/1.forwarding" a slash stands for a dot; in "net/ipv4/conf/eth0.1/forwarding" nothing is replaced.
func Key(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return swap.Replace(name)
}

// Name returns the name of a key with dots, as most people write it.
func Name(key string) string { return swap.Replace(key) }

// swap exchanges the two separators.
var swap = strings.NewReplacer(".", "/", "/", ".")

// interfaceOf returns the network interface in a key, which may be "all" or "default". It returns "" if there is none.
func interfaceOf(key string) string {
	parts := strings.Split(key, "/")
	if len(parts) < 5 || parts[0] != "net" || parts[2] != "conf" && parts[2] != "neigh" {
		return ""
	}
	return parts[3]
}
