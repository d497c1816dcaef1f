package oci

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/namespace"
)

// Namespaces of a request with newUser, as in forkserver.c.
const (
	ownsNetwork = 1 << iota
	ownsIPC
	ownsUTS
)

// CreateUser starts a program in the new user namespace. See [Runtime].
func (l *Libcontainer) CreateUser(flags int, m *namespace.Mapping) (pid int, end func(), err error) {
	return namespace.StartCreator(flags, m)
}

// CreateUser makes the fork server fork a process. A fork of this much larger process and an exec
// take ten times as long. See [Runtime].
func (e *Embedded) CreateUser(flags int, m *namespace.Mapping) (pid int, end func(), err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, err
	}
	err = errors.Join(unix.SetNonblock(pair[0], true), unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
	talk := os.NewFile(uintptr(pair[0]), "talk")
	end = func() {
		talk.Close() // at which the process exits
		reap(pid)
	}
	server := 0
	if err == nil {
		server, err = e.forks.ask(newUser, owned(flags), pair[1])
	}
	unix.Close(pair[1])
	if err == nil {
		pid, err = born(talk, server)
	}
	if err == nil {
		err = mapIDs(pid, m)
	}
	if err != nil {
		end()
		return 0, nil, err
	}
	return pid, end, nil
}

func owned(flags int) (which byte) {
	for flag, w := range map[int]byte{unix.CLONE_NEWNET: ownsNetwork, unix.CLONE_NEWIPC: ownsIPC, unix.CLONE_NEWUTS: ownsUTS} {
		if flags&flag != 0 {
			which |= w
		}
	}
	return which
}

// born receives the pid of a process that the fork server has forked, and which sends nothing.
func born(talk *os.File, server int) (pid int, err error) {
	talk.SetDeadline(time.Now().Add(initLimit))
	m, err := receive(talk)
	switch {
	case err != nil:
		return 0, fmt.Errorf("wait for the fork server: %w", err)
	case m.kind != 'A' || m.from != server:
		return 0, m.failure()
	}
	return int(m.words[0]), nil
}

// mapIDs writes the id maps of a process's user namespace.
func mapIDs(pid int, m *namespace.Mapping) error {
	for name, maps := range map[string][]syscall.SysProcIDMap{"uid_map": m.UIDs, "gid_map": m.GIDs} {
		var text strings.Builder
		for _, each := range maps {
			fmt.Fprintf(&text, "%d %d %d\n", each.ContainerID, each.HostID, each.Size)
		}
		if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/"+name, []byte(text.String()), 0); err != nil {
			return err
		}
	}
	return nil
}
