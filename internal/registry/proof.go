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

// proof shows one origin who asks, in the way that it has asked for: nothing until the first 401, then a password or a
// token. A token is fetched once for all requests, again when its time is over, and again when it is refused. It is safe
// for concurrent use.
type proof struct {
	at         origin
	creds      *credentials // what this origin may see
	repository string       // "library/busybox": what a token is to be for
	client     *http.Client
	secrets    *secrets

	turn chan struct{} // held by the one request that fetches a token

	mu    sync.Mutex
	basic bool      // a password has been asked for
	from  *tokenURL // a token has been asked for, from there
	token *token    // the last one; nil: to be fetched
}

// tokenURL is what a bearer challenge says: where there are tokens, and for what.
type tokenURL struct {
	realm   *url.URL
	service string
	scopes  []string
}

// token is an access token.
type token struct {
	text   string
	until  time.Time // zero: it does not say
	worked atomic.Bool
}

// shown is what one request has shown.
type shown struct {
	basic bool
	token *token
	fresh bool // the token was fetched for this request: a refusal is final, unless it has served another meanwhile
}

func newProof(at origin, creds *credentials, repository string, client *http.Client, s *secrets) *proof {
	return &proof{at: at, creds: creds, repository: repository, client: client, secrets: s, turn: make(chan struct{}, 1)}
}

// show puts into req what the origin has asked for. The error has a kind.
func (p *proof) show(ctx context.Context, req *http.Request, patience patience) (shown, error) {
	p.mu.Lock()
	basic, from := p.basic, p.from
	p.mu.Unlock()
	switch {
	case p.creds.bearer != "":
		req.Header.Set("Authorization", "Bearer "+p.creds.bearer)
		return shown{}, nil
	case basic:
		req.SetBasicAuth(p.creds.user, p.creds.secret)
		return shown{basic: true}, nil
	case from == nil:
		return shown{}, nil
	}
	t, fresh, err := p.current(ctx, patience)
	if err != nil {
		return shown{}, err
	}
	req.Header.Set("Authorization", "Bearer "+t.text)
	return shown{token: t, fresh: fresh}, nil
}

// current returns a token whose time is not over. Of those who need a new one, one fetches it.
func (p *proof) current(ctx context.Context, patience patience) (t *token, fresh bool, err error) {
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
	if t, err = p.fetch(ctx, from, patience); err != nil {
		return nil, false, err
	}
	p.secrets.add(t.text)
	p.mu.Lock()
	p.token = t
	p.mu.Unlock()
	return t, true, nil
}

// valid returns the token, unless there is none or its time is over, and where there are others.
func (p *proof) valid() (*token, *tokenURL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token != nil && !p.token.until.IsZero() && time.Now().After(p.token.until) {
		p.token = nil
	}
	return p.token, p.from
}

// answered learns from the response to a request, and reports whether the request is worth to be made again with what
// the origin asks for now.
func (p *proof) answered(resp *http.Response, s shown) (again bool, err error) {
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return p.challenged(challenge.Of(resp.Header), s)
	case resp.StatusCode == http.StatusForbidden && s.token != nil && s.token.worked.Load() && !s.fresh:
		p.drop(s.token) // it has worked before: more likely its time is over than that a right was taken back
		return true, nil
	case s.token != nil && resp.StatusCode < 400:
		s.token.worked.Store(true)
	}
	return false, nil
}

// challenged looks for a challenge that can be met in another way than has just failed. Tokens come before passwords.
func (p *proof) challenged(asked []challenge.Challenge, s shown) (again bool, err error) {
	if p.creds.bearer != "" || s.fresh && !s.token.worked.Load() {
		return false, nil
	}
	if i := slices.IndexFunc(asked, func(c challenge.Challenge) bool { return c.Scheme == "bearer" && c.Params["realm"] != "" }); i >= 0 {
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
	if slices.ContainsFunc(asked, func(c challenge.Challenge) bool { return c.Scheme == "basic" }) && !s.basic && p.creds.user != "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.basic, p.from = true, nil
		return true, nil
	}
	if len(asked) == 0 && s.token != nil { // refused without a word: what else than its end
		p.drop(s.token)
		return true, nil
	}
	return false, nil
}

// drop has another token fetched, unless that has been done.
func (p *proof) drop(t *token) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token == t {
		p.token = nil
	}
}

// tokenURL reads a bearer challenge. Credentials do not go to a token server in the clear, unless the registry itself is
// asked so over a network, or the server is on this machine.
func (p *proof) tokenURL(params map[string]string) (*tokenURL, error) {
	realm, err := challenge.Realm(&url.URL{Scheme: p.at.scheme, Host: p.at.String()}, params["realm"])
	if err != nil {
		return nil, fault.New(fault.Unauthenticated, "registry host %s names the token server %q: %w", p.at, p.secrets.clip(params["realm"]), err)
	}
	if at := originOf(realm); at.scheme == "http" && (p.at.scheme == "https" || p.at.loopback()) && !at.loopback() && !p.creds.anonymous() {
		return nil, fault.New(fault.Unauthenticated, "registry host %s names the token server %s without TLS: the credentials are not sent; the registry has to name it with https://",
			p.at, originOf(realm))
	}
	scopes := append(strings.Fields(params["scope"]), "repository:"+p.repository+":pull")
	slices.Sort(scopes)
	return &tokenURL{realm, params["service"], slices.Compact(scopes)}, nil
}
