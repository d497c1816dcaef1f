package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

const (
	attempts  = 3                      // attempts of one request at one host
	firstWait = 200 * time.Millisecond // before the second attempt; five times as long before each further one
	longWait  = 10 * time.Second       // longest Retry-After that is honoured
	maxHops   = 10                     // redirects of one request
	// requests to one address: without authentication, with an old token, with a new token
	maxAuthAttempts = 3
	userAgent       = "kuri"

	discardLimit = time.Second
)

// stallTimer starts a timer before a wait for a host. The returned function stops it.
type stallTimer func() (stop func())

// send makes one request to h and returns a response with status 200 or 206. The caller closes its
// body, whose reads fail if the host stalls. A temporary failure (a broken connection, 429, a
// server error) is retried a few times. A refused connection is not, because the next host or the
// caller's own retry helps more. The error has a kind and names the host and the repository.
func (r *Repository) send(ctx context.Context, h *source, method, endpoint string,
	header http.Header) (*http.Response, error) {
	wait := firstWait
	for try := 1; ; try++ {
		resp, err := r.once(ctx, h, method, endpoint, header)
		if err == nil {
			return resp, nil
		}
		again, ok := r.shouldRetry(h, err)
		if ctx.Err() != nil || !ok || try == attempts {
			return nil, err
		}
		select {
		case <-time.After(max(wait, again)):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (last answer: %w)", ctx.Err(), err)
		}
		r.options.Traffic.retried()
		wait *= 5
	}
}

// shouldRetry reports whether to retry at the same host, and after what delay.
func (r *Repository) shouldRetry(h *source, err error) (wait time.Duration, ok bool) {
	var refused *refusal
	var proxy *proxyRefusal
	switch {
	case errors.As(err, &refused):
		return refused.wait, refused.temporary() && refused.wait <= longWait
	case errors.As(err, &proxy):
		return 0, proxy.temporary()
	case errors.Is(err, syscall.ECONNREFUSED) || fault.Of(err) != fault.Unavailable || errors.Is(err, errRedirects):
		return 0, false
	case timedOut(err) && r.hasAlternative(h.Host):
		return 0, false
	}
	return 0, true
}

// once is send without retries.
func (r *Repository) once(ctx context.Context, h *source, method, endpoint string,
	header http.Header) (*http.Response, error) {
	asked, stop := context.WithCancelCause(ctx)
	stall := r.options.at(h.Host).Stall
	timer := func() func() {
		timer := time.AfterFunc(stall, func() { stop(errStalled) })
		return func() { timer.Stop() }
	}
	resp, err := r.follow(asked, h, method, r.url(h, endpoint), header, timer)
	if err != nil {
		stop(nil)
		return nil, err
	}
	resp.Body = &stallReader{ReadCloser: resp.Body, stop: stop, stall: stall}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return nil, r.refusal(h, resp, endpoint)
	}
	return resp, nil
}

// timedOut reports whether the host took too long to answer.
func timedOut(err error) bool {
	var late net.Error
	return errors.Is(err, errStalled) || errors.As(err, &late) && late.Timeout()
}

var errRedirects = errors.New("the host redirects without end")

// follow sends a request to the URL, which is one of h, and follows redirects. Authentication and
// the headers of hosts.toml are sent only to h's own origin. Another host, another port, or the
// same host without TLS gets only the method, the range and the Accept header.
func (r *Repository) follow(ctx context.Context, h *source, method string, at *url.URL, header http.Header,
	timer stallTimer) (*http.Response, error) {
	own := originOf(at)
	seen := make(map[string]bool)
	for hop := 0; ; hop++ {
		seen[at.String()] = true
		resp, err := r.ask(ctx, h, method, at, own, header, timer)
		if err != nil {
			return nil, err
		}
		if hop == 0 {
			own = originOf(resp.Request.URL) // possibly without TLS: see eitherScheme
		}
		if !redirects(resp.StatusCode) {
			return resp, nil
		}
		next, err := location(resp)
		discard(resp)
		if err == nil && (hop == maxHops || seen[next.String()]) {
			err = errRedirects
		}
		if err != nil {
			return nil, fault.New(fault.Unavailable, "registry host %s, repository %s: %w", h.Host, r.ref.Path(),
				r.secrets.transportError(err))
		}
		if own.upgrade(originOf(next)) {
			own = originOf(next)
		}
		at = next
	}
}

