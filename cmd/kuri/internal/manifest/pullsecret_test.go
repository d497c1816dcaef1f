package manifest

import (
	"strings"
	"testing"
)

// TestPullSecrets has a pod with two imagePullSecrets: their credentials, or the words about them.
func TestPullSecrets(t *testing.T) {
	secret := func(name, of, key, value string) string {
		return "---\napiVersion: v1\nkind: Secret\nmetadata: {name: " + name + "}\ntype: " + of + "\nstringData: {" + key + ": '" + value + "'}\n"
	}
	const (
		config = "kubernetes.io/dockerconfigjson"
		old    = "kubernetes.io/dockercfg"
		entry  = `{"r.example": {"username": "me", "password": "p"}}`
	)
	for _, tt := range []struct {
		name, secrets string
		users         int
		word          string // part of the only warning, or of the error if there are no users
	}{
		{"both types", secret("a", config, ".dockerconfigjson", `{"auths": `+entry+`}`) + secret("b", old, ".dockercfg", entry), 2, ""},
		{"one is missing", secret("b", old, ".dockercfg", entry), 1, `imagePullSecrets[0] is ignored: there is no Secret "a" in the file`},
		{"one of another type", secret("a", "Opaque", ".dockercfg", entry) + secret("b", old, ".dockercfg", entry), 1, `imagePullSecrets[0] is ignored: the Secret "a" has no type kubernetes.io/dockerconfigjson`},
		{"the key of the other type", secret("b", config, ".dockercfg", entry), 0, `spec.imagePullSecrets[1]: the Secret "b": it has no key ".dockerconfigjson": it has .dockercfg`},
		{"no JSON", secret("b", config, ".dockerconfigjson", "me:p"), 0, `the Secret "b": .dockerconfigjson: it is not in the format of docker`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods, err := decode([]byte(pod("imagePullSecrets: [{name: a}, {name: b}]\nrestartPolicy: Never", "")+tt.secrets), "")
			if tt.users == 0 {
				if err == nil || !strings.Contains(err.Error(), tt.word) {
					t.Errorf("error %v, want one with %q", err, tt.word)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := pods[0].PullCredentials("r.example", "x"); len(got) != tt.users || got[0].Password != "p" {
				t.Errorf("credentials %+v, want %d", got, tt.users)
			}
			if warnings := strings.Join(pods[0].Warnings, "\n"); !strings.Contains(warnings, tt.word) || tt.word == "" && warnings != "" {
				t.Errorf("warnings %q, want one with %q", warnings, tt.word)
			}
		})
	}
}
