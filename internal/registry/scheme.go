package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

// handshakeLimit bounds the TLS handshake with a host that may not use TLS. A plain HTTP server may
// take the handshake for an incomplete line and wait.
const handshakeLimit = 3 * time.Second

// eitherScheme is the transport to a host that may or may not use TLS: a registry on a loopback
// address, or one for which hosts.toml has http:// and a certificate. The first request tries TLS
// first, and its result is kept. Once TLS has worked, nothing is ever sent without it.
type eitherScheme struct {
	host      string // the host, as in a URL
	transport *http.Transport
	elsewhere http.RoundTripper // for all other hosts
	found     atomic.Pointer[string]
}

var schemeTLS, schemePlain = "https", "http"

// scheme returns the scheme of the host, "https" while it is unknown.
func (e *eitherScheme) scheme() string {
	if found := e.found.Load(); found != nil {
		return *found
	}
	return schemeTLS
}

// RoundTrip implements [http.RoundTripper]. The response's Request has the URL with the scheme that
// was used.
func (e *eitherScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.EqualFold(req.URL.Host, e.host) {
		if isLoopback(req.URL.Hostname()) {
			return e.transport.RoundTrip(req)
		}
		return e.elsewhere.RoundTrip(req)
	}
	if req.URL.Scheme != schemeTLS || e.scheme() == schemePlain {
		return e.plain(req)
	}
	var connected atomic.Bool
	trace := &httptrace.ClientTrace{TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
		if err == nil {
			connected.Store(true)
		}
	}}
	resp, err := e.transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err == nil || connected.Load() {
		e.found.CompareAndSwap(nil, &schemeTLS)
	}
	if err == nil || e.found.Load() != nil || !notTLS(req.Context(), err) {
		return resp, err
	}
	resp, plainErr := e.plain(req)
	if plainErr != nil {
		return nil, fmt.Errorf("%w (and without TLS: %w)", err, plainErr)
	}
	var late net.Error
	if errors.As(err, &late) && late.Timeout() && resp.StatusCode == http.StatusBadRequest {
		resp.Body.Close() // a slow host that requires TLS
		return nil, err
	}
	e.found.CompareAndSwap(nil, &schemePlain)
	return resp, nil
}

func (e *eitherScheme) plain(req *http.Request) (*http.Response, error) {
	plain := req.Clone(req.Context())
	plain.URL.Scheme = schemePlain
	return e.transport.RoundTrip(plain)
}

// notTLS reports whether err, from a connection without a completed handshake, may come from a host
// without TLS. A host that cannot be reached reveals nothing. One that sends an alert or a
// certificate uses TLS.
func notTLS(ctx context.Context, err error) bool {
	var op *net.OpError
	var certificate *tls.CertificateVerificationError
	if ctx.Err() != nil || errors.As(err, &certificate) {
		return false
	}
	if errors.As(err, &op) {
		switch op.Op {
		case "dial", "remote error", "local error": // the latter two are alerts, from either side
			return false
		}
	}
	return true
}
