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

// Config says which namespaces a pod has of its own and how they begin.
type Config struct {
	Network   bool
	NetnsPath string // where the network namespace is pinned; with Network only
	IPC       bool
	UTS       bool
	Hostname  string            // of the new UTS namespace; "" leaves the host's
	User      *Mapping          // of a user namespace, which then owns the others; nil for the host's
	Sysctls   map[string]string // kernel parameters by name; see [CheckSysctl]

	// SysctlDefaults are parameters that are set unless Sysctls has them, as far as the kernel lets us.
	SysctlDefaults map[string]string
}

// Set holds the namespaces of a pod. A field is nil or empty for a namespace that the pod shares with the host.
type Set struct {
	NetnsPath string
	IPC, UTS  *os.File
	User      *os.File
}

// Make makes the namespaces of cfg: the loopback interface is up, hostname and sysctls are set. When anything fails
// nothing stays.
//
// Inside, when not nil, may start a process in them. It runs last, on the thread that is in them. With a user namespace,
// which no thread of a Go program can make or enter, it runs first and gets attributes with which the process that it
// starts makes all of them; it returns that process's id, or 0 for none.
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

func (s *Set) make(cfg Config, asked, defaults sysctl.Values, inside func(*syscall.SysProcAttr) (int, error)) (err error) {
	flags := 0
	for flag, want := range map[int]bool{unix.CLONE_NEWNET: cfg.Network, unix.CLONE_NEWIPC: cfg.IPC, unix.CLONE_NEWUTS: cfg.UTS} {
		if want {
			flags |= flag
		}
	}
	if cfg.User != nil {
		if err := s.enterNew(flags, cfg.User, inside); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
	} else if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
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

// Close gives the namespaces up. Processes that are in them keep them. Closing twice is fine.
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

// pin binds a namespace file at path. The calling thread is in the host's mount namespace, so all see it.
func pin(ns, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// What a killed keeper left of the same pod is replaced.
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

// Unpin gives up the network namespace that is pinned at path, and removes the file. One that is not there is a success.
func Unpin(path string) error {
	// EINVAL: not a mount point.
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
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
