package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Auth is what a caller knows to prove itself to a registry: the CRI's AuthConfig. The zero value is anonymous. It is
// comparable, so that it can be a part of a pull's identity.
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of "username:password"; used when Username is empty
	ServerAddress string // the one host that may see these credentials: "https://index.docker.io/v1/", "quay.io"; "" for the reference's own
	IdentityToken string // an OAuth2 refresh token, exchanged for an access token at the registry's token server
	RegistryToken string // a bearer token, sent to the registry as it is
}

// credentials is Auth, decoded: user and secret as the token exchange wants them (user "" means that the secret is a
// refresh token), or a bearer token.
type credentials struct {
	user, secret string
	bearer       string
	only         string          // host that may see them, or "" for every host of the conversation
	hosts        map[string]bool // hosts of the conversation; a host that a redirect led to is none of them

	own map[string]*credentials // of hosts that hosts.toml has credentials for
}

// decode returns the credentials that a holds. The precedence is the narrowest first: a registry token, an identity
// token, username and password, the base64 pair. The error is of kind Invalid and does not quote a secret.
func (a Auth) decode() (*credentials, error) {
	c := &credentials{hosts: make(map[string]bool)}
	if a.ServerAddress != "" {
		host, err := addressHost(a.ServerAddress)
		if err != nil {
			return nil, err
		}
		c.only = host
	}
	switch {
	case a.RegistryToken != "":
		c.bearer = a.RegistryToken
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.Username != "":
		c.user, c.secret = a.Username, a.Password
	case a.Auth != "":
		pair, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return nil, fault.New(fault.Invalid, "registry credentials: the field auth is not base64 of username:password: %w", err)
		}
		user, password, ok := strings.Cut(string(pair), ":")
		if !ok {
			return nil, fault.New(fault.Invalid, "registry credentials: the field auth, decoded, has no colon between username and password")
		}
		c.user, c.secret = user, strings.Trim(password, "\x00") // docker pads it with NUL
	}
	return c, nil
}

// DockerConfig returns the credentials that the registry host may see as a file of docker's format, for programs that ask
// the same registry; nil when there are none. The error is of kind Invalid, as that of [Open].
func (a Auth) DockerConfig(host string) ([]byte, error) {
	c, err := a.decode()
	if err != nil {
		return nil, err
	}
	if c.anonymous() || c.only != "" && c.only != canonicalHost(host) {
		return nil, nil
	}
	type entry struct {
		Auth          string `json:"auth,omitempty"`
		IdentityToken string `json:"identitytoken,omitempty"`
		RegistryToken string `json:"registrytoken,omitempty"`
	}
	e := entry{RegistryToken: c.bearer}
	switch {
	case c.user != "":
		e.Auth = base64.StdEncoding.EncodeToString([]byte(c.user + ":" + c.secret))
	case c.secret != "":
		e.IdentityToken = c.secret
	}
	address := host
	if canonicalHost(host) == "docker.io" {
		address = "https://index.docker.io/v1/" // as docker has it
	}
	return json.Marshal(map[string]map[string]entry{"auths": {address: e}})
}

// addressHost takes the host out of a server address, which is a URL or a bare host.
func addressHost(address string) (string, error) {
	full := address
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" {
		return "", fault.New(fault.Invalid, "registry credentials: server address %q is neither a host nor a URL", address)
	}
	return canonicalHost(u.Host), nil
}

// canonicalHost gives the names of Docker's registry one spelling.
func canonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// anonymous tells whether nothing is known to prove who asks.
func (c *credentials) anonymous() bool { return c.secret == "" && c.user == "" && c.bearer == "" }

// at returns what the host may see: what hosts.toml has for it, else the caller's, else nothing.
func (c *credentials) at(host string) *credentials {
	if own := c.own[host]; own != nil && c.hosts[host] {
		return own
	}
	if c.hosts[host] && (c.only == "" || c.only == canonicalHost(host)) {
		return c
	}
	return &credentials{}
}

// forHost is the callback of containerd's authorizer.
func (c *credentials) forHost(host string) (user, secret string, err error) {
	a := c.at(host)
	return a.user, a.secret, nil
}

// bearer is the authorizer of a registry token: it is sent as it is, and a refusal is final.
type bearer struct{ creds *credentials }

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	if token := b.creds.at(req.URL.Host).bearer; token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return nil
}

func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return docker.ErrInvalidAuthorization
}