// redirects reports whether the status is a redirect.
func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect:
		return true
	}
	return false
}

// location returns the target of a redirect. Its error does not quote it, because it may be a
// signed URL.
func location(resp *http.Response) (*url.URL, error) {
	to, err := resp.Location()
	if err != nil || to.Host == "" || to.Scheme != "http" && to.Scheme != "https" {
		return nil, fmt.Errorf("it redirects (%s) to what is not a URL: %w", resp.Status, errRedirects)
	}
	return to, nil
}

// ask makes one request at one address and handles the challenge of a 401.
func (r *Repository) ask(ctx context.Context, h *source, method string, at *url.URL, own origin, header http.Header,
	timer stallTimer) (*http.Response, error) {
	auth := r.authenticatorFor(h, originOf(at))
	for try := 1; ; try++ {
		req := (&http.Request{Method: method, URL: at, Header: header.Clone()}).WithContext(ctx)
		if req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Set("User-Agent", userAgent)
		req.Header.Set("Accept-Encoding", "identity") // the digest of a blob is that of its bytes on the wire
		if originOf(at) == own {
			for name, values := range h.Header {
				req.Header[http.CanonicalHeaderKey(name)] = values
			}
		}
		used, err := auth.authorize(ctx, req, timer)
		if err != nil {
			return nil, err
		}
		answered := timer()
		resp, err := h.Client.Do(req)
		answered()
		if err != nil {
			return nil, r.noAnswer(ctx, h, at, own, err)
		}
		again, err := auth.handle(resp, used)
		if err == nil && (!again || try == maxAuthAttempts) {
			return resp, nil
		}
		discard(resp)
		if err != nil {
			return nil, err
		}
	}
}

// discard drains a response, so that the connection can be reused. It closes the connection if that
// takes long.
func discard(resp *http.Response) {
	defer resp.Body.Close()
	defer time.AfterFunc(discardLimit, func() { resp.Body.Close() }).Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
}

// noAnswer returns the error for a request without a response.
func (r *Repository) noAnswer(ctx context.Context, h *source, at *url.URL, own origin, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		err = errStalled
	}
	advice := r.advice(h, err)
	err = r.secrets.transportError(err)
	if originOf(at) != own {
		return fault.New(fault.Unavailable,
			"registry host %s redirects to %s, which did not answer for repository %s: %w", h.Host, originOf(at),
			r.ref.Path(), err)
	}
	return fault.New(fault.Unavailable, "registry host %s did not answer for repository %s: %w%s", h.Host,
		r.ref.Path(), err, advice)
}

// advice returns what to do about a host that is misconfigured, or "" for another cause.
func (r *Repository) advice(h *source, err error) string {
	var unknown x509.UnknownAuthorityError
	var noTLS tls.RecordHeaderError
	switch {
	case ofProxy(err):
		return "; this is the proxy, not the host: " + proxyVariables
	case errors.As(err, &unknown):
		return "; give the CA of its certificate in " + hostsFile(r.options.CertsDirs, r.ref.Host())
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &noTLS):
		return fmt.Sprintf("; if it is to be spoken to without TLS, name it as http://%s in %s", h.Host,
			hostsFile(r.options.CertsDirs, r.ref.Host()))
	}
	return ""
}

var errStalled = errors.New("no data came for too long")

// stallReader is a response's body whose reads fail if the host stalls.
type stallReader struct {
	io.ReadCloser
	stop  context.CancelCauseFunc
	stall time.Duration
	watch *time.Timer
}

func (w *stallReader) Read(p []byte) (int, error) {
	if w.watch == nil {
		w.watch = time.AfterFunc(w.stall, func() { w.stop(errStalled) })
	} else {
		w.watch.Reset(w.stall)
	}
	n, err := w.ReadCloser.Read(p)
	if !w.watch.Stop() && n == 0 && err != nil {
		err = errStalled
	}
	return n, err
}

func (w *stallReader) Close() error {
	w.stop(nil)
	return w.ReadCloser.Close()
}
