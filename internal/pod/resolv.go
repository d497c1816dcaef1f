package pod

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
)

// Where systemd-resolved lists the servers that its stub at 127.0.0.53 asks.
const resolvedUpstream = "/run/systemd/resolve/resolv.conf"

// nodeResolvConf reads the node's resolv.conf, for a pod on the node's network or on one of its own. Absent files are empty.
func nodeResolvConf(ownNetwork bool) ([]byte, error) {
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the node's /etc/resolv.conf: %w", err)
	}
	if !ownNetwork {
		return host, nil
	}
	upstream, err := os.ReadFile(resolvedUpstream)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what systemd-resolved asks: %w", err)
	}
	body, ok := reachable(host, upstream)
	if !ok {
		slog.Warn("the node's /etc/resolv.conf has no name server that pods reach: those on the node's loopback and on its links are not; give pods a DNS configuration")
	}
	return body, nil
}

// reachable returns what of host serves a pod on a network of its own: upstream, when host names no server but such that a pod
// does not reach, or one on the loopback, and upstream has others; else host without such servers, unless it has no others.
// Then it stays as it is, and ok is false.
func reachable(host, upstream []byte) (body []byte, ok bool) {
	rest, here := withoutLocal(host)
	if here.loopback == 0 && here.others > 0 {
		return rest, true
	}
	if up, there := withoutLocal(upstream); there.others > 0 {
		return up, true
	}
	if here.others > 0 {
		return rest, true
	}
	return host, false
}

// servers counts the name servers of a resolv.conf.
type servers struct{ loopback, onLink, others int }

// withoutLocal leaves out the name servers that a pod does not reach: a loopback address is the pod's own, and a link-local
// one is on a link of the node, whose name after the % is another link's in the pod. Those of IPv4 the node routes.
func withoutLocal(file []byte) (rest []byte, n servers) {
	for line := range bytes.Lines(file) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == "nameserver" {
			a, err := netip.ParseAddr(string(f[1]))
			a = a.Unmap()
			switch {
			case err == nil && a.IsLoopback():
				n.loopback++
				continue
			case err == nil && a.Is6() && a.IsLinkLocalUnicast():
				n.onLink++
				continue
			}
			n.others++
		}
		rest = append(rest, line...)
	}
	return rest, n
}
