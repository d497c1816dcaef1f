package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kuri-cri/kuri/challenge"
)

// RefusedError means that a registry, or its token server, has refused a credential.
type RefusedError struct {
	By     string // host that refused
	Status string // of its response
	Reason string // its message; "" for none
}

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("%s refuses the credentials (%s)", e.By, e.Status)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

const verifyLimit = 30 * time.Second

// Verify checks a credential with a registry, through the base of its API and the token server that
// it names. It uses plain HTTP for registries on loopback addresses, and if certs.d says so. The
// error is a [*RefusedError] if the credential is refused, and another one if it could not be
// checked.
func Verify(ctx context.Context, at *Host, registry string, c Credential) error {
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
	defer cancel()
	v := &verifier{client: at.client, header: at.header, host: at.base.Host, c: c}
	base := at.base.String()
	first, err := v.get(ctx, base, nil)
	if errors.Is(err, http.ErrSchemeMismatch) && isLoopback(at.base.Host) {
		base = "http" + strings.TrimPrefix(base, "https")
		first, err = v.get(ctx, base, nil)
	}
	if err != nil {
		return fmt.Errorf("ask %s whether it takes the credentials: %w", registry, err)
	}
	if first.StatusCode != http.StatusUnauthorized { // the registry serves anonymous clients
		return first.check(http.StatusOK)
	}
	asked := challenge.Of(first.Header)
	for _, scheme := range []string{"bearer", "basic"} { // the order of a pull
		for _, c := range asked {
			switch {
			case c.Scheme != scheme:
			case scheme == "bearer" && c.Params["realm"] != "":
				return v.bearer(ctx, base, c.Params)
			case scheme == "basic":
				return v.basic(ctx, base)
			}
		}
	}
	return fmt.Errorf("%s asks for credentials in a way that is not known here: %q", registry,
		first.Header.Get("WWW-Authenticate"))
}

type verifier struct {
	client *http.Client
	header http.Header // for requests to host
	host   string
	c      Credential
}

func (v *verifier) basic(ctx context.Context, base string) error {
	a, err := v.get(ctx, base, v.asBasic)
	if err != nil {
		return err
	}
	return a.check(http.StatusOK)
}

func (v *verifier) asBasic(req *http.Request) { req.SetBasicAuth(v.c.Username, v.c.Password) }

// bearer requests a token from the challenge's token server with the credential, and presents it to
// the registry.
func (v *verifier) bearer(ctx context.Context, base string, said map[string]string) error {
	at, err := url.Parse(base)
	if err != nil {
		return err
	}
	realm, err := challenge.Realm(at, said["realm"])
	if err != nil {
		return fmt.Errorf("the registry's token server is named %q: %w", said["realm"], err)
	}
	if realm.Scheme != "https" && !isLoopback(realm.Host) && (at.Scheme != "http" || isLoopback(v.host)) {
		return fmt.Errorf("the registry's token server %s is not asked over TLS: the credentials are not sent",
			realm.Redacted())
	}
	q := realm.Query()
	q.Set("service", said["service"])
	q.Set("client_id", "kuri")
	if v.c.Username != "" {
		q.Set("account", v.c.Username)
	}
	realm.RawQuery = q.Encode()
	a, err := v.get(ctx, realm.String(), v.asBasic)
	if err != nil {
		return fmt.Errorf("ask the registry's token server: %w", err)
	}
	if a.StatusCode/100 != 2 {
		return a.check(http.StatusOK)
	}
	token, err := challenge.ParseToken(a.body)
	if err != nil {
		return fmt.Errorf("%s %w", realm.Host, err)
	}
	a, err = v.get(ctx, base, func(req *http.Request) { req.Header.Set("Authorization", "Bearer "+token.Text) })
	if err != nil {
		return err
	}
	return a.check(http.StatusOK)
}

// answer is an HTTP response and the beginning of its body.
type answer struct {
	*http.Response
	body []byte
}

func (v *verifier) get(ctx context.Context, address string, with func(*http.Request)) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if req.URL.Host == v.host {
		maps.Copy(req.Header, v.header)
	}
	if with != nil {
		with(req)
	}
	client := *v.client
	client.CheckRedirect = v.redirect
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil {
		return nil, err
	}
	return &answer{resp, body}, nil
}

// redirect removes credentials and the headers of hosts.toml from a redirected request to another
// origin. (net/http would keep credentials for other ports of a host, and for the same host without
// TLS.)
func (v *verifier) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return errors.New("it redirects without end")
	}
	first := via[0].URL
	if req.URL.Scheme == first.Scheme && strings.EqualFold(req.URL.Host, first.Host) {
		return nil
	}
	for name := range v.header {
		req.Header.Del(name)
	}
	req.Header.Del("Authorization")
	req.Header.Del("Referer")
	return nil
}

func (a *answer) check(want int) error {
	switch a.StatusCode {
	case want:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return &RefusedError{By: a.Request.URL.Host, Status: a.Status, Reason: a.reason()}
	}
	return fmt.Errorf("%s answers %s", a.Request.URL.Redacted(), a.Status)
}

// reason returns the message in the body, in the format of the distribution specification or of a
// token server.
func (a *answer) reason() string {
	var said struct {
		Errors  []struct{ Code, Message string }
		Details string
	}
	if json.Unmarshal(a.body, &said) != nil {
		return ""
	}
	if len(said.Errors) > 0 {
		return said.Errors[0].Message
	}
	return said.Details
}

func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
