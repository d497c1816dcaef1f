package ocitest

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/process"
)

// userNamespaces tests CreateUser: the process has the id mappings, only the requested namespaces
// are new and belong to its user namespace, and nothing of it is left in the end.
func userNamespaces(n *node) {
	uids := []syscall.SysProcIDMap{{HostID: 1 << 20, Size: 1000}, {ContainerID: 5000, HostID: 1 << 21, Size: 7}}
	gids := []syscall.SysProcIDMap{{HostID: 1 << 22, Size: 10}}
	for _, of := range []struct {
		flags int
		names string
	}{
		{unix.CLONE_NEWNET, "net"}, {unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWUTS, "uts"},
		{unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS, "ipc net uts"}, {0, ""},
	} {
		pid := 0
		n.must(namespace.OnThread(func() error {
			var end func()
			var err error
			if pid, end, err = n.runtime.CreateUser(of.flags, &namespace.Mapping{UIDs: uids, GIDs: gids}); err != nil {
				return err
			}
			defer end()
			if got, want := idMaps(pid), "0 1048576 1000 5000 2097152 7; 0 4194304 10"; got != want {
				n.t.Errorf("the maps are %q, not %q", got, want)
			}
			got, err := ownedNamespaces(pid)
			if got != of.names {
				n.t.Errorf("the user namespace owns %q, not %q", got, of.names)
			}
			return err
		}))
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			n.t.Errorf("process %s is left", process.Describe(pid))
		}
	}
	before := process.Zombie()
	tooMany := &namespace.Mapping{UIDs: []syscall.SysProcIDMap{{Size: 10}, {Size: 10}}, GIDs: gids} // one id for two
	if _, _, err := n.runtime.CreateUser(0, tooMany); err == nil {
		n.t.Error("contradictory mappings were accepted")
	}
	if child := process.Zombie(); child != before {
		n.t.Errorf("process %s is left", process.Describe(child))
	}
}

// idMaps returns the id mappings of a process's user namespace.
func idMaps(pid int) string {
	uids, _ := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
	gids, _ := os.ReadFile(fmt.Sprintf("/proc/%d/gid_map", pid))
	return strings.Join(strings.Fields(string(uids)), " ") + "; " + strings.Join(strings.Fields(string(gids)), " ")
}

// ownedNamespaces names the namespaces of a process that its user namespace owns.
func ownedNamespaces(pid int) (string, error) {
	var user unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/user", pid), &user); err != nil {
		return "", err
	}
	var names []string
	for _, name := range []string{"ipc", "mnt", "net", "pid", "uts"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		if err != nil {
			return "", err
		}
		defer f.Close()
		fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		var owner unix.Stat_t
		if err := unix.Fstat(fd, &owner); err != nil {
			return "", err
		}
		if owner.Dev == user.Dev && owner.Ino == user.Ino {
			names = append(names, name)
		}
	}
	return strings.Join(names, " "), nil
}
