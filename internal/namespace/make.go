package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/sysctl"
)

// Config selects the namespaces that a pod does not share with the host, and their initial settings.
type Config struct {
	Network   bool
	NetnsPath string // where the network namespace is pinned; only with Network
	IPC       bool
	UTS       bool
	Hostname  string            // of the new UTS namespace; "" keeps the host's
	User      *Mapping          // of a user namespace, which then owns the others; nil for the host's
	Sysctls   map[string]string // kernel parameters by name; see [CheckSysctl]

	// SysctlDefaults are set unless Sysctls has them. Those that the kernel does not accept are only logged.
	SysctlDefaults map[string]string

	// CreateUser creates the user namespace and, owned by it, the namespaces in flags (CLONE_NEWNET and
	// the like). It returns the pid of a process in them, which end ends. nil means [StartCreator].
	CreateUser func(flags int, m *Mapping) (pid int, end func(), err error)
}

// Set holds the namespaces of a pod. The field of a namespace that the pod shares with the host is nil or "".
type Set struct {
	NetnsPath string
	IPC, UTS  *os.File
	User      *os.File
}

// Make creates the namespaces of cfg, brings the loopback interface up, and sets hostname and
// sysctls. On an error nothing is left behind.
//
// inside, unless nil, may start a process in the namespaces. It runs last, on the thread that is in
// them. With a user namespace, which no thread of a Go program can create or enter, it runs first:
// it gets the attributes with which its process creates all namespaces, and returns the pid of that
// process, or 0 for none.
func Make(cfg Config, inside func(*syscall.SysProcAttr) (pid int, err error)) (*Set, error) {
	asked, err := checkSysctls(cfg.Sysctls, cfg)
	if err != nil {
		return nil, err
	}
	defaults, err := checkSysctls(cfg.SysctlDefaults, cfg)
	if err != nil {
		return nil, err
	}
	set := &Set{}
	if err := OnThread(func() error { return set.make(cfg, asked, defaults, inside) }); err != nil {
		set.Close()
		return nil, err
	}
	return set, nil
}

func (s *Set) make(cfg Config, asked, defaults sysctl.Values,
	inside func(*syscall.SysProcAttr) (int, error)) (err error) {
	flags := 0
	for flag, want := range map[int]bool{unix.CLONE_NEWNET: cfg.Network, unix.CLONE_NEWIPC: cfg.IPC,
		unix.CLONE_NEWUTS: cfg.UTS} {
		if want {
			flags |= flag
		}
	}
	if cfg.User != nil {
		if err := s.enterNew(flags, cfg, inside); err != nil {
			return fmt.Errorf("create namespaces: %w", err)
		}
	} else if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	if cfg.UTS && cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", cfg.Hostname, err)
		}
	}
	if cfg.Network {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring loopback up: %w", err)
		}
	}
	if err := writeSysctls(asked, defaults, cfg.User); err != nil {
		return err
	}
	if cfg.IPC {
		if s.IPC, err = os.Open("/proc/thread-self/ns/ipc"); err != nil {
			return err
		}
	}
	if cfg.UTS {
		if s.UTS, err = os.Open("/proc/thread-self/ns/uts"); err != nil {
			return err
		}
	}
	if cfg.Network {
		if err := pin("/proc/thread-self/ns/net", cfg.NetnsPath); err != nil {
			return fmt.Errorf("pin the network namespace at %s: %w", cfg.NetnsPath, err)
		}
		s.NetnsPath = cfg.NetnsPath
	}
	if inside != nil && cfg.User == nil {
		_, err = inside(nil)
	}
	return err
}

// Close releases the namespaces; processes in them keep them alive. It may be called twice.
func (s *Set) Close() error {
	var errs []error
	if s.NetnsPath != "" {
		errs = append(errs, Unpin(s.NetnsPath))
		s.NetnsPath = ""
	}
	for _, f := range []**os.File{&s.IPC, &s.UTS, &s.User} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}

// pin bind-mounts a namespace file at path. The calling thread is in the host's mount namespace, so
// the mount is visible there.
func pin(ns, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Replace what a killed keeper has left for the same pod.
	if err := Unpin(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}

// Pin is where the network namespace of a pod is pinned: `ip netns` and CNI plugins look there.
func Pin(pod string) string { return "/run/netns/kuri-" + pod }

// Unpin gives up the network namespace that is pinned at path, and removes the file. One that is
// not there is a success.
func Unpin(path string) error {
	// EINVAL: not a mount point.
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL &&
		err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// loopbackUp brings lo up in the calling thread's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
