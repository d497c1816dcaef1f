package login

import "testing"

func TestRegistryName(t *testing.T) {
	for arg, want := range map[string]string{
		"docker.io": "docker.io", "index.docker.io": "docker.io", "https://index.docker.io/v1/": "docker.io",
		"registry-1.docker.io": "docker.io",
		"Index.Docker.IO:443":  "docker.io", "https://registry.hub.docker.com/v2/": "docker.io",
		"quay.io": "quay.io", "https://quay.io/": "quay.io", "HTTPS://Quay.IO/v1/": "quay.io", "quay.io:443": "quay.io:443",
		"http://quay.io:80/v2": "quay.io:80", "localhost": "localhost", "localhost:5000": "localhost:5000",
		"[::1]:5000":   "[::1]:5000",
		"quay.io/team": "", "busybox": "", "": "", "a b": "", "docker.io/library": "",
	} {
		if got, err := registryName([]string{arg}); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", arg, got, err)
		}
	}
	if got, err := registryName(nil); got != "docker.io" || err != nil {
		t.Error(got, err)
	}
}
