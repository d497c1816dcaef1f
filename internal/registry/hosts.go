package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/pelletier/go-toml/v2"

	"github.com/kuri-cri/kuri/internal/fault"
)

// connsPerHost is how many idle connections to one host are kept while a pull lasts: about as many as layers that are
// fetched at once.
const connsPerHost = 16

// lookupHosts returns the hosts that serve the registry, mirrors first, each with a client of its own configuration,
// and the transports behind the clients. The error is of kind Precondition when the node's configuration is wrong.
func lookupHosts(ctx context.Context, o Options, registry string, creds *credentials) ([]docker.RegistryHost, []*http.Transport, error) {
	dir, own, configured, err := hostDir(o.CertsDirs, registry)
	if err != nil {
		return nil, nil, err
	}
	creds.own = own
	var transports []*http.Transport
	longest := o.longestStall() // hosts share transports: what each may take is seen to at the request
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     func(string) (string, error) { return dir, nil },
		Credentials: creds.forHost,
		UpdateClient: func(client *http.Client) error {
			if t, ok := client.Transport.(*http.Transport); ok {
				t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, connsPerHost
				t.ReadBufferSize = 64 << 10
				t.ResponseHeaderTimeout = longest
				if dial := t.DialContext; dial != nil {
					t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
						ctx, cancel := context.WithTimeout(ctx, longest)
						defer cancel()
						return dial(ctx, network, addr)
					}
				}
				transports = append(transports, t)
			}
			return nil
		},
	})(registry)
	if err != nil {
		return nil, nil, fault.New(fault.Precondition, "configuration of registry %s in %s: %w", registry, dir, err)
	}
	if configured > 0 && len(hosts) != configured+1 {
		return nil, nil, fault.New(fault.Precondition, "configuration of registry %s: %s has a value that is not understood (a capability, ca, client, header or dial_timeout)",
			registry, filepath.Join(dir, "hosts.toml"))
	}
	if len(hosts) == 0 {
		return nil, nil, fault.New(fault.Precondition, "configuration of registry %s in %s leaves no host to ask", registry, dir)
	}
	for i := range hosts {
		creds.hosts[hosts[i].Host] = true
		if creds.at(hosts[i].Host).bearer != "" {
			hosts[i].Authorizer = bearer{creds}
		}
	}
	return hosts, transports, nil
}

// hostDir finds the directory that configures the registry, in the first of certsDirs that has one by its name, else
// the first "_default"; "" when there is none. mirrors is the number of [host] tables in its hosts.toml. A file that is
// not TOML is an error: without it, mirrors would be passed over in silence. own is the credentials that the file has for
// mirrors, by host.
func hostDir(certsDirs []string, registry string) (dir string, own map[string]*credentials, mirrors int, err error) {
	fallback := ""
	for _, root := range certsDirs {
		found, err := config.HostDirFromRoot(root)(registry)
		if err != nil {
			continue // none there
		}
		if filepath.Base(found) != "_default" {
			dir = found
			break
		}
		if fallback == "" {
			fallback = found
		}
	}
	if dir == "" {
		dir = fallback
	}
	if dir == "" {
		return "", nil, 0, nil
	}
	path := filepath.Join(dir, "hosts.toml")
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return dir, nil, 0, nil // certificates alone, in docker's layout
	}
	if err != nil {
		return "", nil, 0, fault.New(fault.Precondition, "configuration of registry %s: %w", registry, err)
	}
	var file struct {
		Host map[string]struct {
			Auth map[string]string `toml:"auth"`
		} `toml:"host"`
	}
	if err := toml.Unmarshal(body, &file); err != nil {
		return "", nil, 0, fault.New(fault.Precondition, "configuration of registry %s: %s is not valid TOML: %w", registry, path, err)
	}
	own = make(map[string]*credentials)
	for address, h := range file.Host {
		if h.Auth == nil {
			continue
		}
		host, c, err := mirrorAuth(address, h.Auth, dir)
		if err != nil {
			return "", nil, 0, fault.New(fault.Precondition, "configuration of registry %s: %s: [host.%q.auth]: %w", registry, path, address, err)
		}
		own[host] = c
	}
	return dir, own, len(file.Host), nil
}

// hostsFile is where the configuration of the registry is, or would be first looked for.
func hostsFile(certsDirs []string, registry string) string {
	dir, _, _, err := hostDir(certsDirs, registry)
	if (err != nil || dir == "" || filepath.Base(dir) == "_default") && len(certsDirs) > 0 {
		dir = filepath.Join(certsDirs[0], registry)
	}
	return filepath.Join(dir, "hosts.toml")
}

// mirrorAuth reads the table [host."…".auth], which is our own; containerd passes over it. Beside the fields of
// [Auth] it may have "file": a file of docker's format, from which the host's entry is taken.
func mirrorAuth(address string, table map[string]string, dir string) (host string, c *credentials, err error) {
	full := address
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil {
		return "", nil, err
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
				value = filepath.Join(dir, value)
			}
			if a, err = dockerAuth(value, u.Host); err != nil {
				return "", nil, err
			}
		default:
			return "", nil, fmt.Errorf("the key %q is not known; there are username, password, auth, identity_token, registry_token and file", key)
		}
	}
	if _, ok := table["file"]; ok && len(table) > 1 {
		return "", nil, errors.New("the key file stands alone")
	}
	c, err = a.decode()
	return u.Host, c, err
}

// dockerAuth takes a host's credentials from a file as "docker login" writes it.
func dockerAuth(path, host string) (Auth, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return Auth{}, err
	}
	var file struct {
		Auths map[string]struct {
			Username, Password, Auth     string
			IdentityToken, RegistryToken string
		}
	}
	if err := json.Unmarshal(body, &file); err != nil {
		return Auth{}, fmt.Errorf("%s is not a file of docker's format", path) // its content is secret
	}
	for address, a := range file.Auths {
		if at, err := addressHost(address); err == nil && at == canonicalHost(host) {
			return Auth{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, nil
		}
	}
	return Auth{}, fmt.Errorf("%s has no credentials for %s", path, host)
}
