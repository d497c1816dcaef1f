package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/pelletier/go-toml/v2"

	"github.com/kuri-cri/kuri/certsd"
	"github.com/kuri-cri/kuri/internal/fault"
)

// hostsConfig is the part of a registry's configuration that containerd's code does not return.
type hostsConfig struct {
	dir        string // "": there is no directory
	mirrors    int    // number of [host] tables
	skipVerify bool   // for the registry itself
	own        map[origin]*credentials
	shared     map[origin]bool // mirrors that get the credentials of the pull
	unknown    []string        // unknown keys with their lines
}

func (c *hostsConfig) path() string { return filepath.Join(c.dir, "hosts.toml") }

// hostDir returns the directory that configures the registry: the first one in certsDirs with its
// name, otherwise the first "_default", otherwise "".
func hostDir(certsDirs []string, registry string) string {
	fallback := ""
	for _, root := range certsDirs {
		found, err := config.HostDirFromRoot(root)(registry)
		if err != nil {
			continue // no such directory
		}
		if filepath.Base(found) != "_default" {
			return found
		}
		if fallback == "" {
			fallback = found
		}
	}
	return fallback
}

// hostsFile returns the path of the registry's hosts.toml, or the first path at which it would be
// found.
func hostsFile(certsDirs []string, registry string) string {
	dir := hostDir(certsDirs, registry)
	if (dir == "" || filepath.Base(dir) == "_default") && len(certsDirs) > 0 {
		dir = filepath.Join(certsDirs[0], registry)
	}
	return filepath.Join(dir, "hosts.toml")
}

// readHostsFile reads the registry's hosts.toml. Invalid TOML is an error, because mirrors would be
// skipped silently. So is a misspelt key. Any other unknown key may belong to another program: it
// is logged, and named in the error of a failed pull.
func readHostsFile(certsDirs []string, registry string) (*hostsConfig, error) {
	c := &hostsConfig{dir: hostDir(certsDirs, registry), own: make(map[origin]*credentials),
		shared: make(map[origin]bool)}
	if c.dir == "" {
		return c, nil
	}
	body, err := os.ReadFile(c.path())
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil // only certificates, in docker's layout
	}
	if err != nil {
		return nil, fault.New(fault.Precondition, "configuration of registry %s: %w", registry, err)
	}
	var syntax map[string]any
	if err := toml.Unmarshal(body, &syntax); err != nil {
		return nil, fault.New(fault.Precondition, "configuration of registry %s: %s is not valid TOML: %w",
			registry, c.path(), err)
	}
	if c.unknown, err = certsd.Check(body); err != nil {
		return nil, fault.New(fault.Precondition, "configuration of registry %s: %s: %w", registry, c.path(), err)
	}
	var file struct {
		SkipVerify bool `toml:"skip_verify"`
		Host       map[string]struct {
			Auth map[string]string `toml:"auth"`
		} `toml:"host"`
	}
	if err := toml.Unmarshal(body, &file); err != nil {
		return nil, fault.New(fault.Precondition, "configuration of registry %s: %s is not valid TOML: %w",
			registry, c.path(), err)
	}
	if len(c.unknown) > 0 {
		slog.Warn("ignoring unknown keys in hosts.toml", "file", c.path(), "keys", strings.Join(c.unknown, ", "))
	}
	c.mirrors, c.skipVerify = len(file.Host), file.SkipVerify
	for address, h := range file.Host {
		if h.Auth == nil {
			continue
		}
		if err := c.mirrorAuth(address, h.Auth); err != nil {
			return nil, fault.New(fault.Precondition, "configuration of registry %s: %s: [host.%q.auth]: %w", registry,
				c.path(), new(secrets).clip(address), err)
		}
	}
	return c, nil
}

// parseAddress parses the address of a host in hosts.toml.
func parseAddress(address string) (*url.URL, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, errors.New("the address is neither a host nor a URL")
	}
	return u, nil
}

// mirrorAuth parses the table [host."…".auth], an extension of Kuri that containerd ignores. In
// addition to the fields of [Auth] it supports "file", a docker config.json from which the host's
// entry is taken, and from = "pull".
func (c *hostsConfig) mirrorAuth(address string, table map[string]string) error {
	u, err := parseAddress(address)
	if err != nil {
		return err
	}
	at := originOf(u)
	if from, ok := table["from"]; ok {
		if from != "pull" || len(table) > 1 {
			return errors.New("the key from must be the only one, and its only value is \"pull\": the credentials of " +
				"the pull")
		}
		c.shared[at] = true
		return nil
	}
	var a Auth
	for key, value := range table {
		switch key {
		case "username":
			a.Username = value
		case "password":
			a.Password = value
		case "auth":
			a.Auth = value
		case "identity_token":
			a.IdentityToken = value
		case "registry_token":
			a.RegistryToken = value
		case "file":
			if !filepath.IsAbs(value) {
				value = filepath.Join(c.dir, value)
			}
			if a, err = dockerAuth(value, at.String()); err != nil {
				return err
			}
		default:
			return fmt.Errorf("the key %q is not known; there are username, password, auth, identity_token, "+
				"registry_token, file and from", key)
		}
	}
	if _, ok := table["file"]; ok && len(table) > 1 {
		return errors.New("the key file must be the only one")
	}
	c.own[at], err = a.decode()
	return err
}

// dockerAuth reads a host's credentials from a docker config.json. A key that is a pattern counts only if
// no other one has them.
func dockerAuth(path, host string) (Auth, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return Auth{}, err
	}
	var file struct {
		Auths map[string]json.RawMessage
	}
	if err := json.Unmarshal(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), &file); err != nil {
		return Auth{}, fmt.Errorf("%s is not a file in docker's format", path) // its content is secret
	}
	addresses := slices.Sorted(maps.Keys(file.Auths))
	slices.SortStableFunc(addresses, func(a, b string) int {
		return cmp.Compare(strings.Count(a, "*"), strings.Count(b, "*"))
	})
	for _, address := range addresses {
		if at, ok := addressHost(address); !ok || !sameHost(at, host) {
			continue
		}
		var a struct {
			Username, Password, Auth     string
			IdentityToken, RegistryToken string
		}
		if err := json.Unmarshal(file.Auths[address], &a); err != nil {
			return Auth{}, fmt.Errorf("%s: the entry of %s must be an object of strings, such as auth", path,
				new(secrets).clip(address))
		}
		if a.Username+a.Password+a.Auth+a.IdentityToken+a.RegistryToken == "" {
			continue // in a credential helper
		}
		return Auth{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken,
			RegistryToken: a.RegistryToken}, nil
	}
	return Auth{}, fmt.Errorf("%s has no credentials for %s", path, host)
}
