package credential

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/kuri-cri/kuri/certsd"
)

// Host is a registry and its connection settings, for [Verify].
type Host struct {
	base   *url.URL // "https://registry.example/v2/"
	client *http.Client
	header http.Header
}

// Reach reads the connection settings of a registry itself, not of its mirrors, from the first of
// dirs that has them. The format is that of containerd's certs.d: REGISTRY/hosts.toml. Without that
// file, docker's format is used: *.crt files are CAs, and *.cert and *.key files are client
// certificates. "_default" is for registries without a directory.
func Reach(dirs []string, registry string) (*Host, error) {
	dir, err := hostDir(dirs, registry)
	if err != nil {
		return nil, fmt.Errorf("certificates of %s: %w", registry, err)
	}
	h, err := readHost(dir, registry)
	if err != nil {
		return nil, fmt.Errorf("certificates of %s in %s: %w", registry, dir, err)
	}
	return h, nil
}

// hostDir returns the directory of a registry; "" for none.
func hostDir(dirs []string, registry string) (string, error) {
	names := []string{registry}
	if n := strings.LastIndex(registry, ":"); n > 0 {
		names = []string{registry[:n] + "_" + registry[n+1:] + "_", registry} // for filesystems without colons in names
	}
	for _, names := range [][]string{names, {"_default"}} {
		for _, root := range dirs {
			for _, name := range names {
				dir := filepath.Join(root, name)
				_, err := os.Stat(dir)
				if err == nil {
					return dir, nil
				}
				if !errors.Is(err, fs.ErrNotExist) {
					return "", err
				}
			}
		}
	}
	return "", nil
}

// hostTable has the settings of a host in hosts.toml. Settings that only affect pulling are
// ignored.
type hostTable struct {
	CA           any            `toml:"ca"`     // a file or a list of files
	Client       any            `toml:"client"` // a file, files, or pairs of a certificate and its key
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
}

// readHost reads a registry's directory; dir may be "".
func readHost(dir, registry string) (*Host, error) {
	server := registry
	if hostOf("", registry) == "docker.io" {
		server = "registry-1.docker.io"
	}
	if dir == "" {
		return newHost(server, hostTable{}, dir)
	}
	body, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(body) == 0 {
		t, err := dockersFiles(dir)
		if err != nil {
			return nil, err
		}
		return newHost(server, t, dir)
	}
	if err != nil {
		return nil, err
	}
	var file struct {
		Server string               `toml:"server"`
		Hosts  map[string]hostTable `toml:"host"`
	}
	var own hostTable
	if err := errors.Join(toml.Unmarshal(body, &file), toml.Unmarshal(body, &own)); err != nil {
		return nil, fmt.Errorf("hosts.toml: %w", err)
	}
	if _, err := certsd.Check(body); err != nil { // as a pull does; unknown keys may be for another program
		return nil, fmt.Errorf("hosts.toml: %w", err)
	}
	if file.Server != "" {
		server = file.Server
	}
	at, err := parseServer(server)
	if err != nil {
		return nil, err
	}
	for address, table := range file.Hosts { // the registry may have a table, like its mirrors
		if u, err := parseServer(address); err == nil && u.Host == at.Host {
			return newHost(address, table, dir)
		}
	}
	return newHost(server, own, dir)
}

// parseServer parses a host or a URL.
func parseServer(server string) (*url.URL, error) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("%q is not the address of a registry", server)
	}
	return u, nil
}

func newHost(server string, t hostTable, dir string) (*Host, error) {
	base, err := parseServer(server)
	if err != nil {
		return nil, err
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	if !t.OverridePath && !strings.HasSuffix(base.Path, "/v2") {
		base.Path += "/v2"
	}
	base.Path += "/"
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if transport.TLSClientConfig, err = t.tls(dir); err != nil {
		return nil, err
	}
	header, err := t.headers()
	if err != nil {
		return nil, err
	}
	return &Host{base: base, client: &http.Client{Transport: transport}, header: header}, nil
}

func (t hostTable) tls(dir string) (*tls.Config, error) {
	config := &tls.Config{InsecureSkipVerify: t.SkipVerify != nil && *t.SkipVerify}
	files, err := texts("ca", t.CA)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if config.RootCAs == nil {
			if config.RootCAs, err = x509.SystemCertPool(); err != nil {
				return nil, err
			}
		}
		pem, err := os.ReadFile(below(dir, file))
		if err != nil {
			return nil, err
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s has no certificate in it", below(dir, file))
		}
	}
	pairs, err := clientPairs(t.Client)
	if err != nil {
		return nil, err
	}
	for _, pair := range pairs {
		cert, err := tls.LoadX509KeyPair(below(dir, pair[0]), below(dir, pair[1]))
		if err != nil {
			return nil, fmt.Errorf("client: %s: %w", pair[0], err)
		}
		config.Certificates = append(config.Certificates, cert)
	}
	return config, nil
}

func (t hostTable) headers() (http.Header, error) {
	header := make(http.Header)
	for name, value := range t.Header {
		values, err := texts("header."+name, value)
		if err != nil {
			return nil, err
		}
		header[http.CanonicalHeaderKey(name)] = values
	}
	return header, nil
}

// texts returns the value of a key: one text or a list.
func texts(key string, value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var all []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%s: expected a text, not %v", key, e)
			}
			all = append(all, s)
		}
		return all, nil
	}
	return nil, fmt.Errorf("%s: expected a text, or several, not %v", key, value)
}

// clientPairs returns the value of the key client: files with certificates and their keys. A single
// file has both.
func clientPairs(value any) ([][2]string, error) {
	list, ok := value.([]any)
	if !ok {
		files, err := texts("client", value)
		if err != nil || len(files) == 0 {
			return nil, err
		}
		return [][2]string{{files[0], files[0]}}, nil
	}
	var pairs [][2]string
	for _, e := range list {
		files, err := texts("client", e)
		switch {
		case err != nil:
			return nil, err
		case len(files) == 1 || len(files) == 2 && files[1] == "":
			pairs = append(pairs, [2]string{files[0], files[0]})
		case len(files) == 2:
			pairs = append(pairs, [2]string{files[0], files[1]})
		default:
			return nil, fmt.Errorf("client: expected a certificate and its key, not %v", e)
		}
	}
	return pairs, nil
}

// dockersFiles reads a directory in docker's format, without a hosts.toml.
func dockersFiles(dir string) (hostTable, error) {
	var t hostTable
	entries, err := os.ReadDir(dir)
	if err != nil {
		return t, err
	}
	var cas, pairs []any
	for _, e := range entries {
		switch name := e.Name(); filepath.Ext(name) {
		case ".crt":
			cas = append(cas, name)
		case ".cert":
			key := strings.TrimSuffix(name, ".cert") + ".key"
			if !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == key }) {
				return t, fmt.Errorf("%s has no %s beside it", name, key)
			}
			pairs = append(pairs, []any{name, key})
		}
	}
	t.CA, t.Client = cas, pairs
	return t, nil
}

// below returns the path of a file, which may be relative to dir.
func below(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}
