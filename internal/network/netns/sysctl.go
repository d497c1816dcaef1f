package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	sysctls "github.com/kuri-cri/kuri/internal/sysctl"
)

const sysctlNet = "/proc/sys/net"

// Sysctl reads net/<name> of the calling thread's network namespace; "" if the kernel does not have it. The value
// has at most 255 bytes. (Direct system calls: os.ReadFile needs nine more to find out that the file cannot be polled.)
func Sysctl(name string) string {
	fd, err := unix.Open(filepath.Join(sysctlNet, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var value [256]byte
	n, err := unix.Read(fd, value[:])
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(value[:n]))
}

// SetSysctl writes net/<name>, unless it has that value already: a read-only /proc/sys is no error then.
func SetSysctl(name, value string) error {
	if Sysctl(name) == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join(sysctlNet, name), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl net/%s to %s, which the built-in network needs: %w", name, value, err)
	}
	return nil
}

// SetSysctls sets kernel parameters in the network namespace at path. Error kinds: Invalid (a
// parameter that does not exist there, or a value that the kernel refuses).
func SetSysctls(path string, values sysctls.Values) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return Do(ns, func() error {
		missing, err := values.Write()
		return errors.Join(err, sysctls.Missing(missing))
	})
}

// HasIPv6 reports whether new links of the calling thread's network namespace get IPv6.
func HasIPv6() bool {
	return Sysctl("ipv6/conf/all/disable_ipv6") == "0" && Sysctl("ipv6/conf/default/disable_ipv6") == "0"
}

// QuietIPv6 disables duplicate address detection on a link of ours, whose addresses are unique, and
// router advertisements, which on the bridge only another pod can send.
func QuietIPv6(link string) error {
	for _, key := range []string{"accept_dad", "accept_ra"} {
		if err := SetSysctl("ipv6/conf/"+link+"/"+key, "0"); err != nil {
			return err
		}
	}
	return nil
}

// EnableForwarding enables forwarding on the host for the families in use.
func EnableForwarding(ipv4, ipv6 bool) error {
	if ipv4 {
		if err := SetSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !ipv6 || Sysctl("ipv6/conf/all/forwarding") == "1" {
		return nil
	}
	// A host that forwards ignores router advertisements, unless accept_ra is 2: without this step a node that has its
	// default route from one would lose it some minutes from now.
	conf := filepath.Join(sysctlNet, "ipv6/conf")
	links, err := os.ReadDir(conf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, l := range links {
		name := filepath.Join("ipv6/conf", l.Name(), "accept_ra")
		if Sysctl(name) != "1" {
			continue
		}
		if err := SetSysctl(name, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) { // the link may just have gone
			return err
		}
	}
	return SetSysctl("ipv6/conf/all/forwarding", "1")
}
