package registry

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

// headerRecorder records the headers that a server receives and must not receive.
type headerRecorder struct {
	mu   sync.Mutex
	seen []string
}

func (l *headerRecorder) note(r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range []string{"Authorization", "Cookie", "Referer", "X-Team"} {
		if v := r.Header.Get(name); v != "" {
			l.seen = append(l.seen, name+": "+v)
		}
	}
}

func (l *headerRecorder) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := strings.Join(l.seen, "; ")
	l.seen = nil
	return told
}

// serveAt starts a server at an address of this machine, with TLS or without.
func serveAt(t *testing.T, ip string, withTLS bool, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Listener.Close()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Skipf("SKIP: no second loopback address: %v", err)
	}
	srv.Listener = l
	if withTLS {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv.URL
}

// The target of a redirect gets no credentials, no headers of hosts.toml and no referrer. A
// redirect within the same origin keeps them.
func TestRedirectsCarryNothingSecret(t *testing.T) {
	c := newContent(t)
	var there headerRecorder
	store := func(w http.ResponseWriter, r *http.Request) {
		there.note(r)
		if r.URL.Query().Get("on") != "" {
			http.Redirect(w, r, r.URL.Path, http.StatusFound) // that port speaks TLS and refuses in plain text
			return
		}
		c.ServeHTTP(w, r)
	}
	var here headerRecorder
	to := ""
	registry := func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); (u != "u" || p != "password") && !strings.HasPrefix(r.URL.Path, "/open/") {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if path, moved := strings.CutPrefix(r.URL.Path, "/moved"); moved {
			here.note(r)
			r.URL.Path = path
			c.ServeHTTP(w, r)
			return
		}
		http.Redirect(w, r, to+r.URL.Path+"?on=1&signature=abcdef", http.StatusTemporaryRedirect)
	}
	for _, scheme := range []string{"http", "https"} {
		base := serveAt(t, "127.0.0.1", scheme == "https", registry)
		port := base[strings.LastIndex(base, ":"):]
		for name, target := range map[string]string{
			"another port":         serveAt(t, "127.0.0.1", false, store),
			"another port, TLS":    serveAt(t, "127.0.0.1", true, store),
			"another host":         serveAt(t, "127.0.0.2", false, store),
			"another host, TLS":    serveAt(t, "127.0.0.2", true, store),
			"another host's name":  strings.Replace(serveAt(t, "127.0.0.1", false, store), "127.0.0.1", "localhost", 1),
			"user in the address":  strings.Replace(serveAt(t, "127.0.0.1", false, store), "//", "//", 1),
			"the same":             base + "/moved",
			"the same, elsewhere":  "/moved",
			"the same, and a user": strings.Replace(base, "//", "//else:where@", 1) + "/moved",
		} {
			t.Run(scheme+" to "+name, func(t *testing.T) {
				to = target
				certs := configure(t, "example.com",
					fmt.Sprintf("server = %q\nskip_verify = true\n[header]\nX-Team = \"nuts\"\n", base))
				r := open(t, certs, "example.com/library/app:1", Auth{Username: "u", Password: "password"})
				if err := readBlob(t.Context(), r, c); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Manifest(t.Context()); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Resolve(t.Context()); err != nil {
					t.Fatal(err)
				}
				if told := there.take(); told != "" {
					t.Errorf("it was told %q", told)
				}
				if told := here.take(); strings.HasPrefix(name, "the same") != strings.Contains(told, "X-Team: nuts") ||
					strings.Contains(told, "Referer") {
					t.Errorf("the registry itself was told %q", told)
				}
			})
		}
		t.Run(scheme+" to the same without TLS", func(t *testing.T) {
			if scheme == "http" {
				t.Skip("it has none")
			}
			to = "http://127.0.0.1" + port // where TLS is spoken: it refuses, in the clear
			certs := configure(t, "example.com", fmt.Sprintf("server = %q\nskip_verify = true\n", base))
			err := readBlob(t.Context(), open(t, certs, "example.com/library/app:1",
				Auth{Username: "u", Password: "password"}), c)
			if err == nil || strings.Contains(err.Error(), "abcdef") || !strings.Contains(err.Error(), "redirects to") {
				t.Errorf("%v", err)
			}
		})
	}
}

