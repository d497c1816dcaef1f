package credential

import (
	"bytes"
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

// Credential authenticates to one registry. The zero value means anonymous access.
type Credential struct {
	Username, Password string
	IdentityToken      string // instead of both; it is exchanged for an access token
	RegistryToken      string // an access token
}

// Path returns the path of the file: named, or from the environment (REGISTRY_AUTH_FILE, or
// config.json in DOCKER_CONFIG), or .docker/config.json in the home directory.
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
	rest map[string]json.RawMessage // the whole file, by key

	auths   map[string]json.RawMessage
	store   string            // the helper for all registries; "" for none
	helpers map[string]string // helper by registry
}

// Open reads the file. A missing file is empty.
func Open(path string) (*File, error) {
	f := &File{path: path}
	data, err := os.ReadFile(path)
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
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
			var wrong *json.UnmarshalTypeError // it would name types of Go
			if errors.As(err, &wrong) {
				err = errors.New("it must be an object with objects auths and credHelpers and a string credsStore")
			}
			return nil, fmt.Errorf("read credentials: %s is not in the format of docker's config.json: %w", path, err)
		}
	}
	return f, nil
}

// Path returns the path of the file.
func (f *File) Path() string { return f.path }

// entry is an entry of auths.
type entry struct {
	Auth          string `json:"auth,omitempty"` // base64 of username:password
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// parseEntry returns the credential of an entry; the zero value if it is empty.
func parseEntry(raw []byte) (Credential, error) {
	var e entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return Credential{}, errors.New("it must be an object of strings, such as auth")
	}
	return e.credential()
}

func (e entry) credential() (Credential, error) {
	c := Credential{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth == "" {
		return c, nil
	}
	raw, err := decodePair(e.Auth)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || user == "" && password != "" {
		return c, errors.New("its auth is not the base64 of USER:PASSWORD")
	}
	c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	return c, nil
}

// decodePair decodes base64 in the variants found in such files: with or without padding, in either
// alphabet, with line breaks.
func decodePair(text string) ([]byte, error) {
	text = strings.TrimRight(strings.Join(strings.Fields(text), ""), "=")
	return base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(text))
}

// Find returns the credential for a repository of a registry, such as "library/busybox" of
// "docker.io", or the zero value if there is none. The longest matching key of the file counts
// (registry.example/team before registry.example), in any spelling of docker, podman and users, then a
// pattern such as *.registry.example, as a kubelet takes it. A helper for the registry takes precedence
// over the file's own entries, and those over the helper for all registries. As in docker, a helper
// that fails does not hide the other places; its error is returned if none of them has a credential.
func (f *File) Find(ctx context.Context, registry, repository string) (Credential, error) {
	at := place{hostOf("", registry), strings.Trim(repository, "/")}
	var failed error
	for _, key := range keysFor(at, f.helpers) {
		if f.helpers[key] == "" {
			continue // exempt from the helper for all registries
		}
		c, found, err := f.ask(ctx, f.helpers[key], registry, key)
		if found {
			return c, nil
		}
		failed = cmp.Or(failed, err)
	}
	marks := keysFor(at, f.auths)
	for _, key := range slices.Concat(marks, patternsFor(at, f.auths)) {
		if c, found, err := f.own(key); found || err != nil {
			return c, err
		}
	}
	exempt := func(key string) bool { return f.helpers[key] == "" }
	if f.store == "" || slices.ContainsFunc(keysFor(at, f.helpers), exempt) {
		return Credential{}, failed
	}
	c, found, err := f.ask(ctx, f.store, registry, marks...)
	if found {
		return c, nil
	}
	return Credential{}, cmp.Or(failed, err)
}

// ask requests a registry's credential from a helper, first by docker's address for it and then by
// the file's keys.
func (f *File) ask(ctx context.Context, helper, registry string, keys ...string) (c Credential, found bool, err error) {
	for _, address := range helperAddresses(registry, keys...) {
		if c, found, err = get(ctx, helper, address); found || err != nil {
			break
		}
	}
	return c, found, err
}

// Kept returns all credentials for a registry, by their scope: the registry, or a prefix of
// repositories such as "registry.example/team". For a repository, the longest matching scope has
// the same credential as Find.
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
		at := placeOf(key)
		if at.host != hostOf("", registry) || at.path == "" || strings.HasPrefix(at.path, "/") {
			continue
		}
		c, err := f.Find(ctx, registry, at.path)
		if err != nil {
			return nil, err
		}
		if c != (Credential{}) {
			kept[registry+"/"+at.path] = c
		}
	}
	return kept, nil
}

// Registries returns the registries with an entry or a helper in the file, sorted and without
// duplicates.
func (f *File) Registries() []string {
	var found []string
	for key := range f.auths {
		if at := placeOf(key); !at.pattern() {
			found = append(found, at.host)
		}
	}
	for key := range f.helpers {
		found = append(found, placeOf(key).host)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// own returns the credential of a key in the file's entries. An empty entry only means that a
// helper has it.
func (f *File) own(key string) (Credential, bool, error) {
	raw, ok := f.auths[key]
	if !ok {
		return Credential{}, false, nil
	}
	c, err := parseEntry(raw)
	if err != nil {
		return Credential{}, false, fmt.Errorf("%s: the entry of %s: %w", f.path, key, err)
	}
	return c, c != Credential{}, nil
}

// Keep stores the credential of a registry, in the registry's helper if there is one.
func (f *File) Keep(ctx context.Context, registry string, c Credential) error {
	key := address(registry)
	e := entry{IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	if helper := f.helperOf(registry); helper != "" {
		if err := store(ctx, helper, key, c); err != nil {
			return err
		}
		e = entry{} // marks the registry as logged in, as docker does
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
	for _, old := range f.spellings(registry) {
		delete(f.auths, old)
	}
	f.auths[key] = raw
	return f.write()
}

// Forget removes the credentials of a registry and reports whether there were any.
func (f *File) Forget(ctx context.Context, registry string) (bool, error) {
	had := false
	spellings := f.spellings(registry)
	if helper := f.helperOf(registry); helper != "" {
		for _, address := range helperAddresses(registry, spellings...) {
			_, found, err := get(ctx, helper, address)
			if err != nil {
				return had, err
			}
			if found {
				had = true
				if err := erase(ctx, helper, address); err != nil {
					return had, err
				}
			}
		}
	}
	for _, key := range spellings {
		had = true
		delete(f.auths, key)
	}
	if !had {
		return false, nil
	}
	return true, f.write()
}

// spellings returns the keys of the file's entries for a registry as a whole.
func (f *File) spellings(registry string) []string {
	return keysFor(place{host: hostOf("", registry)}, f.auths)
}

// helperOf returns the helper for a registry; "" if the file itself has its credentials.
func (f *File) helperOf(registry string) string {
	for _, key := range keysFor(place{host: hostOf("", registry)}, f.helpers) {
		return f.helpers[key]
	}
	return f.store
}

// write replaces the file. If it is a symlink, it replaces the target.
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
	tmp, err := os.CreateTemp(filepath.Dir(path), ".config.json.*") // creates it with mode 0600
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
