package challenge

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Realm returns the URL of the token server in a bearer challenge. A realm that is only a path is
// resolved against base, the URL of the request. Userinfo and fragment are removed.
func Realm(base *url.URL, realm string) (*url.URL, error) {
	realm = strings.TrimSpace(realm)
	u, err := url.Parse(realm)
	if err != nil {
		return nil, errors.New("it is not a URL") // err would quote the realm
	}
	if u.Scheme == "" && strings.HasPrefix(realm, "/") {
		u = base.ResolveReference(u)
	}
	if u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("it is neither a URL with https or http nor a path of the registry")
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	return u, nil
}

// Token is the token of a token server.
type Token struct {
	Text string
	Life time.Duration // 0: not given
}

// ErrNoToken is returned for an answer without a token.
var ErrNoToken = errors.New("answered without a token")

// ParseToken parses the answer of a token server. Like other runtimes, it ignores data around the
// JSON document and blanks around the token. Its errors do not quote the answer.
func ParseToken(body []byte) (Token, error) {
	var said struct {
		Token     string          `json:"token"`
		Access    string          `json:"access_token"`
		ExpiresIn json.RawMessage `json:"expires_in"` // seconds; some servers send a string
	}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&said); err != nil {
		return Token{}, ErrNoToken
	}
	t := Token{Text: strings.TrimSpace(said.Token)}
	if t.Text == "" {
		t.Text = strings.TrimSpace(said.Access)
	}
	if t.Text == "" {
		return Token{}, ErrNoToken
	}
	if strings.ContainsFunc(t.Text, unicode.IsControl) {
		return Token{}, errors.New("answered with a token that has control characters in it")
	}
	if seconds, err := strconv.ParseFloat(strings.Trim(string(said.ExpiresIn), `"`), 64); err == nil && seconds > 0 &&
		seconds < math.MaxInt64/float64(time.Second) {
		t.Life = time.Duration(seconds * float64(time.Second))
	}
	return t, nil
}