// The credentials of a pull are for the registry only. A mirror gets its own, or those of the pull
// if hosts.toml says so. The error of a mirror that requires some says what to do.
func TestMirrorsGetNoCredentialsOfThePull(t *testing.T) {
	c := newContent(t)
	var toMirror, toServer headerRecorder
	guarded := func(l *headerRecorder) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			l.note(r)
			if _, _, ok := r.BasicAuth(); !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			c.ServeHTTP(w, r)
		}
	}
	mirror, server := serve(t, guarded(&toMirror)), serve(t, guarded(&toServer))
	auth := Auth{Username: "u", Password: "password"}
	r := openWithMirror(t, mirror, server, "", auth)
	if err := readBlob(t.Context(), r, c); err != nil || toMirror.take() != "" || toServer.take() == "" {
		t.Errorf("%v", err)
	}
	_, err := openWithMirror(t, mirror, mirror+"1", "", auth).Manifest(t.Context())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("[host.\"http://%s\".auth]", mirror)) {
		t.Errorf("%v", err)
	}
	r = openWithMirror(t, mirror, server, fmt.Sprintf("[host.\"http://%s\".auth]\nfrom = \"pull\"\n", mirror), auth)
	if err := readBlob(t.Context(), r, c); err != nil || toMirror.take() == "" || toServer.take() != "" {
		t.Errorf("%v", err)
	}
	auth.ServerAddress = "http://" + mirror
	r = openWithMirror(t, mirror, server, "", auth)
	if err := readBlob(t.Context(), r, c); err != nil || toMirror.take() == "" || toServer.take() != "" {
		t.Errorf("%v", err)
	}
}

