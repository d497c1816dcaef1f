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

// handshakeLimit is how long a host that may speak TLS or not may take for the handshake. One that speaks plain HTTP
// may wait for the end of what it takes for a line.
const handshakeLimit = 3 * time.Second

// eitherScheme is the transport to a host of which it is not known whether it speaks TLS: a registry on a loopback
// address, or one that hosts.toml gives http:// and a certificate. The first request finds out, with TLS first; what it
// finds holds. Where TLS has once worked, nothing is ever sent without.
type eitherScheme struct {
	host      string // that this is about, as in a URL
	transport *http.Transport
	elsewhere http.RoundTripper // to all others
	found     atomic.Pointer[string]
}

var schemeTLS, schemePlain = "https", "http"

// scheme is what the host speaks; "https" as long as it is not known.
func (e *eitherScheme) scheme() string {
	if found := e.found.Load(); found != nil {
		return *found
	}
	return schemeTLS
}

// RoundTrip is that of [http.RoundTripper]. The response's Request has the URL with the scheme that was used.
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
		resp.Body.Close() // a slow host that wants TLS
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

// notTLS reports whether err, of a connection on which no handshake came to its end, may be of a host that does not know
// TLS. One that cannot be reached says nothing, and one that sends an alert or a certificate knows TLS.
func notTLS(ctx context.Context, err error) bool {
	var op *net.OpError
	var certificate *tls.CertificateVerificationError
	if ctx.Err() != nil || errors.As(err, &certificate) {
		return false
	}
	if errors.As(err, &op) {
		switch op.Op {
		case "dial", "remote error", "local error": // the latter are alerts, from either side
			return false
		}
	}
	return true
}
