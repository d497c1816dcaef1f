package registry

import (
	"encoding/base64"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// secrets are the texts that no message may contain: passwords, tokens, and the query of URLs,
// which may contain signatures.
type secrets struct {
	mu    sync.Mutex
	known []string // longest first
}

// shortestSecret is the minimum length of a secret that is removed from texts. Shorter ones would
// match everywhere.
const shortestSecret = 4

// add registers more secrets.
func (s *secrets) add(texts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range texts {
		if len(t) >= shortestSecret && !slices.Contains(s.known, t) {
			s.known = append(s.known, t)
		}
	}
	slices.SortFunc(s.known, func(a, b string) int { return len(b) - len(a) })
}

// addCredentials registers the secrets in c, in the forms in which they are sent.
func (s *secrets) addCredentials(c *credentials) {
	s.add(c.secret, c.bearer, url.QueryEscape(c.secret))
	if c.user != "" {
		s.add(base64.StdEncoding.EncodeToString([]byte(c.user + ":" + c.secret)))
	}
}

var (
	userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/"'<>]*@`)
	query    = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>?#]*)\?[^\s"'<>]*`)
)

// scrub returns the text without secrets.
func (s *secrets) scrub(text string) string {
	text = userinfo.ReplaceAllString(text, "$1")
	text = query.ReplaceAllString(text, "$1?…")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.known {
		text = strings.ReplaceAll(text, secret, "…")
	}
	return text
}

// clip makes untrusted text safe for an error message: without secrets, on one line, and of bounded
// length.
func (s *secrets) clip(text string) string {
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(text, "?"))
	text = s.scrub(text)
	if len(text) > 400 {
		text = strings.ToValidUTF8(text[:400], "") + "…"
	}
	return text
}

// scrubbedError is an error with a scrubbed text. The cause is only for errors.Is and errors.As.
type scrubbedError struct {
	text  string
	cause error
}

func (e *scrubbedError) Error() string { return e.text }
func (e *scrubbedError) Unwrap() error { return e.cause }

// transportError returns an error of an HTTP client without the URL, which may be signed, and
// without secrets.
func (s *secrets) transportError(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err
	}
	if text := s.clip(err.Error()); text != err.Error() {
		return &scrubbedError{text, err}
	}
	return err
}
