package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	sysctls "github.com/kuri-cri/kuri/internal/sysctl"
)

const sysctlNet = "/proc/sys/net"

// sysctl reads net/<name> of the calling thread's network namespace; "" when the kernel has it not.
func sysctl(name string) string {
	body, err := os.ReadFile(filepath.Join(sysctlNet, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(body))
}

// setSysctl writes net/<name>, unless it has that value already: /proc/sys may be read-only and right.
func setSysctl(name, value string) error {
	if sysctl(name) == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join(sysctlNet, name), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl net/%s to %s, which the built-in network needs: %w", name, value, err)
	}
	return nil
}

// SetSysctls sets kernel parameters in the network namespace at path. Error kinds: Invalid (a parameter that does not exist
// there, or a value that the kernel does not take).
func SetSysctls(path string, values sysctls.Values) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return inNetns(ns, func() error {
		missing, err := values.Write()
		return errors.Join(err, sysctls.Missing(missing))
	})
}

// hasIPv6 tells whether new links of the calling thread's network namespace get IPv6.
func hasIPv6() bool {
	return sysctl("ipv6/conf/all/disable_ipv6") == "0" && sysctl("ipv6/conf/default/disable_ipv6") == "0"
}

// quietIPv6 makes a link of ours neither wait for duplicates of its addresses, which nobody else gives out, nor take
// routes from router advertisements, which on the bridge only another pod can send.
func quietIPv6(link string) error {
	for _, key := range []string{"accept_dad", "accept_ra"} {
		if err := setSysctl("ipv6/conf/"+link+"/"+key, "0"); err != nil {
			return err
		}
	}
	return nil
}

// forward lets the host forward packets of the families in use.
func forward(ipv4, ipv6 bool) error {
	if ipv4 {
		if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !ipv6 || sysctl("ipv6/conf/all/forwarding") == "1" {
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
		if sysctl(name) != "1" {
			continue
		}
		if err := setSysctl(name, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) { // the link may just have gone
			return err
		}
	}
	return setSysctl("ipv6/conf/all/forwarding", "1")
}
