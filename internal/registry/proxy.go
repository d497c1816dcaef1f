package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
)

const (
	proxyVariables = "the environment of kurid names it (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)"
	proxyPassword  = "the proxy wants a user and password: give them in HTTPS_PROXY or HTTP_PROXY in the " +
		"environment of kurid, as in http://USER:PASSWORD@proxy.example:3128"
)

// proxyRefusal is the error for a proxy that refuses the connection to a host.
type proxyRefusal struct {
	proxy  string // host and port
	status string // "403 Forbidden"
	code   int
}

func (p *proxyRefusal) Error() string {
	advice := proxyVariables
	if p.code == http.StatusProxyAuthRequired {
		advice = proxyPassword
	}
	return fmt.Sprintf("the proxy %s refused the connection (%s); %s", p.proxy, p.status, advice)
}

// temporary reports whether a retry may succeed.
func (p *proxyRefusal) temporary() bool { return p.code >= 500 || p.code == http.StatusTooManyRequests }

// proxyAnswer is called with a proxy's response to CONNECT.
func proxyAnswer(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyRefusal{proxy.Host, resp.Status, resp.StatusCode}
}

// ofProxy reports whether err is from the connection to a proxy.
func ofProxy(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "proxyconnect"
}
