package registry

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kuri-cri/kuri/challenge"
	"github.com/kuri-cri/kuri/internal/fault"
)

// authenticator authenticates requests to one origin in the way that the origin asks for: not at
// all until the first 401, then with a password or a token. A token is shared by all requests. It
// is fetched again when it expires or is refused. Safe for concurrent use.
type authenticator struct {
	at         origin
	creds      *credentials // the credentials for this origin
	repository string       // "library/busybox": the repository of the token
	client     *http.Client
	secrets    *secrets

	turn chan struct{} // held by the request that fetches a token

	mu    sync.Mutex
	basic bool      // the origin asks for a password
	from  *tokenURL // the origin asks for a token from there
	token *token    // the current one; nil: must be fetched
}

// tokenURL is a parsed bearer challenge.
type tokenURL struct {
	realm   *url.URL
	service string
	scopes  []string
}

// token is an access token.
type token struct {
	text   string
	until  time.Time // zero: unknown
	worked atomic.Bool
}

// attempt is the authentication that one request used.
type attempt struct {
	basic bool
	token *token
	fresh bool // fetched for this request: a refusal is final unless the token has worked for another request
}

func newAuthenticator(at origin, creds *credentials, repository string, client *http.Client,
	s *secrets) *authenticator {
	return &authenticator{at: at, creds: creds, repository: repository, client: client, secrets: s,
		turn: make(chan struct{}, 1)}
}

// authorize adds the authentication that the origin asks for to req. The error has a kind.
func (p *authenticator) authorize(ctx context.Context, req *http.Request, timer stallTimer) (attempt, error) {
	p.mu.Lock()
	basic, from := p.basic, p.from
	p.mu.Unlock()
	switch {
	case p.creds.bearer != "":
		req.Header.Set("Authorization", "Bearer "+p.creds.bearer)
		return attempt{}, nil
	case basic:
		req.SetBasicAuth(p.creds.user, p.creds.secret)
		return attempt{basic: true}, nil
	case from == nil:
		return attempt{}, nil
	}
	t, fresh, err := p.current(ctx, timer)
	if err != nil {
		return attempt{}, err
	}
	req.Header.Set("Authorization", "Bearer "+t.text)
	return attempt{token: t, fresh: fresh}, nil
}

// current returns a token that has not expired. If several requests need a new one, one of them
// fetches it.
func (p *authenticator) current(ctx context.Context, timer stallTimer) (t *token, fresh bool, err error) {
	if t, _ := p.valid(); t != nil {
		return t, false, nil
	}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
	t, from := p.valid()
	if t != nil {
		return t, false, nil
	}
	if t, err = p.fetch(ctx, from, timer); err != nil {
		return nil, false, err
	}
	p.secrets.add(t.text)
	p.mu.Lock()
	p.token = t
	p.mu.Unlock()
	return t, true, nil
}

// valid returns the current token, or nil if there is none or it has expired, and where to get
// another.
func (p *authenticator) valid() (*token, *tokenURL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token != nil && !p.token.until.IsZero() && time.Now().After(p.token.until) {
		p.token = nil
	}
	return p.token, p.from
}

// handle processes the response to a request. It reports whether to repeat the request with the
// authentication that the origin asks for now.
func (p *authenticator) handle(resp *http.Response, s attempt) (again bool, err error) {
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return p.handleChallenge(challenge.Of(resp.Header), s)
	case resp.StatusCode == http.StatusForbidden && s.token != nil && s.token.worked.Load() && !s.fresh:
		p.drop(s.token) // it has worked before: it has more likely expired than lost a permission
		return true, nil
	case s.token != nil && resp.StatusCode < 400:
		s.token.worked.Store(true)
	}
	return false, nil
}

// handleChallenge looks for a challenge that can be met in another way than the one that failed.
// Tokens take precedence over passwords.
func (p *authenticator) handleChallenge(asked []challenge.Challenge, s attempt) (again bool, err error) {
	if p.creds.bearer != "" || s.fresh && !s.token.worked.Load() {
		return false, nil
	}
	if i := slices.IndexFunc(asked, func(c challenge.Challenge) bool {
		return c.Scheme == "bearer" &&
			c.Params["realm"] != ""
	}); i >= 0 {
		from, err := p.tokenURL(asked[i].Params)
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.token == s.token {
				p.token = nil
			}
			p.from, p.basic = from, false
			return true, nil
		}
		if !slices.ContainsFunc(asked, func(c challenge.Challenge) bool { return c.Scheme == "basic" }) {
			return false, err
		}
	}
	if slices.ContainsFunc(asked, func(c challenge.Challenge) bool { return c.Scheme == "basic" }) && !s.basic &&
		p.creds.user != "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.basic, p.from = true, nil
		return true, nil
	}
	if len(asked) == 0 && s.token != nil { // refused without a challenge: it has probably expired
		p.drop(s.token)
		return true, nil
	}
	return false, nil
}

// drop discards the token, so that another one is fetched.
func (p *authenticator) drop(t *token) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token == t {
		p.token = nil
	}
}

// tokenURL parses a bearer challenge. Credentials are not sent to a token server without TLS,
// unless the registry itself is remote and uses plain HTTP or the token server is on this machine.
func (p *authenticator) tokenURL(params map[string]string) (*tokenURL, error) {
	realm, err := challenge.Realm(&url.URL{Scheme: p.at.scheme, Host: p.at.String()}, params["realm"])
	if err != nil {
		return nil, fault.New(fault.Unauthenticated, "registry host %s names the token server %q: %w", p.at,
			p.secrets.clip(params["realm"]), err)
	}
	if at := originOf(realm); at.scheme == "http" && (p.at.scheme == "https" || p.at.loopback()) && !at.loopback() &&
		!p.creds.anonymous() {
		return nil, fault.New(fault.Unauthenticated,
			"registry host %s names the token server %s without TLS: the credentials are not sent; the registry has "+
				"to name it with https://",
			p.at, originOf(realm))
	}
	scopes := append(strings.Fields(params["scope"]), "repository:"+p.repository+":pull")
	slices.Sort(scopes)
	return &tokenURL{realm, params["service"], slices.Compact(scopes)}, nil
}
