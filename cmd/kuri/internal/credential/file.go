package credential

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Credential is what one registry is told. The zero value is none.
type Credential struct {
	Username, Password string
	IdentityToken      string // stands for both: it is exchanged for an access token
	RegistryToken      string // is the access token itself
}

// Path returns the file that is meant: the one that is named, or that of the environment (REGISTRY_AUTH_FILE, or config.json
// in DOCKER_CONFIG), or config.json in .docker of the home directory.
func Path(named string, env func(string) string) (string, error) {
	if path := cmp.Or(named, env("REGISTRY_AUTH_FILE")); path != "" {
		return path, nil
	}
	if dir := env("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json"), nil
	}
	home := env("HOME")
	if home == "" {
		return "", errors.New("where are the credentials? HOME is not set; REGISTRY_AUTH_FILE or --authfile names the file")
	}
	return filepath.Join(home, ".docker", "config.json"), nil
}

// File is a configuration file in docker's format.
type File struct {
	path string
	rest map[string]json.RawMessage // the whole file, by its keys

	auths   map[string]json.RawMessage
	store   string            // name of the helper for all registries; "" for none
	helpers map[string]string // registry -> name of its helper
}

// Open reads the file. One that is not there is empty.
func Open(path string) (*File, error) {
	f := &File{path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(strings.TrimSpace(string(data))) == 0 {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	known := struct {
		Auths   *map[string]json.RawMessage `json:"auths"`
		Store   *string                     `json:"credsStore"`
		Helpers *map[string]string          `json:"credHelpers"`
	}{&f.auths, &f.store, &f.helpers}
	for _, into := range []any{&f.rest, &known} {
		if err := json.Unmarshal(data, into); err != nil {
			return nil, fmt.Errorf("read credentials: %s is not in the format of docker's config.json: %w", path, err)
		}
	}
	return f, nil
}

// Path returns where the file is.
func (f *File) Path() string { return f.path }

// entry is one of auths.
type entry struct {
	Auth          string `json:"auth,omitempty"` // base64 of username:password
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

func (e entry) credential() (Credential, error) {
	c := Credential{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth == "" {
		return c, nil
	}
	raw, err := base64.StdEncoding.DecodeString(e.Auth)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok {
		return c, errors.New("its auth is not the base64 of USER:PASSWORD")
	}
	c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	return c, nil
}

// Find returns the credential for a repository of a registry, such as "library/busybox" of "docker.io"; the zero value when
// there is none. The longest of the file's keys that fits decides (registry.example/team before registry.example), in the
// forms that docker and podman write; a helper of the registry comes before the file's own entries, and those before the
// helper of all.
func (f *File) Find(ctx context.Context, registry, repository string) (Credential, error) {
	keys := keysOf(registry)
	for _, key := range keys {
		if helper := f.helpers[key]; helper != "" {
			c, found, err := get(ctx, helper, key)
			if found || err != nil {
				return c, err
			}
		}
	}
	for path := strings.Trim(repository, "/"); path != "" && path != "." && path != "/"; path = filepath.Dir(path) {
		if c, found, err := f.own(registry + "/" + path); found || err != nil {
			return c, err
		}
	}
	for _, key := range keys {
		if c, found, err := f.own(key); found || err != nil {
			return c, err
		}
	}
	if f.store == "" {
		return Credential{}, nil
	}
	for _, key := range keys {
		if c, found, err := get(ctx, f.store, key); found || err != nil {
			return c, err
		}
	}
	return Credential{}, nil
}

// Kept returns what is kept of a registry, by what it is for: the registry, or the beginning of repositories, such as
// "registry.example/team". The longest that fits a repository has what Find returns for it.
func (f *File) Kept(ctx context.Context, registry string) (map[string]Credential, error) {
	kept := make(map[string]Credential)
	all, err := f.Find(ctx, registry, "")
	if err != nil {
		return nil, err
	}
	if all != (Credential{}) {
		kept[registry] = all
	}
	for key := range f.auths {
		path, ok := strings.CutPrefix(key, registry+"/")
		if !ok || path == "" || path != strings.Trim(path, "/") {
			continue
		}
		c, err := f.Find(ctx, registry, path)
		if err != nil {
			return nil, err
		}
		if c != (Credential{}) {
			kept[registry+"/"+path] = c
		}
	}
	return kept, nil
}

// Registries returns the registries that the file has an entry for, sorted, each once.
func (f *File) Registries() []string {
	var found []string
	for key := range f.auths {
		_, rest, ok := strings.Cut(key, "://")
		if !ok {
			rest = key
		}
		host, _, _ := strings.Cut(rest, "/")
		if keysOf(host)[0] == dockerHub {
			host = "docker.io"
		}
		found = append(found, host)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// own looks for a key among the file's entries. An empty entry only says that a helper has it.
func (f *File) own(key string) (Credential, bool, error) {
	raw, ok := f.auths[key]
	if !ok {
		return Credential{}, false, nil
	}
	var e entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return Credential{}, false, fmt.Errorf("%s: the entry of %s: %w", f.path, key, err)
	}
	c, err := e.credential()
	if err != nil {
		return Credential{}, false, fmt.Errorf("%s: the entry of %s: %w", f.path, key, err)
	}
	return c, c != Credential{}, nil
}

// dockerHub is the key that docker has used for its own registry from the beginning.
const dockerHub = "https://index.docker.io/v1/"

// keysOf returns the keys that a registry may have in a file, the one to write first.
func keysOf(registry string) []string {
	if registry == "docker.io" || registry == "index.docker.io" || registry == "registry-1.docker.io" {
		return []string{dockerHub, "docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io", "https://registry-1.docker.io"}
	}
	return []string{registry, "https://" + registry, "https://" + registry + "/", "https://" + registry + "/v1/", "https://" + registry + "/v2/", "http://" + registry, "http://" + registry + "/"}
}

// Keep notes the credential of a registry, in the registry's helper where there is one.
func (f *File) Keep(ctx context.Context, registry string, c Credential) error {
	key := keysOf(registry)[0]
	e := entry{IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	if helper := f.helperOf(registry); helper != "" {
		if err := store(ctx, helper, key, c); err != nil {
			return err
		}
		e = entry{} // the file says that there is one, as docker's does
	} else if c.Username != "" {
		e.Auth = base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if f.auths == nil {
		f.auths = make(map[string]json.RawMessage)
	}
	for _, old := range keysOf(registry) {
		delete(f.auths, old)
	}
	f.auths[key] = raw
	return f.write()
}

// Forget takes away what is kept of a registry and tells whether there was anything.
func (f *File) Forget(ctx context.Context, registry string) (bool, error) {
	had := false
	helper := f.helperOf(registry)
	for _, key := range keysOf(registry) {
		if _, ok := f.auths[key]; ok {
			had = true
			delete(f.auths, key)
		}
		if helper == "" {
			continue
		}
		_, found, err := get(ctx, helper, key)
		if err != nil {
			return had, err
		}
		if found {
			had = true
			if err := erase(ctx, helper, key); err != nil {
				return had, err
			}
		}
	}
	if !had {
		return false, nil
	}
	return true, f.write()
}

func (f *File) helperOf(registry string) string {
	for _, key := range keysOf(registry) {
		if helper := f.helpers[key]; helper != "" {
			return helper
		}
	}
	return f.store
}

// write replaces the file; where it is a link, what it leads to.
func (f *File) write() error {
	if f.rest == nil {
		f.rest = make(map[string]json.RawMessage)
	}
	var err error
	if f.rest["auths"], err = json.Marshal(f.auths); err != nil {
		return err
	}
	data, err := json.MarshalIndent(f.rest, "", "\t")
	if err != nil {
		return err
	}
	path := f.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".config.json.*") // with mode 0600
	if err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	if err := errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("keep credentials in %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	return nil
}
