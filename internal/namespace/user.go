package namespace

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mapping says which ids of the host the ids of a user namespace are.
type Mapping struct {
	UIDs, GIDs []syscall.SysProcIDMap
}

// Root returns the host's ids of the namespace's root: 0 without a namespace, or when it has none.
func (m *Mapping) Root() (uid, gid int) {
	if m == nil {
		return 0, 0
	}
	return hostID(m.UIDs), hostID(m.GIDs)
}

func hostID(maps []syscall.SysProcIDMap) int {
	for _, m := range maps {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return 0
}

// attributes are those of a process that makes a user namespace, and with it the namespaces of flags, which the user
// namespace owns then.
func (m *Mapping) attributes(flags int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:                 uintptr(flags) | syscall.CLONE_NEWUSER,
		UidMappings:                m.UIDs,
		GidMappings:                m.GIDs,
		GidMappingsEnableSetgroups: true,
	}
}

// enterNew makes a user namespace and those of flags, holds the user namespace in s, and moves the calling thread into
// the others. They are made by the process that inside starts, or else by one that never runs.
func (s *Set) enterNew(flags int, m *Mapping, inside func(*syscall.SysProcAttr) (int, error)) (err error) {
	pid := 0
	if inside != nil {
		if pid, err = inside(m.attributes(flags)); err != nil {
			return err
		}
	}
	if pid == 0 {
		attr := m.attributes(flags)
		attr.Ptrace, attr.Pdeathsig = true, syscall.SIGKILL // it stops before its first instruction
		passing := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"kuri-user"}, Dir: "/", SysProcAttr: attr}
		if err := passing.Start(); err != nil {
			return fmt.Errorf("make a user namespace: %w", err)
		}
		defer func() {
			passing.Process.Kill()
			passing.Wait()
		}()
		pid = passing.Process.Pid
	}
	dir := fmt.Sprintf("/proc/%d/ns/", pid)
	if s.User, err = os.Open(dir + "user"); err != nil {
		return err
	}
	for _, ns := range []struct {
		flag int
		name string
	}{{unix.CLONE_NEWNET, "net"}, {unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWUTS, "uts"}} {
		if flags&ns.flag == 0 {
			continue
		}
		f, err := os.Open(dir + ns.name)
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), ns.flag)
		f.Close()
		if err != nil {
			return fmt.Errorf("enter the new %s namespace: %w", ns.name, err)
		}
	}
	return nil
}
