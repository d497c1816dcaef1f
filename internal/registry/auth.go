package registry

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Auth has the credentials of a caller: the CRI's AuthConfig. The zero value is anonymous. Auth is
// comparable, so that it can be part of a pull's identity.
type Auth struct {
	Username string
	Password string
	Auth     string // base64 of "username:password"; used if Username or Password is empty
	// ServerAddress is the only host that may see these credentials ("https://index.docker.io/v1/",
	// "quay.io"); "" stands for the reference's own.
	ServerAddress string
	IdentityToken string // an OAuth2 refresh token, exchanged for an access token at the token server
	RegistryToken string // a bearer token, sent to the registry unchanged
}

// credentials is a decoded Auth: user and secret, a refresh token (a secret without a user), or a
// bearer token.
type credentials struct {
	user, secret string
	bearer       string
	only         string // the host that may see them, in canonical form; "": the registry of the reference
}

// decode returns the credentials in a. The most specific ones take precedence: registry token,
// identity token, username and password, base64 pair. The error is of kind Invalid and does not
// quote a secret.
func (a Auth) decode() (*credentials, error) {
	c := &credentials{}
	if a.ServerAddress != "" {
		host, ok := addressHost(a.ServerAddress)
		if !ok {
			return nil, fault.New(fault.Invalid, "registry credentials: server address %q is neither a host nor a URL",
				new(secrets).clip(a.ServerAddress))
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
			return nil, fault.New(fault.Invalid,
				"registry credentials: the field auth is not base64 of username:password")
		}
		user, password, ok := strings.Cut(pair, ":")
		if !ok {
			return nil, fault.New(fault.Invalid,
				"registry credentials: the field auth, decoded, has no colon between username and password")
		}
		if user == "" && password != "" {
			return nil, fault.New(fault.Invalid,
				"registry credentials: the field auth, decoded, has no username before the colon")
		}
		c.user, c.secret = user, strings.Trim(password, "\x00") // docker pads it with NUL
	case a.Password != "":
		return nil, fault.New(fault.Invalid, "registry credentials: there is a password but no username")
	}
	return c, nil
}

// decodePair decodes base64 with or without padding, in either alphabet, with line breaks, as found
// in such files.
func decodePair(text string) (string, bool) {
	text = strings.Join(strings.Fields(text), "")
	text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
	pair, err := base64.RawStdEncoding.DecodeString(text)
	return string(pair), err == nil
}

// DockerConfig returns the credentials for host as a docker config.json, for programs that query
// the same registry. It is nil if there are none. The error is of kind Invalid, as that of [Open].
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
		address = "https://index.docker.io/v1/" // docker's own key for this host
	}
	return json.Marshal(map[string]map[string]entry{"auths": {address: e}})
}

// anonymous reports whether there are no credentials.
func (c *credentials) anonymous() bool { return c.secret == "" && c.user == "" && c.bearer == "" }
