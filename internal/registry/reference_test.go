package registry

import (
	"errors"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/distribution/reference"

	"github.com/kuri-cri/kuri/internal/fault"
)

var hex64 = strings.Repeat("0123456789abcdef", 4)

func TestParseReference(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":                       "docker.io/library/busybox:latest",
		"busybox:1":                     "docker.io/library/busybox:1",
		"docker.io/busybox:1":           "docker.io/library/busybox:1",
		"index.docker.io/a/b":           "docker.io/a/b:latest",
		"localhost:5000/a":              "localhost:5000/a:latest",
		"[::1]:5000/a/b:x":              "[::1]:5000/a/b:x",
		"quay.io/a/b/c:v1":              "quay.io/a/b/c:v1",
		"a/b@sha256:" + hex64:           "docker.io/a/b@sha256:" + hex64,
		"quay.io/a:1@sha256:" + hex64:   "quay.io/a@sha256:" + hex64,
		"registry.example:5000/x/y:1.2": "registry.example:5000/x/y:1.2",
	} {
		ref, err := ParseReference(in)
		if err != nil || ref.String() != want {
			t.Errorf("%q = %q, %v; want %q", in, ref, err, want)
		}
		if again, err := ParseReference(ref.String()); err != nil || again != ref {
			t.Errorf("%q is not canonical: %+v, %v", ref, again, err)
		}
		if ref.Host()+"/"+ref.Path() != ref.Repository {
			t.Errorf("%q: host %q, path %q", in, ref.Host(), ref.Path())
		}
	}
	for _, in := range []string{"", " ", "UPPER", "a:", "a@sha256:12", ":tag", "a b", "http://a/b", hex64, "a//b",
		"-a", "a:\x00"} {
		if _, err := ParseReference(in); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
	if ref, err := ParseReference("a@sha512:" + hex64 + hex64); err != nil ||
		ref.String() != "docker.io/library/a@sha512:"+hex64+hex64 {
		t.Errorf("sha512: %v, %v", ref, err)
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"a", "a/b:c@sha256:" + hex64, "localhost:1/x", "[::1]/a", "A", "a:b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		compareReference(t, in)
		ref, err := ParseReference(in)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref || ref.Host() == "" || ref.Path() == "" || (ref.Tag == "") == (ref.Digest == "") {
			t.Errorf("%q = %+v, again %+v, %v", in, ref, again, err)
		}
	})
}

// compareReference parses in with the package that defines references, too.
func compareReference(t *testing.T, in string) {
	t.Helper()
	ref, err := ParseReference(in)
	theirs, theirErr := reference.ParseDockerRef(in)
	if (err == nil) != (theirErr == nil) || err == nil && ref.String() != theirs.String() {
		t.Errorf("%q: %q, %v; distribution/reference: %v, %v", in, ref, err, theirs, theirErr)
	}
}

// References of every form, valid and not, are parsed as by the package that defines them.
func TestReferencesAreThoseOfDistribution(t *testing.T) {
	parts := []string{"a", "b1", "A", "localhost", "docker.io", "index.docker.io", "library", "a_b.c", "x-y",
		"[::1]", "[fe80::1%2]", "[]", "/", "/", "/", ":", ":", "@", ".", "_", "__", "-", "5000", "latest", "v1.2-rc_1",
		"sha256:" + hex64, "sha512:" + hex64 + hex64, "sha256:" + strings.ToUpper(hex64), "md5:" + hex64[:32], hex64,
		strings.Repeat("a", 125), " ", "é", "\x00", "\n"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		var in strings.Builder
		for range random.IntN(8) {
			in.WriteString(parts[random.IntN(len(parts))])
		}
		compareReference(t, in.String())
	}
}

func TestAuthDecode(t *testing.T) {
	for name, row := range map[string]struct {
		auth                 Auth
		user, secret, bearer string
	}{
		"none":           {},
		"user":           {auth: Auth{Username: "u", Password: "p"}, user: "u", secret: "p"},
		"auth":           {auth: Auth{Auth: "dTpwOnE="}, user: "u", secret: "p:q"},
		"auth padded":    {auth: Auth{Auth: "dTpwAAA="}, user: "u", secret: "p"},
		"user over auth": {auth: Auth{Username: "u", Password: "p", Auth: "eDp5"}, user: "u", secret: "p"},
		"identity":       {auth: Auth{IdentityToken: "i", Username: "u"}, secret: "i"},
		"registry":       {auth: Auth{RegistryToken: "r", IdentityToken: "i"}, bearer: "r"},
	} {
		c, err := row.auth.decode()
		if err != nil || c.user != row.user || c.secret != row.secret || c.bearer != row.bearer {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	for _, a := range []Auth{{Auth: "!!"}, {Auth: "bm9jb2xvbg=="}, {ServerAddress: "http://"},
		{ServerAddress: "a b\x7f"}} {
		if _, err := a.decode(); !errors.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

func TestReferenceErrorsContainNoPassword(t *testing.T) {
	for _, in := range []string{"user:secret@registry.example/a:1", "https://user:secret@registry.example/a:1",
		"https://secret@registry.example/a", "u:se@secret@registry.example"} {
		_, err := ParseReference(in)
		if err == nil || strings.Contains(err.Error(), "secret@") ||
			!strings.Contains(err.Error(), "registry.example") {
			t.Errorf("%s: %v", in, err)
		}
	}
	if _, err := ParseReference("A@sha256:1"); err == nil || !strings.Contains(err.Error(), "A@sha256:1") {
		t.Errorf("%v", err)
	}
}

func TestCredentialsAreSentToTheirHostOnly(t *testing.T) {
	const toml = "[host.\"https://mirror.example\"]\n[host.\"https://shared.example\".auth]\nfrom = \"pull\"\n"
	certs := configure(t, "docker.io", toml)
	for _, row := range []struct {
		address, sees string // server address of the credentials, and the origins that get them
	}{
		{"", "https://registry-1.docker.io https://shared.example"},
		{"https://index.docker.io/v1/", "https://registry-1.docker.io"},
		{"https://index.docker.io/v1", "https://registry-1.docker.io"},
		{"HTTPS://Index.Docker.IO", "https://registry-1.docker.io"},
		{"index.docker.io:443", "https://registry-1.docker.io"},
		{"docker.io", "https://registry-1.docker.io"},
		{"registry-1.docker.io/", "https://registry-1.docker.io"},
		{"mirror.example", "https://mirror.example"},
		{"http://mirror.example/v2/", "https://mirror.example"},
		{"Mirror.Example:443/team", "https://mirror.example"},
		{"*.example", "https://mirror.example https://shared.example"},
		{"*.*.example", ""},
		{"mirror.example:5000", ""},
		{"example", ""},
	} {
		r := open(t, certs, "busybox", Auth{Username: "u", Password: "p", ServerAddress: row.address})
		var seen []string
		for _, address := range []string{
			"https://registry-1.docker.io", "http://registry-1.docker.io", "https://registry-1.docker.io:5000",
			"https://mirror.example", "http://mirror.example",
			"https://mirror.example:5000", "https://shared.example", "https://shared.example:8443",
			"https://elsewhere.example",
		} {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			if r.credentialsAt(originOf(u)).user == "u" {
				seen = append(seen, address)
			}
		}
		if got := strings.Join(seen, " "); got != row.sees {
			t.Errorf("server address %q: %q may see them, want %q", row.address, got, row.sees)
		}
	}
}
