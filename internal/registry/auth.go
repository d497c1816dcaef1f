package registry

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Auth is what a caller knows to prove itself to a registry: the CRI's AuthConfig. The zero value is anonymous. It is
// comparable, so that it can be a part of a pull's identity.
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of "username:password"; used when there is no Username, or no Password
	ServerAddress string // the one host that may see these credentials: "https://index.docker.io/v1/", "quay.io"; "" for the reference's own
	IdentityToken string // an OAuth2 refresh token, exchanged for an access token at the registry's token server
	RegistryToken string // a bearer token, sent to the registry as it is
}

// credentials is Auth, decoded: user and secret, a refresh token (secret without a user), or a bearer token.
type credentials struct {
	user, secret string
	bearer       string
	only         string // host that may see them, in canonical form; "" for the registry of the reference
}

// decode returns the credentials that a holds. The precedence is the narrowest first: a registry token, an identity
// token, username and password, the base64 pair. The error is of kind Invalid and does not quote a secret.
func (a Auth) decode() (*credentials, error) {
	c := &credentials{}
	if a.ServerAddress != "" {
		host, ok := addressHost(a.ServerAddress)
		if !ok {
			return nil, fault.New(fault.Invalid, "registry credentials: server address %q is neither a host nor a URL", new(secrets).clip(a.ServerAddress))
		}
		c.only = host
	}
	switch {
	case a.RegistryToken != "":
		c.bearer = a.RegistryToken
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.Username != "" && (a.Password != "" || a.Auth == ""):
		c.user, c.secret = a.Username, a.Password
	case a.Auth != "":
		pair, ok := decodePair(a.Auth)
		if !ok {
			return nil, fault.New(fault.Invalid, "registry credentials: the field auth is not base64 of username:password")
		}
		user, password, ok := strings.Cut(pair, ":")
		if !ok {
			return nil, fault.New(fault.Invalid, "registry credentials: the field auth, decoded, has no colon between username and password")
		}
		if user == "" && password != "" {
			return nil, fault.New(fault.Invalid, "registry credentials: the field auth, decoded, has no username before the colon")
		}
		c.user, c.secret = user, strings.Trim(password, "\x00") // docker pads it with NUL
	case a.Password != "":
		return nil, fault.New(fault.Invalid, "registry credentials: there is a password and no username")
	}
	return c, nil
}

// decodePair decodes base64 as it is found in such files: with or without padding, in either alphabet, with line breaks.
func decodePair(text string) (string, bool) {
	text = strings.Join(strings.Fields(text), "")
	text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
	pair, err := base64.RawStdEncoding.DecodeString(text)
	return string(pair), err == nil
}

// DockerConfig returns the credentials that the registry host may see as a file of docker's format, for programs that ask
// the same registry; nil when there are none. The error is of kind Invalid, as that of [Open].
func (a Auth) DockerConfig(host string) ([]byte, error) {
	c, err := a.decode()
	if err != nil {
		return nil, err
	}
	if c.anonymous() || c.only != "" && !sameHost(c.only, host) {
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

// anonymous reports whether nothing is known to prove who asks.
func (c *credentials) anonymous() bool { return c.secret == "" && c.user == "" && c.bearer == "" }
