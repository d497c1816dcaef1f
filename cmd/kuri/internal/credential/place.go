package credential

import (
	"cmp"
	"slices"
	"strings"
)

// dockerHub is docker's traditional key for its own registry.
const dockerHub = "https://index.docker.io/v1/"

// place is the meaning of a key in a configuration file: a registry, or a prefix of its
// repositories.
type place struct {
	host string // as returned by hostOf
	path string // "team/app"; "" for all
}

// placeOf parses a key in any known spelling: "registry.example", also with a scheme, a port, a
// path of the API and a trailing slash, as docker has written it, or with a prefix of repositories,
// as podman does. After a scheme the path is ignored, as in docker and podman.
func placeOf(key string) place {
	scheme, rest, has := strings.Cut(strings.TrimSpace(key), "://")
	if !has {
		scheme, rest = "", scheme
	}
	host, path, _ := strings.Cut(rest, "/")
	path = strings.TrimRight(path, "/")
	if first, _, _ := strings.Cut(path, "/"); has || first == "v1" || first == "v2" {
		path = ""
	}
	return place{hostOf(scheme, host), path}
}

// hostOf normalizes the host of a registry: lower case, without the scheme's default port, and
// "docker.io" for all names of docker's registry.
func hostOf(scheme, host string) string {
	host = strings.ToLower(host)
	if strings.EqualFold(scheme, "http") {
		host = strings.TrimSuffix(host, ":80")
	} else {
		host = strings.TrimSuffix(host, ":443")
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}

// address returns docker's key for a registry.
func address(registry string) string {
	if hostOf("", registry) == "docker.io" {
		return dockerHub
	}
	return registry
}

// helperAddresses returns the addresses by which a helper may know a registry: docker's, the file's
// keys for it, and its URL in a browser.
func helperAddresses(registry string, keys ...string) []string {
	all := append([]string{address(registry)}, keys...)
	if hostOf("", registry) == "docker.io" {
		all = append(all, "docker.io", "index.docker.io")
	} else {
		all = append(all, "https://"+registry)
	}
	var once []string
	for _, a := range all {
		if !slices.Contains(once, a) {
			once = append(once, a)
		}
	}
	return once
}

// keysFor returns the keys of entries for a place, the longest path first. Of several spellings,
// docker's is first.
func keysFor[V any](p place, entries map[string]V) []string {
	var found []string
	for key := range entries {
		if at := placeOf(key); at.host == p.host && at.covers(p.path) {
			found = append(found, key)
		}
	}
	slices.SortFunc(found, func(a, b string) int {
		rank := func(key string) int {
			if key == address(p.host) {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(len(placeOf(b).path), len(placeOf(a).path)), cmp.Compare(rank(a), rank(b)),
			cmp.Compare(a, b))
	})
	return found
}

// covers reports whether a repository is below the prefix.
func (p place) covers(repository string) bool {
	return p.path == "" || repository == p.path || strings.HasPrefix(repository, p.path+"/")
}

// pattern reports whether the host is a pattern, such as "*.registry.example".
func (p place) pattern() bool { return strings.ContainsAny(p.host, "*?") }

// patternsFor returns the keys of entries that are patterns for a place, the longest path first.
func patternsFor[V any](p place, entries map[string]V) []string {
	var found []string
	for key := range entries {
		if at := placeOf(key); at.pattern() && matchHost(at.host, p.host) && at.covers(p.path) {
			found = append(found, key)
		}
	}
	slices.SortFunc(found, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(placeOf(b).path), len(placeOf(a).path)), cmp.Compare(a, b))
	})
	return found
}
