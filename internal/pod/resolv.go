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
		slog.Warn("the node's /etc/resolv.conf has no name server but on the node's loopback, where pods do not reach it; give pods a DNS configuration")
	}
	return body, nil
}

// reachable returns what of host serves a pod on a network of its own, where a loopback address is the pod's: upstream, when
// host names a server on the loopback and upstream has others; else host without such servers, unless it has no others. Then
// it stays as it is, and ok is false.
func reachable(host, upstream []byte) (body []byte, ok bool) {
	rest, stubs, others := withoutLoopback(host)
	if stubs == 0 {
		return host, true
	}
	if up, _, n := withoutLoopback(upstream); n > 0 {
		return up, true
	}
	if others > 0 {
		return rest, true
	}
	return host, false
}

// withoutLoopback leaves out the name servers on the loopback, and counts them and the others.
func withoutLoopback(file []byte) (rest []byte, stubs, others int) {
	for line := range bytes.Lines(file) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == "nameserver" {
			if a, err := netip.ParseAddr(string(f[1])); err == nil && a.Unmap().IsLoopback() {
				stubs++
				continue
			}
			others++
		}
		rest = append(rest, line...)
	}
	return rest, stubs, others
}
