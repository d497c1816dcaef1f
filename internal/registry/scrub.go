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

// secrets are what no message may show: passwords, tokens, and whatever stands behind the "?" of a URL, where stores have
// their signatures.
type secrets struct {
	mu    sync.Mutex
	known []string // longest first
}

// shortestSecret is the length from which a secret is looked for in texts. Shorter ones would be found in every text.
const shortestSecret = 4

// add names more secrets.
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

// addCredentials names what the credentials have, in the forms in which it is sent.
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

// clip makes a text that comes from outside fit for an error message: without secrets, of one line, and bounded.
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

// scrubbed is an error whose text has been scrubbed. The cause is there for errors.Is and errors.As alone.
type scrubbed struct {
	text  string
	cause error
}

func (e *scrubbed) Error() string { return e.text }
func (e *scrubbed) Unwrap() error { return e.cause }

// transportError is an error of an HTTP client without the URL, which may be a signed one, and without secrets.
func (s *secrets) transportError(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err
	}
	if text := s.clip(err.Error()); text != err.Error() {
		return &scrubbed{text, err}
	}
	return err
}
