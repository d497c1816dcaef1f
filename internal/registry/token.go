package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kuri-cri/kuri/challenge"
	"github.com/kuri-cri/kuri/internal/fault"
)

const (
	maxToken     = 1 << 20 // bytes of a token server's answer
	tokenMargin  = 5 * time.Second
	clientID     = "kuri"
	maxTokenHops = 5
	// the user of an identity token that is sent as a password, as in docker's credential helpers
	refreshAsUser = "<token>"
)

// fetch gets a token from the token server (distribution's "Token Authentication Specification" and
// "OAuth2 Token Authentication"): with a password as docker does, with an identity token by OAuth2,
// or anonymously.
func (p *authenticator) fetch(ctx context.Context, from *tokenURL, timer stallTimer) (*token, error) {
	began := time.Now()
	var a tokenAnswer
	var err error
	switch {
	case p.creds.user != "":
		if a, err = p.getToken(ctx, from, p.creds.user, timer); err == nil && a.noSuchMethod() {
			a, err = p.postToken(ctx, from, url.Values{"grant_type": {"password"}, "username": {p.creds.user},
				"password": {p.creds.secret}}, timer)
		}
	case p.creds.secret != "":
		if a, err = p.postToken(ctx, from, url.Values{"grant_type": {"refresh_token"},
			"refresh_token": {p.creds.secret}}, timer); err == nil && a.noSuchMethod() {
			a, err = p.getToken(ctx, from, refreshAsUser, timer)
		}
	default:
		a, err = p.getToken(ctx, from, "", timer)
	}
	if err != nil {
		return nil, err
	}
	if a.status/100 != 2 {
		return nil, p.tokenRefusal(from, a)
	}
	got, err := challenge.ParseToken(a.body)
	if err != nil {
		return nil, fault.New(kindOfErrors(errorsIn(a.body)), "token server %s of registry host %s %w%s",
			originOf(from.realm), p.at, err, p.secrets.clip(errorsIn(a.body)))
	}
	t := &token{text: got.Text}
	if got.Life > 0 {
		t.until = began.Add(got.Life - min(tokenMargin, got.Life/10))
	}
	return t, nil
}

// getToken requests a token with GET, as the user or anonymously.
func (p *authenticator) getToken(ctx context.Context, from *tokenURL, user string,
	timer stallTimer) (tokenAnswer, error) {
	at := *from.realm
	q := at.Query()
	if from.service != "" {
		q.Set("service", from.service)
	}
	q["scope"] = from.scopes
	at.RawQuery = q.Encode()
	for hops := 0; ; hops++ {
		req := (&http.Request{Method: http.MethodGet, URL: &at, Header: http.Header{}}).WithContext(ctx)
		if user != "" {
			req.SetBasicAuth(user, p.creds.secret)
		}
		a, err := p.exchange(req, from, timer)
		if err != nil || a.next == nil {
			return a, err
		}
		was, next := originOf(&at), originOf(a.next)
		if user != "" && was != next && !was.upgrade(next) {
			return a, fault.New(fault.Unauthenticated,
				"token server %s of registry host %s redirects to %s: the credentials are not sent there",
				originOf(from.realm), p.at, originOf(a.next))
		}
		if hops == maxTokenHops {
			return a, fault.New(fault.Unavailable, "token server %s of registry host %s redirects without end",
				originOf(from.realm), p.at)
		}
		at = *a.next
	}
}

// postToken requests a token with POST. It follows no redirect, because its body is secret.
func (p *authenticator) postToken(ctx context.Context, from *tokenURL, form url.Values,
	timer stallTimer) (tokenAnswer, error) {
	form.Set("service", from.service)
	form.Set("scope", strings.Join(from.scopes, " "))
	form.Set("client_id", clientID)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, from.realm.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return tokenAnswer{}, fault.New(fault.Invalid,
			"token server %s of registry host %s: not a valid URL for a request", originOf(from.realm), p.at)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return p.exchange(req, from, timer)
}

// tokenAnswer is the answer of a token server.
type tokenAnswer struct {
	status int
	text   string // of the status
	body   []byte
	wait   time.Duration // Retry-After
	next   *url.URL      // target of a redirect
}

// noSuchMethod reports whether to try the other request method.
func (a tokenAnswer) noSuchMethod() bool {
	return a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed ||
		a.status == http.StatusNotImplemented || a.next != nil
}

// exchange sends a request to the token server and reads the answer.
func (p *authenticator) exchange(req *http.Request, from *tokenURL, timer stallTimer) (tokenAnswer, error) {
	failed := func(err error) error {
		if errors.Is(context.Cause(req.Context()), errStalled) {
			err = errStalled
		}
		return fault.New(fault.Unavailable, "token server %s of registry host %s: no token for repository %s: %w",
			originOf(from.realm), p.at, p.repository, p.secrets.transportError(err))
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "application/json")
	defer timer()()
	resp, err := p.client.Do(req)
	if err != nil {
		return tokenAnswer{}, failed(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken))
	if err != nil {
		return tokenAnswer{}, failed(err)
	}
	a := tokenAnswer{status: resp.StatusCode, text: resp.Status, body: body, wait: retryAfter(resp.Header)}
	if redirects(resp.StatusCode) {
		a.next, err = location(resp)
		if err != nil {
			return a, failed(err)
		}
	}
	return a, nil
}

// tokenRefusal returns the error for a refused token.
func (p *authenticator) tokenRefusal(from *tokenURL, a tokenAnswer) error {
	text := p.secrets.clip("token server " + originOf(from.realm).String() + from.realm.Path + " of registry host " +
		p.at.String() + " refused a token for repository:" + p.repository + ":pull with " + a.text + errorsIn(a.body))
	switch code := a.status; {
	case code == http.StatusUnauthorized || code == http.StatusBadRequest:
		return fault.New(fault.Unauthenticated, "%s; check user, password or token", text)
	case code == http.StatusForbidden:
		return fault.New(fault.PermissionDenied, "%s; ask the registry's owner for the right to pull", text)
	default:
		return &refusal{fault.New(fault.Unavailable, "%s", text), code, a.wait}
	}
}
