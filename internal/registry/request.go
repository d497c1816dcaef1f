package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/log"

	"github.com/kuri-cri/kuri/internal/fault"
)

const (
	attempts  = 3                      // tries of one request at one host
	firstWait = 200 * time.Millisecond // before the second try; five times as long before each further one
	longWait  = 10 * time.Second       // the most that a Retry-After header is honoured
)

// send makes one request to h and returns a response of status 200 or 206; the caller closes its body, which ends with
// an error when nothing comes for as long as a host may stall. What may pass by
// itself (a broken connection, 429, a server error) is tried again a few times; a refused connection is not, for the
// next host or the caller's own retry serves better. The error has a kind and names the host and the repository.
func (r *Repository) send(ctx context.Context, h docker.RegistryHost, method, endpoint string, header http.Header) (*http.Response, error) {
	wait := firstWait
	for try := 1; ; try++ {
		asked, stop := context.WithCancelCause(ctx)
		stall := r.options.at(h.Host).Stall
		resp, err := r.authorized(asked, h, method, endpoint, header, func() func() bool {
			return time.AfterFunc(stall, func() { stop(errStalled) }).Stop
		})
		if err == nil {
			resp.Body = &watched{ReadCloser: resp.Body, stop: stop, stall: stall}
		} else {
			stop(nil)
		}
		if err == nil && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent) {
			return resp, nil
		}
		again := wait
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, syscall.ECONNREFUSED) || fault.Of(err) != fault.Unavailable {
				return nil, err
			}
			if timedOut(err) && r.alternative(h.Host) {
				return nil, err
			}
		} else {
			again = max(wait, retryAfter(resp.Header))
			err = r.refusal(h, resp, endpoint)
			passing := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500
			if !passing || again > longWait {
				return nil, err
			}
		}
		if try == attempts {
			return nil, err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (last answer: %w)", ctx.Err(), err)
		}
		wait *= 5
	}
}

// timedOut tells whether the host took too long to answer.
func timedOut(err error) bool {
	var late net.Error
	return errors.Is(err, errStalled) || errors.As(err, &late) && late.Timeout()
}

// authorized makes one request, answering the challenge of a 401 with the credentials of the conversation. patience is
// called before each wait for the host and what it returns after it.
func (r *Repository) authorized(ctx context.Context, h docker.RegistryHost, method, endpoint string, header http.Header, patience func() func() bool) (*http.Response, error) {
	scoped := docker.ContextWithAppendPullRepositoryScope(log.WithLogger(ctx, r.quiet), r.ref.Path())
	var responses []*http.Response
	for {
		req := (&http.Request{Method: method, URL: r.url(h, endpoint), Header: header.Clone()}).WithContext(ctx)
		req.Header.Set("User-Agent", "kuri")
		for name, values := range h.Header {
			req.Header[http.CanonicalHeaderKey(name)] = values
		}
		answered := patience() // a token may have to be fetched
		err := h.Authorizer.Authorize(scoped, req)
		answered()
		if err != nil {
			return nil, r.tokenRefusal(h, err)
		}
		answered = patience()
		resp, err := h.Client.Do(req)
		answered()
		if err != nil && errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		if err != nil {
			return nil, fault.New(fault.Unavailable, "registry host %s did not answer for repository %s: %w%s", h.Host, r.ref.Path(), err, r.advice(h, err))
		}
		responses = append(responses, resp)
		if resp.StatusCode != http.StatusUnauthorized || len(responses) > 2 {
			return resp, nil
		}
		if err := h.Authorizer.AddResponses(scoped, responses); err != nil {
			return resp, nil // no answer to this challenge: the refusal stands
		}
		answered = patience()
		io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
		answered()
		resp.Body.Close()
	}
}

// advice is what to do about a host that cannot be talked to as it is configured; "" where that is not the cause.
func (r *Repository) advice(h docker.RegistryHost, err error) string {
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

// refusal turns a response that is not a success into an error and closes it.
func (r *Repository) refusal(h docker.RegistryHost, resp *http.Response, endpoint string) error {
	said := serverMessage(resp)
	resp.Body.Close()
	where := fmt.Sprintf("registry host %s, repository %s", h.Host, r.ref.Path())
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized && r.creds.at(h.Host).anonymous():
		return fault.New(fault.Unauthenticated, "%s: credentials are needed, or the repository does not exist (%s%s); give the pod an imagePullSecret for this registry",
			where, said, challenge(resp))
	case code == http.StatusUnauthorized:
		return fault.New(fault.Unauthenticated, "%s: the credentials were refused (%s%s); check user, password or token", where, said, challenge(resp))
	case code == http.StatusForbidden:
		return fault.New(fault.PermissionDenied, "%s: access is denied (%s); ask the registry's owner for the right to pull, or use other credentials", where, said)
	case code == http.StatusNotFound && strings.HasPrefix(endpoint, "blobs/"):
		return fault.New(fault.NotFound, "%s: %s of the image is not there (%s); the image is not whole, push it again", where, endpoint, said)
	case code == http.StatusNotFound:
		return fault.New(fault.NotFound, "%s: %s is not there (%s); check the name and the tag", where, r.ref, said)
	case code == http.StatusMethodNotAllowed:
		return fault.New(fault.Unimplemented, "%s: the registry does not answer this kind of request (%s)", where, said)
	case code == http.StatusTooManyRequests:
		later := "later"
		if wait := retryAfter(resp.Header); wait > 0 {
			later = "again in " + wait.Round(time.Second).String()
		}
		return fault.New(fault.Unavailable, "%s: too many requests (%s); pull with credentials, through a mirror, or %s", where, said, later)
	default:
		return fault.New(fault.Unavailable, "%s: unexpected answer (%s)", where, said)
	}
}

// tokenRefusal explains why no token could be had.
func (r *Repository) tokenRefusal(h docker.RegistryHost, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		server, _, _ := strings.Cut(status.RequestURL, "?")
		text := fmt.Sprintf("token server %s of registry host %s refused a token for repository:%s:pull with %s", server, h.Host, r.ref.Path(), status.Status)
		switch {
		case status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusBadRequest:
			return fault.New(fault.Unauthenticated, "%s; check user, password or token", text)
		case status.StatusCode == http.StatusForbidden:
			return fault.New(fault.PermissionDenied, "%s; ask the registry's owner for the right to pull", text)
		}
		return fault.New(fault.Unavailable, "%s", text)
	}
	return fault.New(fault.Unavailable, "registry host %s: no token for repository %s: %w", h.Host, r.ref.Path(), err)
}

// challenge names the realm and scope of a 401.
func challenge(resp *http.Response) string {
	if c := resp.Header.Get("WWW-Authenticate"); c != "" {
		return ", it asks for " + clip(c)
	}
	return ""
}

// serverMessage is the status and what the body says in the form of the distribution specification.
func serverMessage(resp *http.Response) string {
	said := resp.Status
	var body struct {
		Errors []struct{ Code, Message string }
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(raw, &body) == nil {
		for _, e := range body.Errors {
			said += ", " + e.Code + ": " + e.Message
		}
	}
	return clip(said)
}

// clip bounds a text that comes from outside, for an error message.
func clip(s string) string {
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// retryAfter reads the header of that name: seconds or a date; 0 when there is none.
func retryAfter(header http.Header) time.Duration {
	value := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return time.Until(at)
	}
	return 0
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