// The headers of hosts.toml are for the host, not for its token server. Credentials are not sent in
// plain text to a token server if the registry uses TLS.
func TestTokenServerElsewhere(t *testing.T) {
	c := newContent(t)
	var there headerRecorder
	tokens := func(w http.ResponseWriter, r *http.Request) {
		there.note(r)
		if r.ContentLength > 0 {
			body, _ := io.ReadAll(r.Body)
			there.seen = append(there.seen, string(body))
		}
		io.WriteString(w, `{"token":"good"}`)
	}
	realm := ""
	base := serveAt(t, "127.0.0.1", true, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q`, realm))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c.ServeHTTP(w, r)
	})
	certs := configure(t, "example.com",
		fmt.Sprintf("server = %q\nskip_verify = true\n[header]\nX-Team = \"nuts\"\n", base))
	ask := func(auth Auth) error {
		return readBlob(t.Context(), open(t, certs, "example.com/library/app:1", auth), c)
	}

	realm = serveAt(t, "127.0.0.2", true, tokens) + "/token?account=x#part"
	if err := ask(Auth{Username: "u", Password: "password"}); err != nil {
		t.Error(err)
	}
	if told := there.take(); !strings.HasPrefix(told, "Authorization: Basic ") || strings.Contains(told, "X-Team") {
		t.Errorf("told %q", told)
	}
	realm = strings.Replace(realm, "https://", "https://else:where@", 1)
	if err := ask(Auth{}); err != nil || there.take() != "" {
		t.Errorf("with a user in the address: %v", err)
	}

	realm = serveAt(t, "127.0.0.2", false, tokens)
	if err := ask(Auth{Username: "u", Password: "password"}); err != nil { // loopback: no network in between
		t.Error(err)
	}
	there.take()
	realm = "http://tokens.example:8080/t"
	err := ask(Auth{Username: "u", Password: "password"})
	if fault.Of(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "tokens.example:8080") ||
		!strings.Contains(err.Error(), "not sent") {
		t.Errorf("%v", err)
	}
	for _, realm = range []string{"", "tokens", "file:///etc/passwd", "https://"} {
		if err := ask(Auth{Username: "u", Password: "password"}); fault.Of(err) != fault.Unauthenticated {
			t.Errorf("realm %q: %v", realm, err)
		}
	}
}

// The target of a redirect may require an anonymous token, and gets no other.
func TestAnonymousTokenForARedirect(t *testing.T) {
	c := newContent(t)
	var told headerRecorder
	var store string
	store = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			told.note(r)
			io.WriteString(w, `{"token":"for anybody"}`)
			return
		}
		if got := r.Header.Get("Authorization"); got != "Bearer for anybody" {
			if got != "" {
				t.Errorf("it was shown %q", got)
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, store))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c.ServeHTTP(w, r)
	})
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, "http://"+store+r.URL.Path, http.StatusMovedPermanently)
	})
	r := open(t, nil, addr+"/library/app:1", Auth{Username: "u", Password: "password"})
	if err := readBlob(t.Context(), r, c); err != nil {
		t.Error(err)
	}
	if got := told.take(); got != "" {
		t.Errorf("its token server was told %q", got)
	}
}

// No error contains a secret, whatever the host answers.
func TestErrorsContainNoSecrets(t *testing.T) {
	const password, refresh = "pass=word!", "refresh-token"
	dead := deadAddr(t)
	answers := map[string]http.HandlerFunc{
		"echoes what it was sent": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="`+strings.ReplaceAll(fmt.Sprint(r.Header), `"`, "")+`"`)
			w.WriteHeader(http.StatusUnauthorized)
			u, p, _ := r.BasicAuth()
			fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":%q}]}`,
				u+" "+p+" "+r.Header.Get("Authorization"))
		},
		"redirects to the dead": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://else:where-secret@"+dead+"/x?X-Signature=where-secret", http.StatusFound)
		},
		"redirects to a refusal": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("sig") != "" {
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"https://else:where-secret@store.example/y?sig=where-secret has ended"}]}`)
				return
			}
			http.Redirect(w, r, "/x?sig=where-secret", http.StatusFound)
		},
		"redirects to nonsense": func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Location"] = []string{"http://[::1?where-secret\x7f"}
			w.WriteHeader(http.StatusFound)
		},
		"challenges with a signed realm": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+dead+`/token?key=where-secret"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"has control characters": say(403, "application/json",
			`{"errors":[{"code":"A\nlevel=ERROR","message":"\u001b[31m`+password+`"}]}`),
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, answer)
			for _, auth := range []Auth{{Username: "user", Password: password}, {IdentityToken: refresh},
				{RegistryToken: "access-token"}, {}} {
				r := open(t, nil, addr+"/library/app:1", auth)
				_, manifest := r.Manifest(t.Context())
				_, blob := r.Config(t.Context(), "sha256:"+digestOfNothing, 10)
				for _, err := range []error{manifest, blob} {
					text := fmt.Sprint(err)
					for _, secret := range []string{password, refresh, "access-token", "where-secret",
						"dXNlcjpwYXNzPXdvcmQh"} {
						if strings.Contains(text, secret) && !(secret == password && auth.Password == "") {
							t.Errorf("%q is told: %s", secret, text)
						}
					}
					if strings.ContainsAny(text, "\n\x1b") || !strings.Contains(text, addr) {
						t.Errorf("%q", text)
					}
				}
			}
		})
	}
}

