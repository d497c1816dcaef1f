package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// refusal is an unsuccessful response. The error in it has a kind.
type refusal struct {
	error
	status int
	wait   time.Duration // from Retry-After
}

func (r *refusal) Unwrap() error { return r.error }

// temporary reports whether a retry may succeed.
func (r *refusal) temporary() bool {
	return r.status == http.StatusTooManyRequests || r.status == http.StatusRequestTimeout ||
		r.status >= 500 && r.status != http.StatusNotImplemented
}

// statusOf returns the status of the response that caused err, or 0 if there was no response.
func statusOf(err error) int {
	var refused *refusal
	if errors.As(err, &refused) {
		return refused.status
	}
	return 0
}

// refusal turns an unsuccessful response into an error and closes it.
func (r *Repository) refusal(h *source, resp *http.Response, endpoint string) error {
	defer resp.Body.Close()
	wait := retryAfter(resp.Header)
	return &refusal{r.refusalText(h, resp, endpoint, wait), resp.StatusCode, wait}
}

// refusalText returns the error for a refusal: what was refused, why, and what to do.
func (r *Repository) refusalText(h *source, resp *http.Response, endpoint string, wait time.Duration) error {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	said := r.secrets.clip(resp.Status + errorsIn(raw))
	where := fmt.Sprintf("registry host %s, repository %s", h.Host, r.ref.Path())
	at := originOf(resp.Request.URL)
	if !r.ownOrigin(h, at) {
		where = fmt.Sprintf("registry host %s redirects to %s, repository %s", h.Host, at, r.ref.Path())
	}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized && r.credentialsAt(at).anonymous():
		return fault.New(fault.Unauthenticated,
			"%s: credentials are needed, or the repository does not exist (%s%s); %s",
			where, said, r.challenge(resp), r.credentialsAdvice(h))
	case code == http.StatusUnauthorized:
		return fault.New(fault.Unauthenticated,
			"%s: the credentials were refused (%s%s); check user, password or token", where, said, r.challenge(resp))
	case code == http.StatusForbidden:
		return fault.New(fault.PermissionDenied,
			"%s: access is denied (%s); ask the registry's owner for the right to pull, or use other credentials",
			where, said)
	case code == http.StatusProxyAuthRequired:
		return fault.New(fault.Unavailable, "%s: a proxy answered (%s); %s", where, said, proxyPassword)
	case code == http.StatusNotFound && endpoint != "manifests/"+r.ref.target(): // a part of it
		return fault.New(fault.NotFound, "%s: %s of the image is not there (%s); the image is not whole, push it again",
			where, endpoint, said)
	case code == http.StatusNotFound:
		return fault.New(fault.NotFound, "%s: %s is not there (%s); check the name and the tag", where, r.ref, said)
	case code == http.StatusMethodNotAllowed || code == http.StatusNotImplemented:
		return fault.New(fault.Unimplemented, "%s: the registry does not answer this kind of request (%s)", where, said)
	case code == http.StatusTooManyRequests:
		later := "later"
		if wait > 0 {
			later = "again in " + wait.Round(time.Second).String()
		}
		return fault.New(fault.Unavailable,
			"%s: too many requests (%s); pull with credentials, through a mirror, or %s", where, said, later)
	default:
		return fault.New(fault.Unavailable, "%s: unexpected answer (%s)", where, said)
	}
}

// credentialsAdvice says where to configure credentials for the host.
func (r *Repository) credentialsAdvice(h *source) string {
	if h.mirror && !r.caller.anonymous() {
		return fmt.Sprintf("those of the pull go to the registry alone: give this mirror its own in the table "+
			"[host.\"%s://%s\".auth] of %s",
			h.Scheme, h.Host, hostsFile(r.options.CertsDirs, r.ref.Host()))
	}
	return "give the pod an imagePullSecret for this registry"
}

// challenge returns the challenge of a 401 for an error.
func (r *Repository) challenge(resp *http.Response) string {
	if c := resp.Header.Get("WWW-Authenticate"); c != "" {
		return ", it asks for " + r.secrets.clip(c)
	}
	return ""
}

// errorsIn returns the errors in a body in the format of the distribution specification, after a
// comma. It returns "" for another format.
func errorsIn(raw []byte) string {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(raw, &body) != nil {
		return ""
	}
	said := ""
	for _, e := range body.Errors {
		said += ", " + e.Code + ": " + e.Message
	}
	return said
}

// retryAfter parses the Retry-After header: seconds or a date. It returns 0 if there is none or it
// has passed.
func retryAfter(header http.Header) time.Duration {
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Duration(min(max(seconds, 0), math.MaxInt64/int64(time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
