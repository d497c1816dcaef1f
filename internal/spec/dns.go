package spec

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of a pod's DNS configuration: those of Kubernetes, and a generous one for the options,
// which Kubernetes does not bound. The C library's resolver uses three servers and ignores the
// rest.
const (
	maxSearches  = 32
	maxSearchLen = 2048
	maxServers   = 16
	maxOptions   = 64
)

// checkDNS rejects text that would break the lines of a resolv.conf.
func checkDNS(cfg *runtime.DNSConfig) error {
	const f = "dns_config."
	if n := len(cfg.GetServers()); n > maxServers {
		return invalid(f+"servers", "%d are more than %d", n, maxServers)
	}
	if n := len(cfg.GetSearches()); n > maxSearches {
		return invalid(f+"searches", "%d are more than %d", n, maxSearches)
	}
	if n := len(cfg.GetOptions()); n > maxOptions {
		return invalid(f+"options", "%d are more than %d", n, maxOptions)
	}
	for _, s := range cfg.GetServers() {
		if !word(s) {
			return invalid(f+"servers", "%q is not an IP address", s)
		}
	}
	for _, s := range cfg.GetSearches() {
		if !word(s) {
			return invalid(f+"searches", "%q is not a domain", s)
		}
	}
	if length := len(strings.Join(cfg.GetSearches(), " ")); length > maxSearchLen { // as Kubernetes counts
		return invalid(f+"searches", "%d bytes are more than %d", length, maxSearchLen)
	}
	for _, o := range cfg.GetOptions() {
		if !word(o) || len(o) > 255 {
			return invalid(f+"options", "%q is not an option of resolv.conf(5)", o)
		}
	}
	return nil
}

// noteDNS notes servers that a resolver may ignore. They are written unchanged, as containerd and
// CRI-O do: a kubelet passes on the contents of the node's own file.
func (t *translation) noteDNS(cfg *runtime.DNSConfig) {
	for _, s := range cfg.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			t.note("dns_config.servers: %q is not an IP address", s)
		}
	}
}

// word reports whether s is a single word of printable ASCII that does not start a comment.
func word(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return s != "" && s[0] != '#' && s[0] != ';'
}

// ResolvConf returns the resolv.conf of a pod: the contents of cfg, or the node's own file if cfg
// is nil or empty.
func ResolvConf(cfg *runtime.DNSConfig, host []byte) ([]byte, error) {
	if err := checkDNS(cfg); err != nil {
		return nil, err
	}
	if len(cfg.GetServers()) == 0 && len(cfg.GetSearches()) == 0 && len(cfg.GetOptions()) == 0 {
		return bytes.Clone(host), nil
	}
	var b bytes.Buffer
	if s := cfg.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range cfg.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := cfg.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return b.Bytes(), nil
}
