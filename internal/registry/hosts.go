package registry

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

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
func lookupHosts(ctx context.Context, certsDirs []string, registry string, creds *credentials) ([]docker.RegistryHost, []*http.Transport, error) {
	dir, configured, err := hostDir(certsDirs, registry)
	if err != nil {
		return nil, nil, err
	}
	var transports []*http.Transport
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     func(string) (string, error) { return dir, nil },
		Credentials: creds.forHost,
		UpdateClient: func(client *http.Client) error {
			if t, ok := client.Transport.(*http.Transport); ok {
				t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, connsPerHost
				t.ReadBufferSize = 64 << 10
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
		if creds.bearer != "" {
			hosts[i].Authorizer = bearer{creds}
		}
	}
	return hosts, transports, nil
}

// hostDir finds the directory that configures the registry, in the first of certsDirs that has one by its name, else
// the first "_default"; "" when there is none. mirrors is the number of [host] tables in its hosts.toml. A file that is
// not TOML is an error: without it, mirrors would be passed over in silence.
func hostDir(certsDirs []string, registry string) (dir string, mirrors int, err error) {
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
		return "", 0, nil
	}
	path := filepath.Join(dir, "hosts.toml")
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return dir, 0, nil // certificates alone, in docker's layout
	}
	if err != nil {
		return "", 0, fault.New(fault.Precondition, "configuration of registry %s: %w", registry, err)
	}
	var file struct {
		Host map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(body, &file); err != nil {
		return "", 0, fault.New(fault.Precondition, "configuration of registry %s: %s is not valid TOML: %w", registry, path, err)
	}
	return dir, len(file.Host), nil
}
