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
	attempts  = 3                      // tries of one request at one host
	firstWait = 200 * time.Millisecond // before the second try; five times as long before each further one
	longWait  = 10 * time.Second       // the most that a Retry-After header is honoured
	maxHops   = 10                     // redirects of one request
	maxProofs = 3                      // requests to one address until it knows who asks: without, with an old token, with a new one
	userAgent = "kuri"

	discardLimit = time.Second
)

// patience is called before each wait for a host, and what it returns after it.
type patience func() (answered func())

// send makes one request to h and returns a response of status 200 or 206; the caller closes its body, which ends with
// an error when nothing comes for as long as a host may stall. What may pass by
// itself (a broken connection, 429, a server error) is tried again a few times; a refused connection is not, for the
// next host or the caller's own retry serves better. The error has a kind and names the host and the repository.
func (r *Repository) send(ctx context.Context, h *source, method, endpoint string, header http.Header) (*http.Response, error) {
	wait := firstWait
	for try := 1; ; try++ {
		resp, err := r.once(ctx, h, method, endpoint, header)
		if err == nil {
			return resp, nil
		}
		again, ok := r.worthAgain(h, err)
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

// worthAgain reports whether the same host may do better if it is asked again, and how long it wants to be left alone.
func (r *Repository) worthAgain(h *source, err error) (wait time.Duration, ok bool) {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return refused.wait, refused.passing() && refused.wait <= longWait
	case errors.Is(err, syscall.ECONNREFUSED) || fault.Of(err) != fault.Unavailable || errors.Is(err, errRedirects):
		return 0, false
	case timedOut(err) && r.alternative(h.Host):
		return 0, false
	}
	return 0, true
}

// once is send without another try.
func (r *Repository) once(ctx context.Context, h *source, method, endpoint string, header http.Header) (*http.Response, error) {
	asked, stop := context.WithCancelCause(ctx)
	stall := r.options.at(h.Host).Stall
	patience := func() func() {
		timer := time.AfterFunc(stall, func() { stop(errStalled) })
		return func() { timer.Stop() }
	}
	resp, err := r.follow(asked, h, method, r.url(h, endpoint), header, patience)
	if err != nil {
		stop(nil)
		return nil, err
	}
	resp.Body = &watched{ReadCloser: resp.Body, stop: stop, stall: stall}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return nil, r.refusal(h, resp, endpoint)
	}
	return resp, nil
}

// timedOut tells whether the host took too long to answer.
func timedOut(err error) bool {
	var late net.Error
	return errors.Is(err, errStalled) || errors.As(err, &late) && late.Timeout()
}

var errRedirects = errors.New("it redirects without end")

// follow asks at the URL, which is one of h, and where h redirects to. What belongs to h (the proof of who asks, the
// headers of hosts.toml) goes to its own origin alone: to another host, another port, or the same without TLS go the
// method, the range, and what is acceptable.
func (r *Repository) follow(ctx context.Context, h *source, method string, at *url.URL, header http.Header, patience patience) (*http.Response, error) {
	own := originOf(at)
	seen := make(map[string]bool)
	for hop := 0; ; hop++ {
		seen[at.String()] = true
		resp, err := r.ask(ctx, h, method, at, own, header, patience)
		if err != nil {
			return nil, err
		}
		if hop == 0 {
			own = originOf(resp.Request.URL) // without TLS, perhaps: see eitherScheme
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
			return nil, fault.New(fault.Unavailable, "registry host %s, repository %s: %w", h.Host, r.ref.Path(), r.secrets.transportError(err))
		}
		if own.upgrade(originOf(next)) {
			own = originOf(next)
		}
		at = next
	}
}

// redirects reports whether a status says to ask elsewhere.
func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// location is where a response redirects to. Its error does not quote it: it may be signed.
func location(resp *http.Response) (*url.URL, error) {
	to, err := resp.Location()
	if err != nil || to.Host == "" || to.Scheme != "http" && to.Scheme != "https" {
		return nil, fmt.Errorf("it redirects (%s) to what is not a URL: %w", resp.Status, errRedirects)
	}
	return to, nil
}

// ask makes one request at one address, answering the challenge of a 401.
func (r *Repository) ask(ctx context.Context, h *source, method string, at *url.URL, own origin, header http.Header, patience patience) (*http.Response, error) {
	proof := r.proofAt(h, originOf(at))
	for try := 1; ; try++ {
		req := (&http.Request{Method: method, URL: at, Header: header.Clone()}).WithContext(ctx)
		if req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Set("User-Agent", userAgent)
		req.Header.Set("Accept-Encoding", "identity") // a blob has the digest of its bytes as they are
		if originOf(at) == own {
			for name, values := range h.Header {
				req.Header[http.CanonicalHeaderKey(name)] = values
			}
		}
		shown, err := proof.show(ctx, req, patience)
		if err != nil {
			return nil, err
		}
		answered := patience()
		resp, err := h.Client.Do(req)
		answered()
		if err != nil {
			return nil, r.noAnswer(ctx, h, at, own, err)
		}
		again, err := proof.answered(resp, shown)
		if err == nil && (!again || try == maxProofs) {
			return resp, nil
		}
		discard(resp)
		if err != nil {
			return nil, err
		}
	}
}

// discard reads what is left of a response, so that the connection can be used again. It is closed where that would take
// long.
func discard(resp *http.Response) {
	defer resp.Body.Close()
	defer time.AfterFunc(discardLimit, func() { resp.Body.Close() }).Stop()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
}

// noAnswer is the error of a request without a response.
func (r *Repository) noAnswer(ctx context.Context, h *source, at *url.URL, own origin, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		err = errStalled
	}
	advice := r.advice(h, err)
	err = r.secrets.transportError(err)
	if originOf(at) != own {
		return fault.New(fault.Unavailable, "registry host %s redirects to %s, which did not answer for repository %s: %w", h.Host, originOf(at), r.ref.Path(), err)
	}
	return fault.New(fault.Unavailable, "registry host %s did not answer for repository %s: %w%s", h.Host, r.ref.Path(), err, advice)
}

// advice is what to do about a host that cannot be talked to as it is configured; "" where that is not the cause.
func (r *Repository) advice(h *source, err error) string {
	var unknown x509.UnknownAuthorityError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		return "; give the CA of its certificate in " + hostsFile(r.options.CertsDirs, r.ref.Host())
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &noTLS):
		return fmt.Sprintf("; if it is to be spoken to without TLS, name it as http://%s in %s", h.Host, hostsFile(r.options.CertsDirs, r.ref.Host()))
	}
	return ""
}

var errStalled = errors.New("no data came for too long")

// watched is a response's body that ends when a read takes too long.
type watched struct {
	io.ReadCloser
	stop  context.CancelCauseFunc
	stall time.Duration
	watch *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
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

func (w *watched) Close() error {
	w.stop(nil)
	return w.ReadCloser.Close()
}
