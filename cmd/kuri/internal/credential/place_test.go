package credential

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Every spelling of a registry matches, and no other registry's.
func TestSpellings(t *testing.T) {
	me := Credential{Username: "me", Password: "p:q"}
	for _, row := range []struct {
		registry, repository string
		fits, not            []string // keys that match, and keys that do not
	}{
		{"docker.io", "library/busybox",
			[]string{"https://index.docker.io/v1/", "https://index.docker.io/v1", "https://index.docker.io/v2/",
				"index.docker.io/v1/", "index.docker.io", "docker.io", "Docker.IO",
				"registry-1.docker.io", "https://registry-1.docker.io/v2/", "https://docker.io", "https://docker.io/",
				"http://index.docker.io/v1/", "index.docker.io:443",
				"docker.io/library", "docker.io/library/busybox", "https://registry.hub.docker.com"},
			[]string{"docker.io/library/bus", "docker.io/team", "hub.docker.com", "index.docker.io:5000", "docker.io.example"}},
		{"registry.example", "team/app",
			[]string{"registry.example", "registry.example/", "REGISTRY.example", "https://registry.example",
				"http://registry.example", "HTTPS://registry.example/", "https://registry.example/v1/",
				"https://registry.example/v2/", "https://registry.example/v2", "registry.example/v2/", "registry.example:443",
				"https://registry.example:443/", "http://registry.example:80", " registry.example ",
				"https://registry.example/some/where", "registry.example/team", "registry.example/team/",
				"registry.example/team/app"},
			[]string{"registry.example:5000", "registry.example:80", "other.registry.example", "example", "registry.example.",
				"registry.example/team/ap", "registry.example/app", "https://x@y/registry.example"}},
		{"registry.example:5000", "app",
			[]string{"registry.example:5000", "https://registry.example:5000/v2/", "http://registry.example:5000",
				"registry.example:5000/app"},
			[]string{"registry.example", "registry.example:5001", "registry.example:50000"}},
		{"127.0.0.1:5000", "app", []string{"127.0.0.1:5000", "http://127.0.0.1:5000/"},
			[]string{"127.0.0.1", "localhost:5000"}},
		{"[::1]:5000", "app", []string{"[::1]:5000", "http://[::1]:5000/v2/"}, []string{"[::1]"}},
	} {
		for _, key := range slices.Concat(row.fits, row.not) {
			f := open(t, fmt.Sprintf(`{"auths": {%q: {"auth": "bWU6cDpx"}, "other.example": {"auth": "?"}}}`, key))
			want := Credential{}
			if slices.Contains(row.fits, key) {
				want = me
			}
			if got, err := f.Find(t.Context(), row.registry, row.repository); got != want || err != nil {
				t.Errorf("%s/%s by %q: %+v, %v", row.registry, row.repository, key, got, err)
			}
			kept, err := f.Kept(t.Context(), row.registry)
			if err != nil || (len(kept) == 0) != (len(want.Username) == 0) && !strings.Contains(key, "/team") &&
				!strings.HasSuffix(key, "/app") && !strings.Contains(key, "/library") {
				t.Errorf("kept of %s by %q: %v, %v", row.registry, key, kept, err)
			}
		}
	}
}

// A key may be a pattern of hosts, as a kubelet takes it. Any other spelling takes precedence.
func TestPatterns(t *testing.T) {
	f := open(t, `{"auths": {
		"*.registry.example": {"username": "any", "password": "1"},
		"*.registry.example/team": {"username": "team", "password": "2"},
		"own.registry.example": {"username": "own", "password": "3"},
		"https://*.registry.example:5000/v2/": {"username": "port", "password": "4"},
		"r?g*.*.test": {"username": "test", "password": "5"}}}`)
	for at, user := range map[string]string{"a.registry.example/x": "any", "A.registry.example:443/x": "any",
		"a.registry.example/team/x": "team", "a.registry.example/teams": "any", "own.registry.example/team/x": "own",
		"a.registry.example:5000/x": "port", "a.registry.example:5001/x": "", "registry.example/x": "",
		"a.b.registry.example/x": "", "rage.a.test/x": "test", "rug.b.test/x": "test", "rg.a.test/x": ""} {
		registry, repository, _ := strings.Cut(at, "/")
		if got, err := f.Find(t.Context(), registry, repository); got.Username != user || err != nil {
			t.Errorf("%s: %+v, %v", at, got, err)
		}
	}
	if got := f.Registries(); !slices.Equal(got, []string{"own.registry.example"}) {
		t.Errorf("registries: %q", got)
	}
	if had, err := f.Forget(t.Context(), "a.registry.example"); had || err != nil {
		t.Errorf("the pattern was removed with one of its hosts: %v", err)
	}
}

