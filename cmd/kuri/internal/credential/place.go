package credential

import (
	"cmp"
	"slices"
	"strings"
)

// dockerHub is the key that docker has used for its own registry from the beginning.
const dockerHub = "https://index.docker.io/v1/"

// place is what a key of a configuration file stands for: a registry, or the beginning of its repositories.
type place struct {
	host string // as hostOf returns it
	path string // "team/app"; "" for all
}

// placeOf reads a key in any of the spellings that there are: "registry.example", with a scheme, a port, a path of the API
// and a slash at the end, as docker has written it, or with the beginning of repositories, as podman does. In a key with
// a scheme the path says nothing, as with docker and podman.
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

// hostOf gives the host of a registry one spelling: lower case, without the scheme's own port, and "docker.io" for all the
// names of docker's registry.
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

// address is the key that docker writes for a registry.
func address(registry string) string {
	if hostOf("", registry) == "docker.io" {
		return dockerHub
	}
	return registry
}

// helperAddresses are the addresses by which a helper may know a registry: docker's own, those that the file has for it,
// and that of a browser.
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

// keysFor returns the keys of entries that are for a place, the longest path first. Of several spellings of one that of
// docker comes first.
func keysFor[V any](p place, entries map[string]V) []string {
	var found []string
	for key := range entries {
		if at := placeOf(key); at.host == p.host && (at.path == "" || p.path == at.path || strings.HasPrefix(p.path, at.path+"/")) {
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
		return cmp.Or(cmp.Compare(len(placeOf(b).path), len(placeOf(a).path)), cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	return found
}
