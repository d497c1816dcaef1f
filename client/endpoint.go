package client

import (
	"fmt"
	"net/url"
	"path"
	"strings"
)

// maxSocketPath is the longest path, in bytes, that fits sun_path with a terminating NUL: unix(7).
const maxSocketPath = 107

// SocketPath returns the path of the unix socket in an endpoint: "unix:///path", "unix:/path" or an
// absolute path (deprecated in kubelets).
//
// It refuses other schemes, relative paths, and paths longer than a socket address allows, 107
// bytes. It does not check that the socket exists.
func SocketPath(endpoint string) (string, error) {
	if endpoint == "" {
		return "", fmt.Errorf("no endpoint given: expected unix:///path/of/a.sock")
	}
	p := endpoint
	if !strings.HasPrefix(endpoint, "/") {
		u, err := url.Parse(endpoint)
		switch {
		case err != nil:
			return "", fmt.Errorf("endpoint %q: expected unix:///path/of/a.sock: %w", endpoint, err)
		case u.Scheme == "tcp":
			return "", fmt.Errorf("endpoint %q: TCP is not supported: the CRI has no authentication and gives root on the node, so it is spoken over a unix socket only", endpoint)
		case u.Scheme != "unix":
			return "", fmt.Errorf("endpoint %q: expected unix:///path/of/a.sock", endpoint)
		case u.Host != "":
			return "", fmt.Errorf("endpoint %q: the path must be absolute: expected three slashes, unix:///%s%s", endpoint,
				u.Host, u.Path)
		case u.RawQuery != "" || u.Fragment != "":
			return "", fmt.Errorf("endpoint %q: only a path may follow unix://", endpoint)
		}
		p = u.Path
		if !path.IsAbs(p) {
			return "", fmt.Errorf("endpoint %q: the path must be absolute: expected unix:///path/of/a.sock", endpoint)
		}
	}
	if p = path.Clean(p); p == "/" {
		return "", fmt.Errorf("endpoint %q: the path of a socket is missing", endpoint)
	}
	if len(p) > maxSocketPath {
		return "", fmt.Errorf("endpoint %q: the path has %d bytes, but a unix socket's can have only %d: use a shorter one",
			endpoint, len(p), maxSocketPath)
	}
	return p, nil
}
