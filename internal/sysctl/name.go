package sysctl

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Namespace is the kind of namespace that a parameter belongs to.
type Namespace string

// The namespaces of a pod that have parameters, by their names in the CRI or, for the last, in namespaces(7).
const (
	Network Namespace = "network"
	IPC     Namespace = "ipc"
	UTS     Namespace = "uts"
)

// ipcKeys are the parameters of the IPC namespace beside fs/mqueue/*: see ipc_namespaces(7) and the kernel's ipc_sysctl.c.
var ipcKeys = []string{
	"kernel/auto_msgmni", "kernel/msg_next_id", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/sem_next_id", "kernel/shm_next_id", "kernel/shm_rmid_forced", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
}

// domainName is the parameter of the UTS namespace that a pod can set: its NIS domain name.
const domainName = "kernel/domainname"

// Parse returns the key of a parameter and the namespace that it belongs to. The error is of kind Invalid when the name is
// malformed, or when the parameter belongs to no namespace that a pod can have.
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
	return "", "", fault.New(fault.Invalid, "%s belongs to no namespace of a pod, setting it would change the whole node; a pod can have net.*, fs.mqueue.*, %s and kernel.domainname",
		name, Name(strings.Join(ipcKeys, ", ")))
}

// Key returns the path of a parameter below /proc/sys. As in sysctl(8), the first separator tells the syntax: in
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

// interfaceOf returns the network interface that a key is about: "" for none, "all" or "default" where it is about those.
func interfaceOf(key string) string {
	parts := strings.Split(key, "/")
	if len(parts) < 5 || parts[0] != "net" || parts[2] != "conf" && parts[2] != "neigh" {
		return ""
	}
	return parts[3]
}
