package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/sysctl"
)

// CheckSysctl returns the key of a kernel parameter. The error is of kind Invalid unless the
// parameter belongs to a namespace that cfg creates.
func CheckSysctl(name string, cfg Config) (key string, err error) {
	key, ns, err := sysctl.Parse(name)
	if err != nil {
		return "", err
	}
	own := map[sysctl.Namespace]bool{sysctl.Network: cfg.Network, sysctl.IPC: cfg.IPC, sysctl.UTS: cfg.UTS}[ns]
	if !own {
		return "", fault.New(fault.Invalid, "kernel parameter %s would change the host: the pod uses the host's %s namespace",
			name, ns)
	}
	return key, nil
}

// checkSysctls checks all parameters and returns their values by key.
func checkSysctls(names map[string]string, cfg Config) (sysctl.Values, error) {
	values := make(sysctl.Values, len(names))
	for name, value := range names {
		key, err := CheckSysctl(name, cfg)
		if err != nil {
			return nil, err
		}
		values[key] = value
	}
	return values, nil
}

// writeSysctls sets kernel parameters from a thread inside the namespaces. It skips network
// parameters that do not exist yet: they may come with an interface, and the caller of [Make] sets
// them later. Defaults that the kernel refuses are only logged.
func writeSysctls(asked, defaults sysctl.Values, user *Mapping) error {
	for _, key := range defaults.Keys() {
		if _, given := asked[key]; given {
			continue
		}
		if _, err := (sysctl.Values{key: defaults[key]}).Write(); err != nil {
			slog.Warn("a default kernel parameter of a pod cannot be set", "err", err)
		}
	}
	if name, ok := asked.DomainName(); ok {
		if err := unix.Setdomainname([]byte(name)); err != nil {
			return fault.New(fault.Invalid, "set kernel parameter kernel.domainname to %q: %w", name, err)
		}
	}
	if _, err := asked.Of(sysctl.Network).Write(); err != nil {
		return err
	}
	return writeIPC(asked.Of(sysctl.IPC), user)
}

// writeIPC sets the parameters of the IPC namespace. They belong to root of the owning user
// namespace; since Linux 6.0 no one else may change them, whatever their capabilities.
func writeIPC(values sysctl.Values, user *Mapping) error {
	missing, err := values.Write()
	if user != nil && errors.Is(err, fs.ErrPermission) {
		uid, gid := user.Root()
		err = asUser(uid, gid, func() error {
			var err error
			missing, err = values.Write()
			return err
		})
	}
	return errors.Join(err, sysctl.Missing(missing))
}

// asUser runs fn with the effective ids uid and gid, only on the calling thread, which must be locked to its goroutine.
func asUser(uid, gid int, fn func() error) error {
	// Changing ids makes the process undumpable, and then helpers without CAP_SYS_PTRACE cannot read its /proc.
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("read the dumpable attribute of this process: %w", err)
	}
	defer unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0)
	if err := setEffective(unix.SYS_SETRESGID, gid); err != nil {
		return fmt.Errorf("become group %d: %w", gid, err)
	}
	defer setEffective(unix.SYS_SETRESGID, 0)
	if err := setEffective(unix.SYS_SETRESUID, uid); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	defer setEffective(unix.SYS_SETRESUID, 0)
	return fn()
}

// setEffective makes a raw system call, because the functions of package syscall change the ids of all threads.
func setEffective(call uintptr, id int) error {
	const unchanged = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(call, unchanged, uintptr(id), unchanged); errno != 0 {
		return errno
	}
	return nil
}
