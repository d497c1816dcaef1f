package credential

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hashed is the output of htpasswd -B for "s3cret:x".
const hashed = "$2b$04$YKvJxQqkYt701WahclL5zOBrqYmus3OTENHLkeg2Rd15oYCSuLbg."

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, text string) *File {
	t.Helper()
	f, err := Open(write(t, filepath.Join(t.TempDir(), "config.json"), text, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// helper puts a credential helper into PATH. It stores each registry's answer in a file below dir.
func helper(t *testing.T, name string) (dir string) {
	t.Helper()
	bin, dir := t.TempDir(), t.TempDir()
	write(t, filepath.Join(bin, "docker-credential-"+name), `#!/bin/sh
in=$(cat)
key() { echo "`+dir+`/$(printf %s "$1" | tr '/:' '__')"; }
case $1 in
get) [ -e "$(key "$in")" ] || { echo credentials not found in native keychain; exit 1; }; cat "$(key "$in")" ;;
store) url=$(printf %s "$in" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/'); printf %s "$in" > "$(key "$url")" ;;
erase) rm "$(key "$in")" ;;
esac
`, 0o755)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return dir
}

func TestPath(t *testing.T) {
	env := map[string]string{}
	get := func(k string) string { return env[k] }
	if p, err := Path("", get); err == nil {
		t.Errorf("without a home it is %s", p)
	}
	for _, step := range []struct{ key, value, want string }{
		{"HOME", "/h", "/h/.docker/config.json"},
		{"DOCKER_CONFIG", "/d", "/d/config.json"},
		{"REGISTRY_AUTH_FILE", "/r.json", "/r.json"},
	} {
		env[step.key] = step.value
		if p, err := Path("", get); err != nil || p != step.want {
			t.Errorf("with %s: %s %v", step.key, p, err)
		}
	}
	if p, err := Path("/f", get); err != nil || p != "/f" {
		t.Error(p, err)
	}
}

func TestFind(t *testing.T) {
	auth := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	f := open(t, fmt.Sprintf(`{"auths": {
		"https://index.docker.io/v1/": {"auth": %q}, "quay.example": {"auth": %q}, "quay.example/team": {"username": "team", "password": "p"},
		"https://old.example/v1/": {"auth": %q}, "token.example": {"identitytoken": "id"}, "bad.example": {"auth": "?"}, "empty.example": {}, "list.example": []
	}}`, auth("hub:a:b"), auth("quay:q"), auth("old:o")))
	for _, tt := range []struct {
		registry, repository string
		want                 Credential
		bad                  bool
	}{
		{"docker.io", "library/busybox", Credential{Username: "hub", Password: "a:b"}, false},
		{"quay.example", "other/x", Credential{Username: "quay", Password: "q"}, false},
		{"quay.example", "team/x", Credential{Username: "team", Password: "p"}, false},
		{"quay.example", "teams/x", Credential{Username: "quay", Password: "q"}, false},
		{"old.example", "x", Credential{Username: "old", Password: "o"}, false},
		{"token.example", "x", Credential{IdentityToken: "id"}, false},
		{"empty.example", "x", Credential{}, false},
		{"none.example", "x", Credential{}, false},
		{"bad.example", "x", Credential{}, true},
		{"list.example", "x", Credential{}, true},
	} {
		got, err := f.Find(t.Context(), tt.registry, tt.repository)
		if (err != nil) != tt.bad || !tt.bad && got != tt.want {
			t.Errorf("%s/%s: %+v %v", tt.registry, tt.repository, got, err)
		}
	}
}

func TestHelpers(t *testing.T) {
	dir := helper(t, "kuritest")
	write(t, filepath.Join(dir, "own.example"), `{"ServerURL":"own.example","Username":"me","Secret":"hidden"}`, 0o600)
	write(t, filepath.Join(dir, "token.example"), `{"Username":"<token>","Secret":"id"}`, 0o600)
	f := open(t, `{"credHelpers": {"own.example": "kuritest", "token.example": "kuritest", "absent.example": "kuritest", "lost.example": "not-in-path", "evil.example": "../x",
		"lost.but.example": "not-in-path"},
		"auths": {"lost.but.example": {"username": "file", "password": "f"},
		"absent.example": {"username": "file", "password": "f"}, "own.example": {"username": "file", "password": "f"}}}`)
	for registry, want := range map[string]Credential{
		"own.example":      {Username: "me", Password: "hidden"},
		"token.example":    {IdentityToken: "id"},
		"absent.example":   {Username: "file", Password: "f"},
		"lost.but.example": {Username: "file", Password: "f"},
	} {
		if got, err := f.Find(t.Context(), registry, "x"); err != nil || got != want {
			t.Errorf("%s: %+v %v", registry, got, err)
		}
	}
	for registry, says := range map[string]string{"lost.example": "not in PATH", "evil.example": "without a path"} {
		if _, err := f.Find(t.Context(), registry, "x"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", registry, err)
		}
	}

	all := open(t, `{"credsStore": "kuritest", "HttpHeaders": {"X": "y"}}`)
	if err := all.Keep(t.Context(), "docker.io", Credential{Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	if got, err := all.Find(t.Context(), "docker.io", "library/x"); err != nil || got != (Credential{Username: "u", Password: "p"}) {
		t.Errorf("%+v %v", got, err)
	}
	text, _ := os.ReadFile(all.Path())
	if strings.Contains(string(text), base64.StdEncoding.EncodeToString([]byte("u:p"))) || !strings.Contains(string(text), `"X": "y"`) {
		t.Errorf("the file is %s", text)
	}
	if had, err := all.Forget(t.Context(), "docker.io"); !had || err != nil {
		t.Error(had, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("the helper has %v", left)
	}
}

func TestHelperThatHangsOrBabbles(t *testing.T) {
	bin := t.TempDir()
	write(t, filepath.Join(bin, "docker-credential-hang"), "#!/bin/sh\nsleep 100\n", 0o755)
	write(t, filepath.Join(bin, "docker-credential-babble"), "#!/bin/sh\nexec yes\n", 0o755)
	write(t, filepath.Join(bin, "docker-credential-refuse"), "#!/bin/sh\necho the vault is sealed >&2\nexit 3\n", 0o755)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, _, err := get(ctx, "hang", "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, _, err := get(t.Context(), "babble", "x"); err == nil {
		t.Error("endless output is an answer")
	}
	if _, _, err := get(t.Context(), "refuse", "x"); err == nil || !strings.Contains(err.Error(), "the vault is sealed") {
		t.Error(err)
	}
}

func TestKeepAndForget(t *testing.T) {
	real := write(t, filepath.Join(t.TempDir(), "real.json"), `{"auths": {"https://reg.example/v1/": {"auth": "eDp5"}}, "detachKeys": "ctrl-x"}`, 0o644)
	link := filepath.Join(t.TempDir(), "sub", "config.json")
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	f, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Keep(t.Context(), "reg.example", Credential{Username: "a", Password: "b"}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error("the link was replaced", err)
	}
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	var now map[string]any
	text, _ := os.ReadFile(real)
	if err := json.Unmarshal(text, &now); err != nil || now["detachKeys"] != "ctrl-x" || len(now["auths"].(map[string]any)) != 1 {
		t.Errorf("%s %v", text, err)
	}
	again, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Find(t.Context(), "reg.example", "x"); err != nil || got != (Credential{Username: "a", Password: "b"}) {
		t.Error(got, err)
	}
	if had, err := again.Forget(t.Context(), "reg.example"); !had || err != nil {
		t.Error(had, err)
	}
	if had, err := again.Forget(t.Context(), "reg.example"); had || err != nil {
		t.Error(had, err)
	}
	for _, text := range []string{"[]", `{"auths": []}`, `{"credsStore": {}}`, `{"credHelpers": {"a": 1}}`, `"x"`} {
		if _, err := Open(write(t, filepath.Join(t.TempDir(), "x"), text, 0o600)); err == nil || strings.Contains(err.Error(), "Go ") ||
			!strings.Contains(err.Error(), "must be an object") {
			t.Errorf("%s: %v", text, err)
		}
	}
	odd := open(t, `{"auths": {"a.example": [], "b.example": {"auth": 5}}}`)
	for _, registry := range []string{"a.example", "b.example"} {
		if _, err := odd.Find(t.Context(), registry, "x"); err == nil || strings.Contains(err.Error(), "Go ") ||
			!strings.Contains(err.Error(), registry+": it must be an object") {
			t.Errorf("%s: %v", registry, err)
		}
	}
}

// TestVerifyWithDebiansRegistry verifies credentials with a real registry and a password file.
func TestVerifyWithDebiansRegistry(t *testing.T) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed: make test-deps")
	}
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	passwords := write(t, filepath.Join(dir, "htpasswd"), "me:"+hashed+"\n", 0o600)
	config := write(t, filepath.Join(dir, "config.yml"), fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\nauth: {htpasswd: {realm: test, path: %s}}\n",
		filepath.Join(dir, "data"), addr, passwords), 0o600)
	cmd := exec.Command(program, "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := Verify(t.Context(), reach(t, nil, addr), addr, Credential{Username: "me", Password: "s3cret:x"}); err != nil {
		t.Error(err)
	}
	var refused *RefusedError
	if err := Verify(t.Context(), reach(t, nil, addr), addr, Credential{Username: "me", Password: "wrong"}); !errors.As(err, &refused) || refused.By != addr {
		t.Errorf("a wrong password: %v", err)
	}
}

// TestVerifyWithATokenServer verifies credentials over TLS, with a separate token server.
func TestVerifyWithATokenServer(t *testing.T) {
	var server *httptest.Server
	server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && user == "me" && password == "right" && r.URL.Query().Get("service") == "reg" && r.URL.Query().Get("account") == "me":
			fmt.Fprint(w, `{"access_token":"t0ken"}`)
		case r.URL.Path == "/token":
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"details":"incorrect username or password"}`)
		case r.Header.Get("Authorization") != "Bearer t0ken":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, server.URL))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "https://")
	if err := Verify(t.Context(), &Host{base: &url.URL{Scheme: "https", Host: host, Path: "/v2/"}, client: server.Client()}, host, Credential{Username: "me", Password: "right"}); err != nil {
		t.Error(err)
	}
	var refused *RefusedError
	if err := Verify(t.Context(), &Host{base: &url.URL{Scheme: "https", Host: host, Path: "/v2/"}, client: server.Client()}, host, Credential{Username: "me", Password: "wrong"}); !errors.As(err, &refused) || refused.Reason != "incorrect username or password" {
		t.Error(err)
	}
}

// Verify understands a registry's challenge in any spelling that a pull does.
func TestVerifyOddChallenges(t *testing.T) {
	for _, row := range []struct{ challenge, token string }{
		{`Bearer realm="/token"`, `{"token":"t0ken"}`},
		{`Bearer realm=HOST/token,service=reg`, `{"token":"t0ken"}`},
		{`Basic realm="x", Bearer realm="HOST/token"`, `{"access_token":" t0ken "}`},
		{`Negotiate, Bearer REALM = "HOST/token"`, "\xef\xbb\xbf" + `{"token":null,"access_token":"t0ken"}` + "\n-->"},
		{`Basic realm="x"`, ""},
		{`Bearer service="none", Basic realm="x"`, ""},
	} {
		var server *httptest.Server
		server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, password, _ := r.BasicAuth()
			switch {
			case r.URL.Path == "/token" && password == "right":
				w.WriteHeader(http.StatusCreated)
				io.WriteString(w, row.token)
			case r.URL.Path == "/token", row.token != "" && r.Header.Get("Authorization") != "Bearer t0ken", row.token == "" && password != "right":
				w.Header().Set("WWW-Authenticate", strings.ReplaceAll(row.challenge, "HOST", server.URL))
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		at := reach(t, nil, strings.TrimPrefix(server.URL, "http://"))
		if err := Verify(t.Context(), at, "x", Credential{Username: "me", Password: "right"}); err != nil {
			t.Errorf("%s: %v", row.challenge, err)
		}
		var refused *RefusedError
		if err := Verify(t.Context(), at, "x", Credential{Username: "me", Password: "wrong"}); !errors.As(err, &refused) {
			t.Errorf("%s, wrong password: %v", row.challenge, err)
		}
		server.Close()
	}
}

// TestVerifySendsNothingInTheClear uses a token server on another host without TLS.
func TestVerifySendsNothingInTheClear(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, has := r.BasicAuth(); has {
			t.Error("the credentials were sent")
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://elsewhere.invalid/token",service="reg"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer server.Close()
	err := Verify(t.Context(), reach(t, nil, strings.TrimPrefix(server.URL, "http://")), strings.TrimPrefix(server.URL, "http://"), Credential{Username: "me", Password: "p"})
	if err == nil || !strings.Contains(err.Error(), "not asked over TLS") {
		t.Error(err)
	}
}

func reach(t *testing.T, dirs []string, registry string) *Host {
	t.Helper()
	h, err := Reach(dirs, registry)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"auths":{"a":{"auth":"eDp5"}},"credsStore":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Open(write(t, filepath.Join(t.TempDir(), "c"), string(data), 0o600))
		if err == nil {
			file.store, file.helpers = "", nil // do not run programs named by the fuzzer
			_, _ = file.Find(t.Context(), "a", "b/c")
		}
	})
}