func TestHostsFileKeys(t *testing.T) {
	c := newContent(t)
	server := serve(t, c.ServeHTTP)
	for name, row := range map[string]struct{ toml, says string }{
		"capabilites": {"[host.\"http://m.example\"]\ncapabilites = [\"pull\"]\n",
			`line 3: the key "capabilites" is not known: is capabilities meant?`},
		"skip-verify":          {"[host.\"http://m.example\"]\nskip-verify = true\n", "is skip_verify meant?"},
		"insecure":             {"insecure_skip_verify = true\n", "is skip_verify meant?"},
		"hosts":                {"[hosts.\"http://m.example\"]\ncapabilities = [\"pull\"]\n", "is host meant?"},
		"servers":              {"servers = \"x\"\n", "is server meant?"},
		"headers":              {"[host.\"http://m.example\".headers]\nX = \"y\"\n", "is header meant?"},
		"overridepath":         {"[host.\"http://m.example\"]\noverridepath = true\n", "is override_path meant?"},
		"dial_time":            {"[host.\"http://m.example\"]\ndial_timout = \"1s\"\n", "is dial_timeout meant?"},
		"cas":                  {"cas = \"x\"\n", ""},
		"auth's own":           {"[host.\"http://m.example\".auth]\nusernam = \"x\"\n", `"usernam" is not known`},
		"from elsewhere":       {"[host.\"http://m.example\".auth]\nfrom = \"env\"\n", `"pull"`},
		"user in address":      {"[host.\"http://u:secret@m.example\".auth]\nfrom = \"env\"\n", `"pull"`},
		"a header's name":      {"[header]\nhots = \"x\"\nserver = \"y\"\n", ""},
		"a number for a bool":  {"[host.\"http://m.example\"]\nskip_verify = 1\n", "skip_verify must be true or false"},
		"a text for the hosts": {"host = \"http://m.example\"\n", "host must be tables"},
		"a negative timeout":   {"[host.\"http://m.example\"]\ndial_timeout = \"-1s\"\n", "dial_timeout must be"},
		"a table in two parts": {"[host.\"http://127.0.0.1:1\"]\n[host.\"http://127.0.0.1:2\"]\n" +
			"[host.\"http://127.0.0.1:1\".header]\nX = \"y\"\n", ""},
		"all right": {"[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\"]\nca = []\nclient = " +
			"[]\nskip_verify = false\noverride_path = true\ndial_timeout = \"1s\"\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			certs := configure(t, "registry.example", fmt.Sprintf("server = \"http://%s\"\n", server)+row.toml)
			ref, _ := ParseReference("registry.example/library/app:1")
			r, err := Open(t.Context(), Options{CertsDirs: certs}, ref, Auth{})
			if row.says != "" {
				if fault.Of(err) != fault.Precondition || !strings.Contains(err.Error(), row.says) ||
					!strings.Contains(err.Error(), "hosts.toml") || strings.Contains(err.Error(), "secret") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := r.Manifest(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("another program's", func(t *testing.T) {
		certs := configure(t, "registry.example",
			fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n[host.\"http://%s\".rewrite]\n\"^a\" = \"b\"\n",
				server, server, server))
		r := open(t, certs, "registry.example/library/app:1", Auth{})
		if _, err := r.Manifest(t.Context()); err != nil {
			t.Error(err)
		}
		_, err := open(t, certs, "registry.example/library/nothing:1", Auth{}).Manifest(t.Context())
		if fault.Of(err) != fault.NotFound || !strings.Contains(err.Error(), `"rewrite" (line 3)`) {
			t.Errorf("%v", err)
		}
	})
	t.Run("credentials in a file", func(t *testing.T) {
		for text, want := range map[string]string{
			`{"auths":{"HTTPS://M.example:443/v2/":{"auth":"dTpw"},"m.example":{}}}`:                  "dTpw",
			`{"auths":{"*.example":{"auth":"any"},"m.example":{"auth":"own"}}}`:                       "own",
			`{"auths":{"*.example":{"auth":"any"},"https://other.example":{"auth":"own"}}}`:           "any",
			`{"auths":{"a.example":[],"b.example":{"auth":5},"m.example":{"auth":"own"},"z.test":1}}`: "own",
			"\xef\xbb\xbf" + `{"auths":{"m.example":{"auth":"own"}}}`:                                 "own",
			`{"auths":{"m.example":{"auth":5}}}`:                                                      "the entry of m.example",
			`{"auths":{"m.example":{}},"credsStore":"x"}`:                                             "no credentials for",
			`{"auths":[]}`: "docker's format",
		} {
			file := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := dockerAuth(file, "m.example")
			if err == nil && a.Auth != want || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %+v, %v, want %q", text, a, err, want)
			}
		}
	})
}
