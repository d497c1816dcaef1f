package credential

import (
	"slices"
	"strings"
	"testing"
)

// TestKeyring has the cases of a kubelet's keyring: which of a secret's entries are for an image, and in which order.
func TestKeyring(t *testing.T) {
	const auth = `{"username": "%", "password": "p"}`
	config := func(keys ...string) string {
		var entries []string
		for _, k := range keys {
			entries = append(entries, `"`+k+`": `+strings.Replace(auth, "%", k, 1))
		}
		return "{" + strings.Join(entries, ",") + "}"
	}
	for _, tt := range []struct {
		name                 string
		keys                 []string
		registry, repository string
		want                 []string
	}{
		{"the registry", []string{"registry.example", "other.example"}, "registry.example", "team/app", []string{"registry.example"}},
		{"the longest path first, then the others", []string{"registry.example", "registry.example/team", "registry.example/team/app", "registry.example/x"},
			"registry.example", "team/app", []string{"registry.example/team/app", "registry.example/team", "registry.example"}},
		{"a scheme, a path of the API", []string{"https://registry.example/v2/", "http://registry.example/v1/team"}, "registry.example", "team/app",
			[]string{"http://registry.example/v1/team", "https://registry.example/v2/"}},
		{"a wildcard for one label", []string{"*.registry.example", "*.example", "eu.*.example"}, "eu.registry.example", "a",
			[]string{"eu.*.example", "*.registry.example"}},
		{"a port", []string{"registry.example", "registry.example:5000"}, "registry.example:5000", "a", []string{"registry.example:5000"}},
		{"no credential for another host", []string{"registry.example.org", "gistry.example", "*"}, "registry.example", "a", nil},
		{"docker's own, with docker's key", []string{"https://index.docker.io/v1/"}, "docker.io", "library/busybox", []string{"https://index.docker.io/v1/"}},
		{"a pattern that is none", []string{"[.example"}, "registry.example", "a", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var k, old Keyring
			if err := k.AddConfig([]byte(`{"auths": ` + config(tt.keys...) + `, "credsStore": "x"}`)); err != nil {
				t.Fatal(err)
			}
			if err := old.AddOldConfig([]byte(config(tt.keys...))); err != nil {
				t.Fatal(err)
			}
			for _, k := range []Keyring{k, old} {
				var got []string
				for _, c := range k.Find(tt.registry, tt.repository) {
					got = append(got, c.Username)
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("found %q, want %q", got, tt.want)
				}
			}
		})
	}
	var k Keyring
	for _, add := range []string{`{"r.example": {"auth": "Zmlyc3Q6cDpx"}}`, `{"r.example": {"username": "second", "password": "q"}, "e.example": {}}`} {
		if err := k.AddOldConfig([]byte(add)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := k.Find("r.example", "a"), []Credential{{Username: "first", Password: "p:q"}, {Username: "second", Password: "q"}}; !slices.Equal(got, want) {
		t.Errorf("of two secrets: %+v, want %+v", got, want)
	}
	if got := k.Find("e.example", "a"); got != nil {
		t.Errorf("an empty entry is the credential %+v", got)
	}
	for data, want := range map[string]string{
		`[]`: "config.json", `{"auths": 7}`: "config.json", ``: "config.json",
		`{"auths": {"r.example": {"auth": "!"}}}`: "the entry of r.example: its auth is not the base64 of USER:PASSWORD",
		`{"auths": {"r.example": 7}}`:             "the entry of r.example: it must be an object of strings",
	} {
		if err := new(Keyring).AddConfig([]byte(data)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "Go ") {
			t.Errorf("%s: %v, want %q", data, err, want)
		}
	}
}
