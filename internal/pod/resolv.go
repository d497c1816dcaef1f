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

// resolvedUpstream lists the servers to which systemd-resolved's stub at 127.0.0.53 forwards.
const resolvedUpstream = "/run/systemd/resolve/resolv.conf"

// nodeResolvConf returns the node's resolv.conf, for a pod with its own network or for one on the node's. A missing
// file counts as empty.
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
		slog.Warn("the node's /etc/resolv.conf has no name server that pods can reach: loopback and link-local addresses are left out; give the pods a DNS configuration")
	}
	return body, nil
}

// reachable returns the resolv.conf of a pod with its own network. It returns upstream if host has a server on the
// loopback or none that the pod can reach, and upstream has one that it can reach. Otherwise it returns host without
// the servers that the pod cannot reach. If that leaves none, it returns host unchanged, and ok is false.
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

// withoutLocal removes the name servers that a pod cannot reach. A loopback address is the pod's own. A link-local IPv6
// address is on a link of the node, and its zone (after the %) names another link in the pod. Link-local IPv4 addresses
// stay: the node routes them.
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
