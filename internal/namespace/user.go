package namespace

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/seal"
)

// Mapping maps the ids of a user namespace to ids of the host.
type Mapping struct {
	UIDs, GIDs []syscall.SysProcIDMap
}

// Root returns the host's ids for root in the namespace. It returns 0 for a nil Mapping, or if root is not mapped.
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

// attributes returns the attributes of a process that creates a user namespace and, owned by it,
// the namespaces in flags.
func (m *Mapping) attributes(flags int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:                 uintptr(flags) | syscall.CLONE_NEWUSER,
		UidMappings:                m.UIDs,
		GidMappings:                m.GIDs,
		GidMappingsEnableSetgroups: true,
	}
}

// StartCreator starts a program in a new user namespace and the namespaces in flags. It never runs:
// it stops before its first instruction. end ends it. See [Config].
func StartCreator(flags int, m *Mapping) (pid int, end func(), err error) {
	attr := m.attributes(flags)
	attr.Ptrace, attr.Pdeathsig = true, syscall.SIGKILL
	creator := &exec.Cmd{Args: []string{"kuri-user"}, Dir: "/", SysProcAttr: attr}
	if err := seal.Program(creator); err != nil {
		return 0, nil, err
	}
	if err := creator.Start(); err != nil {
		return 0, nil, err
	}
	return creator.Process.Pid, func() {
		creator.Process.Kill()
		_ = creator.Wait()
	}, nil
}

// enterNew creates a user namespace and the namespaces in flags, keeps the user namespace in s, and
// moves the calling thread into the others. The process that inside starts creates them, or else one
// that cfg.CreateUser creates.
func (s *Set) enterNew(flags int, cfg Config, inside func(*syscall.SysProcAttr) (int, error)) (err error) {
	pid := 0
	if inside != nil {
		if pid, err = inside(cfg.User.attributes(flags)); err != nil {
			return err
		}
	}
	if pid == 0 {
		create := cfg.CreateUser
		if create == nil {
			create = StartCreator
		}
		creator, end, err := create(flags, cfg.User)
		if err != nil {
			return fmt.Errorf("create a user namespace: %w", err)
		}
		defer end()
		pid = creator
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
