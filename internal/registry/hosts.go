package registry

import (
	"context"
	"net"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"

	"github.com/kuri-cri/kuri/internal/fault"
)

// connsPerHost is the maximum number of idle connections to one host during a pull, about the
// number of layers fetched at once.
const connsPerHost = 16

// source is a host that serves the repository according to hosts.toml.
type source struct {
	docker.RegistryHost
	mirror bool          // not the registry itself
	either *eitherScheme // nil: Scheme is known
}

// scheme returns "http" or "https".
func (h *source) scheme() string {
	if h.either != nil {
		return h.either.scheme()
	}
	return h.Scheme
}

// origins returns the host's origins: two if it is not known whether it uses TLS.
func (h *source) origins() []origin {
	schemes := []string{h.Scheme}
	if h.either != nil {
		schemes = []string{schemeTLS, schemePlain}
	}
	var all []origin
	for _, s := range schemes {
		if u, err := parseAddress(s + "://" + h.Host); err == nil {
			all = append(all, originOf(u))
		}
	}
	return all
}

// lookupHosts returns the hosts that serve the registry, mirrors first, each with its own HTTP
// client; the transports of these clients; and the rest of the configuration. The error is of kind
// Precondition if the node's configuration is wrong.
func lookupHosts(ctx context.Context, o Options, registry string) ([]*source, []*http.Transport, *hostsConfig, error) {
	file, err := readHostsFile(o.CertsDirs, registry)
	if err != nil {
		return nil, nil, nil, err
	}
	c := &clients{longest: o.longestStall(), of: make(map[*http.Client]*http.Transport)}
	found, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:      func(string) (string, error) { return file.dir, nil },
		UpdateClient: c.update,
	})(registry)
	if err != nil {
		return nil, nil, nil, fault.New(fault.Precondition, "configuration of registry %s in %s: %w",
			registry, file.dir, err)
	}
	if file.mirrors > 0 && len(found) < file.mirrors+1 { // a table in two parts counts twice
		return nil, nil, nil, fault.New(fault.Precondition,
			"configuration of registry %s: %s is not understood; each host needs a table of its own, [host.\"ADDRESS\"]",
			registry, file.path())
	}
	if len(found) == 0 {
		return nil, nil, nil, fault.New(fault.Precondition, "configuration of registry %s in %s leaves no host to ask",
			registry, file.dir)
	}
	hosts := make([]*source, len(found))
	for i, f := range found {
		f.Path = strings.TrimSuffix(path.Clean("/"+f.Path), "/") // "//v2" for an address with a slash at its end
		hosts[i] = &source{RegistryHost: f}
		c.prepare(hosts[i], registry, file)
	}
	own := hosts[len(hosts)-1] // hosts.toml may also have a table for the registry itself
	for _, h := range hosts {
		h.mirror = h.Host != own.Host
	}
	return hosts, c.all, file, nil
}

// clients configures the HTTP clients of the hosts.
type clients struct {
	longest time.Duration // hosts share transports; each host's own limit is applied per request
	of      map[*http.Client]*http.Transport
	all     []*http.Transport
}

// update is called by containerd's hosts.toml code for each client.
func (c *clients) update(client *http.Client) error {
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // see follow
	t, ok := client.Transport.(*http.Transport)
	if !ok {
		return nil
	}
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, connsPerHost
	t.ReadBufferSize = 64 << 10
	t.ResponseHeaderTimeout = c.longest
	t.OnProxyConnectResponse = proxyAnswer
	t.DisableCompression = true // the digest of a blob is that of its bytes on the wire
	if dial := t.DialContext; dial != nil {
		t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, c.longest)
			defer cancel()
			return dial(ctx, network, addr)
		}
	}
	c.of[client] = t
	c.all = append(c.all, t)
	return nil
}

// prepare replaces containerd's transport for hosts that may use either scheme. That transport
// recognises only few of the answers of a host without TLS, and also downgrades hosts that are
// redirected to.
func (c *clients) prepare(h *source, registry string, file *hostsConfig) {
	if _, plain := h.Client.Transport.(*http.Transport); plain {
		return
	}
	t := c.of[h.Client]
	t.TLSHandshakeTimeout = min(handshakeLimit, t.TLSHandshakeTimeout)
	h.either = &eitherScheme{host: h.Host, transport: t, elsewhere: t}
	if h.Host == registry && !file.skipVerify { // certificates are not verified because this is a loopback address
		strict := t.Clone()
		strict.TLSClientConfig.InsecureSkipVerify = false
		c.all = append(c.all, strict)
		h.either.elsewhere = strict
	}
	h.Client.Transport = h.either
}
