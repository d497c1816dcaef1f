package registry

import (
	"net"
	"net/url"
	"path"
	"strings"
)

// origin is the scheme, host and port of a request. Secrets belong to an origin, as in a browser:
// another port of the same host is another program.
type origin struct{ scheme, host, port string }

// originOf returns the origin of a URL. The port is always set.
func originOf(u *url.URL) origin {
	o := origin{strings.ToLower(u.Scheme), strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), u.Port()}
	if o.port == "" {
		switch o.scheme {
		case "http":
			o.port = "80"
		case "https":
			o.port = "443"
		}
	}
	return o
}

// String returns the host, with the port unless it is the scheme's default.
func (o origin) String() string {
	host := o.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if o.scheme == "https" && o.port == "443" || o.scheme == "http" && o.port == "80" || o.port == "" {
		return host
	}
	return net.JoinHostPort(o.host, o.port)
}

// upgrade reports whether to is the same host with TLS, both at default ports: the only change of
// origin that loses nothing.
func (o origin) upgrade(to origin) bool {
	return o.scheme == "http" && o.port == "80" && to == origin{"https", o.host, "443"}
}

// loopback reports whether the origin is on this machine, where no network is in between.
func (o origin) loopback() bool { return isLoopback(o.host) }

// isLoopback reports whether a host name without a port is on this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// addressHost returns the host in a registry address under which credentials are stored: a host or
// URL, in any case, with or without scheme, port and path. A default port is removed. The names of
// Docker's registry are unified.
func addressHost(address string) (string, bool) {
	full := strings.TrimSpace(address)
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Hostname() == "" {
		return "", false
	}
	return canonicalHost(originOf(u).String()), true
}

// canonicalHost unifies the names of Docker's registry.
func canonicalHost(host string) string {
	host = strings.ToLower(host)
	switch strings.TrimSuffix(host, ":443") {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}

// sameHost reports whether pattern, a canonical address, matches host. Parts of the name may be
// patterns, as with the kubelet: "*.azurecr.io".
func sameHost(pattern, host string) bool {
	host = canonicalHost(host)
	if pattern == host || pattern == strings.TrimSuffix(host, ":443") {
		return true
	}
	want, has := strings.Split(pattern, "."), strings.Split(host, ".")
	if !strings.Contains(pattern, "*") || len(want) != len(has) {
		return false
	}
	for i := range want {
		if fits, err := path.Match(want[i], has[i]); err != nil || !fits {
			return false
		}
	}
	return true
}
