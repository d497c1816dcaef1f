package namespace

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// ipcSysctls are those of the IPC namespace, see ipc_namespaces(7), beside fs.mqueue.*.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
	"kernel.shm_rmid_forced",
}

// CheckSysctl tells whether the sysctl name, dots or slashes, belongs to a namespace that cfg makes. One that would
// reach the host, or does not exist in a namespace, is of kind Invalid.
func CheckSysctl(name string, cfg Config) error {
	key := normalSysctl(name)
	if key == "" || strings.Contains(key, "..") || strings.HasPrefix(key, "/") {
		return fault.New(fault.Invalid, "sysctl %q is not a name", name)
	}
	dotted := strings.ReplaceAll(key, "/", ".")
	switch {
	case strings.HasPrefix(key, "net/"):
		if !cfg.Network {
			return fault.New(fault.Invalid, "sysctl %q would change the host: the pod uses the host's network namespace", name)
		}
	case slices.Contains(ipcSysctls, dotted), strings.HasPrefix(key, "fs/mqueue/"):
		if !cfg.IPC {
			return fault.New(fault.Invalid, "sysctl %q would change the host: the pod uses the host's IPC namespace", name)
		}
	default:
		return fault.New(fault.Invalid, "sysctl %q is not of a namespace; net.*, fs.mqueue.*, %s can be set for a pod",
			name, strings.Join(ipcSysctls, ", "))
	}
	return nil
}

// normalSysctl turns a name into a path below /proc/sys. As sysctl(8) has it: when the first separator is a dot, dots
// separate and slashes stand for dots in a component (an interface "eth0.1"); when it is a slash, slashes separate.
func normalSysctl(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// writeSysctls writes them in the order of their names, from a thread inside the namespaces.
func writeSysctls(sysctls map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		path := filepath.Join("/proc/sys", normalSysctl(name))
		err := os.WriteFile(path, []byte(sysctls[name]), 0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fault.New(fault.Invalid, "sysctl %q does not exist in this kernel: %w", name, err)
		case err != nil:
			return fault.New(fault.Invalid, "set sysctl %q to %q: %w", name, sysctls[name], err)
		}
	}
	return nil
}
