package run

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// parsePublish parses docker's [[IP:]PORT:]PORT[/PROTOCOL], where each PORT may be a range.
func parsePublish(s string) ([]corev1.ContainerPort, error) {
	wrong := fmt.Errorf("--publish %q: expected [[IP:]PORT:]PORT[/udp], such as 8080:80", s)
	rest, protocol, _ := strings.Cut(s, "/")
	protocol = strings.ToUpper(cmp.Or(protocol, "tcp"))
	if !slices.Contains([]string{"TCP", "UDP", "SCTP"}, protocol) {
		return nil, wrong
	}
	i := strings.LastIndexByte(rest, ':')
	inside, host, ip := rest[i+1:], "", ""
	if i >= 0 {
		host = rest[:i]
		if j := strings.LastIndexByte(host, ':'); j >= 0 {
			ip, host = strings.Trim(host[:j], "[]"), host[j+1:]
			if _, err := netip.ParseAddr(ip); err != nil {
				return nil, wrong
			}
		}
	}
	first, last, ok := portRange(inside)
	if !ok {
		return nil, wrong
	}
	hostFirst, hostLast, hostOK := portRange(host)
	if host != "" && (!hostOK || hostLast-hostFirst != last-first) {
		return nil, wrong
	}
	var out []corev1.ContainerPort
	for n := first; n <= last; n++ {
		at := hostFirst + n - first
		if host == "" {
			var err error
			if at, err = freePort(ip); err != nil {
				return nil, fmt.Errorf("--publish %q: find a free port of the node: %w", s, err)
			}
		}
		out = append(out, corev1.ContainerPort{ContainerPort: int32(n), HostPort: int32(at), HostIP: ip,
			Protocol: corev1.Protocol(protocol)})
	}
	return out, nil
}

func portRange(s string) (first, last int, ok bool) {
	a, z, several := strings.Cut(s, "-")
	if !several {
		z = a
	}
	first, err := strconv.Atoi(a)
	if err != nil {
		return 0, 0, false
	}
	last, err = strconv.Atoi(z)
	return first, last, err == nil && first > 0 && first <= last && last < 1<<16
}

// freePort returns a port of the node without a listener.
func freePort(ip string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
