package probe

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var networkRows = []row{
	{"network", "bridge", func(m *machine) Result {
		return m.fromInside("bridge", "a bridge with a veth pair can be made", m.unlessCNI())
	},
		"the built-in network cannot be used", "modprobe bridge veth, or configure CNI"},
	{"network", "nftables", func(m *machine) Result {
		return m.fromInside("nftables", "a rule that masquerades can be made", m.unlessCNI())
	},
		"pods of the built-in network reach nothing outside, host ports do not work",
		"modprobe nf_tables nft_chain_nat nft_masq"},
	{"network", "ip_forward", (*machine).ipForward,
		"kubeadm's preflight check fails; kurid itself switches it on for the built-in network",
		"sysctl -w net.ipv4.ip_forward=1, and in /etc/sysctl.d"},
	{"network", "br_netfilter", (*machine).bridgeFilter,
		"with CNI's bridge plugin, services are not reached by pods of the same node (kube-proxy with iptables or " +
			"IPVS)", "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1"},
	{"network", "IPv6", (*machine).ipv6, "pods have IPv4 addresses alone",
		"sysctl -w net.ipv6.conf.all.disable_ipv6=0"},
	{"network", "SCTP", (*machine).sctp, "pods cannot use SCTP", "modprobe sctp"},
	{"network", "CNI", (*machine).cni, "pods have no network",
		"install the network add-on, or its plugins in the directory"},
	{"network", "connection tracking", (*machine).conntrack, "new connections are dropped when the table is full",
		"sysctl -w net.netfilter.nf_conntrack_max=262144"},
}

// unlessCNI returns the result for a missing feature of the built-in network.
func (m *machine) unlessCNI() func(string, ...any) Result {
	if m.NeedCNI {
		return limited
	}
	if files, _ := m.cniFiles(); len(files) > 0 {
		return limited
	}
	return missing
}

func (m *machine) ipForward() Result {
	if m.read("/proc/sys/net/ipv4/ip_forward") == "1" {
		return ok("on")
	}
	return limited("off")
}

func (m *machine) bridgeFilter() Result {
	files, _ := m.cniFiles()
	on := m.read("/proc/sys/net/bridge/bridge-nf-call-iptables") == "1"
	switch {
	case on:
		return ok("on")
	case len(files) == 0:
		return ok("off, and the built-in network does not need it")
	}
	return limited("off")
}

func (m *machine) ipv6() Result {
	if !m.exists("/proc/net/if_inet6") || m.read("/proc/sys/net/ipv6/conf/all/disable_ipv6") == "1" {
		return limited("off")
	}
	return ok("on")
}

func (m *machine) sctp() Result {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return limited("socket: %v", err)
	}
	unix.Close(fd)
	return ok("works")
}

// cniFiles returns the CNI configurations, in the order of precedence.
func (m *machine) cniFiles() ([]string, error) {
	entries, err := os.ReadDir(m.path(m.CNIConfig))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			out = append(out, filepath.Join(m.path(m.CNIConfig), e.Name()))
		}
	}
	return out, nil // sorted by ReadDir
}

// cni reads the first configuration, which is the effective one, and looks for its plugins.
func (m *machine) cni() Result {
	files, err := m.cniFiles()
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return m.tried(err, "", limited)
	case len(files) == 0 && m.NeedCNI:
		return missing("no configuration in %s, and network.use is cni", m.CNIConfig)
	case len(files) == 0:
		return ok("not configured in %s, the built-in network is used", m.CNIConfig)
	}
	body, err := os.ReadFile(files[0])
	if err != nil {
		return m.tried(err, "", missing)
	}
	var list struct {
		Name, Type string
		Plugins    []struct{ Type string }
	}
	if err := json.Unmarshal(body, &list); err != nil {
		r := missing("%s: %v", files[0], err)
		r.Mend = "rewrite the file: it is not valid JSON"
		return r
	}
	types := []string{}
	for _, p := range list.Plugins {
		types = append(types, p.Type)
	}
	if list.Type != "" {
		types = append(types, list.Type)
	}
	var lost []string
	for _, t := range types {
		if !m.plugin(t) {
			lost = append(lost, t)
		}
	}
	switch {
	case len(types) == 0:
		return missing("%s has no plugins", files[0])
	case len(lost) > 0:
		return missing("%s needs %s, which is not in %s", files[0], strings.Join(lost, ", "),
			strings.Join(m.CNIPlugins, ", "))
	}
	return ok("%s (%s), with %s", files[0], list.Name, strings.Join(types, ", "))
}

func (m *machine) plugin(name string) bool {
	return slices.ContainsFunc(m.CNIPlugins, func(dir string) bool {
		info, err := os.Stat(filepath.Join(m.path(dir), name))
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	})
}

func (m *machine) conntrack() Result {
	most, known := m.number("/proc/sys/net/netfilter/nf_conntrack_max")
	if !known {
		return ok("not in use")
	}
	if used, _ := m.number("/proc/sys/net/netfilter/nf_conntrack_count"); most > 0 && used > most*8/10 {
		return limited("%d of %d entries are in use", used, most)
	}
	return ok("%d entries", most)
}