// Of several matching keys the longest counts, then docker's own spelling. A key without
// credentials hides no other.
func TestSeveralSpellings(t *testing.T) {
	f := open(t, `{"auths": {
		"https://index.docker.io/v1/": {"username": "hub", "password": "1"}, "docker.io": {"username": "short", "password": "2"}, "docker.io/team": {"username": "team", "password": "3"},
		"registry.example": {}, "https://registry.example/v1/": {"auth": "bWU6cDpx"}, "null.example": null}}`)
	for at, user := range map[string]string{"library/busybox": "hub", "team/app": "team", "teams/app": "hub"} {
		if got, err := f.Find(t.Context(), "docker.io", at); got.Username != user || err != nil {
			t.Errorf("%s: %+v, %v", at, got, err)
		}
	}
	if got, err := f.Find(t.Context(), "registry.example", "x"); got.Username != "me" || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got := f.Registries(); !slices.Equal(got, []string{"docker.io", "null.example", "registry.example"}) {
		t.Errorf("registries: %q", got)
	}
	if had, err := f.Forget(t.Context(), "docker.io"); !had || err != nil {
		t.Error(had, err)
	}
	again, err := Open(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Find(t.Context(), "docker.io", "library/busybox"); got != (Credential{}) || err != nil {
		t.Errorf("after the logout: %+v, %v", got, err)
	}
	if got, err := again.Find(t.Context(), "docker.io", "team/app"); got.Username != "team" || err != nil {
		t.Errorf("what is for some repositories: %+v, %v", got, err)
	}
}

func TestEntries(t *testing.T) {
	for entry, want := range map[string]*Credential{
		`{"auth": "bWU6cDpx"}`:   {Username: "me", Password: "p:q"},
		`{"auth": "bWU6cDpx\n"}`: {Username: "me", Password: "p:q"},
		`{"auth": "dTpw"}`:       {Username: "u", Password: "p"},
		`{"auth": "dTpwOnE"}`:    {Username: "u", Password: "p:q"}, // no padding
		`{"auth": "dTo="}`:       {Username: "u"},
		`{"auth": ""}`:           {},
		`{"auth": "Og=="}`:       {},
		`{"auth": "", "username": "u", "password": "p"}`: {Username: "u", Password: "p"},
		`{"email": "me@mail.example"}`:                   {},
		`{"identitytoken": "id", "auth": "MDAwOg=="}`:    {Username: "000", IdentityToken: "id"},
		`{"registrytoken": "access"}`:                    {RegistryToken: "access"},
		`{"auth": "OnNlY3JldA=="}`:                       nil, // no user
		`{"auth": "c2VjcmV0"}`:                           nil, // no colon
		`{"auth": "secret!"}`:                            nil,
		`"secret"`:                                       nil,
	} {
		got, err := open(t, fmt.Sprintf(`{"auths": {"registry.example": %s}}`, entry)).Find(t.Context(),
			"registry.example", "x")
		switch {
		case want == nil:
			if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "registry.example") {
				t.Errorf("%s: %v", entry, err)
			}
		case got != *want || err != nil:
			t.Errorf("%s: %+v, %v", entry, got, err)
		}
	}
	if got, err := open(t, "\xef\xbb\xbf{\"auths\": {\"x.example\": {\"auth\": \"dTpw\"}}}").Find(t.Context(), "x.example",
		"x"); got.Username != "u" || err != nil {
		t.Errorf("with a byte order mark: %+v, %v", got, err)
	}
}

// A helper is asked with all addresses by which it may know the registry, whatever the file's key
// for it.
func TestHelperAddresses(t *testing.T) {
	dir := helper(t, "kuritest")
	knows := func(address string) {
		t.Helper()
		left, _ := os.ReadDir(dir)
		for _, e := range left {
			os.Remove(filepath.Join(dir, e.Name()))
		}
		write(t, filepath.Join(dir, strings.NewReplacer("/", "_", ":", "_").Replace(address)),
			`{"Username":"me","Secret":"hidden"}`, 0o600)
	}
	for _, row := range []struct{ registry, config, known string }{
		{"docker.io", `{"credHelpers": {"docker.io": "kuritest"}}`, "https://index.docker.io/v1/"},
		{"docker.io", `{"credHelpers": {"https://index.docker.io/v1/": "kuritest"}}`, "https://index.docker.io/v1/"},
		{"docker.io", `{"credHelpers": {"index.docker.io": "kuritest"}}`, "index.docker.io"},
		{"docker.io", `{"credsStore": "kuritest"}`, "https://index.docker.io/v1/"},
		{"docker.io", `{"credsStore": "kuritest", "auths": {"https://registry-1.docker.io": {}}}`,
			"https://registry-1.docker.io"},
		{"registry.example", `{"credHelpers": {"https://registry.example/v2/": "kuritest"}}`, "registry.example"},
		{"registry.example", `{"credHelpers": {"REGISTRY.example": "kuritest"}}`, "https://registry.example"},
		{"registry.example", `{"credHelpers": {"registry.example/team": "kuritest", "registry.example": "not-there"}}`,
			"registry.example"},
		{"registry.example", `{"credsStore": "kuritest"}`, "https://registry.example"},
		{"registry.example", `{"credsStore": "kuritest", "auths": {"https://registry.example/v1/": {}}}`,
			"https://registry.example/v1/"},
		{"registry.example", `{"credsStore": "not-there", "credHelpers": {"registry.example": "kuritest"}}`,
			"registry.example"},
	} {
		knows(row.known)
		got, err := open(t, row.config).Find(t.Context(), row.registry, "team/app")
		if got != (Credential{Username: "me", Password: "hidden"}) || err != nil {
			t.Errorf("%s of %s: %+v, %v", row.registry, row.config, got, err)
		}
	}
	knows("registry.example")
	if got, err := open(t, `{"credsStore": "kuritest", "credHelpers": {"registry.example": ""}}`).Find(t.Context(),
		"registry.example", "x"); got != (Credential{}) || err != nil {
		t.Errorf("no helper for this one: %+v, %v", got, err)
	}
}

// Credentials and headers for the registry are not sent to the target of a redirect.
func TestVerifyIsRedirected(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Authorization", "X-Team", "Referer"} {
			if v := r.Header.Get(name); v != "" {
				t.Errorf("%s: %s", name, v)
			}
		}
	}))
	defer elsewhere.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, elsewhere.URL+"/v2/", http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	at := reach(t, nil, strings.TrimPrefix(server.URL, "http://"))
	at.header = http.Header{"X-Team": {"nuts"}}
	if err := Verify(t.Context(), at, "x", Credential{Username: "me", Password: "p"}); err != nil {
		t.Error(err)
	}
}
