package spec

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of a pod's DNS configuration: those of Kubernetes, and for the options, which it does not bound, a generous one.
// The resolver of the C library uses three servers and ignores the rest.
const (
	maxSearches  = 32
	maxSearchLen = 2048
	maxServers   = 16
	maxOptions   = 64
)

// checkDNS keeps whatever would break the lines of a resolv.conf out of it.
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

// noteDNS notes servers that are written as they came and that a resolver may pass over: the kubelet hands on what the node's
// own file has, and containerd and CRI-O write it.
func (t *translation) noteDNS(cfg *runtime.DNSConfig) {
	for _, s := range cfg.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			t.note("dns_config.servers: %q is not an IP address", s)
		}
	}
}

// word tells whether s is a single word of printable ASCII that starts no comment.
func word(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return s != "" && s[0] != '#' && s[0] != ';'
}

// ResolvConf returns the resolv.conf of a pod: what cfg says, or the node's own file when cfg is nil or says nothing.
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
