package registry

import (
	_ "crypto/sha512" // for digests that are not sha256
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Reference names an image in a registry, in canonical form. Exactly one of Tag and Digest is set.
// It is comparable.
type Reference struct {
	Repository string        // host and path: "docker.io/library/busybox"
	Tag        string        // "1", or "" if Digest is set
	Digest     digest.Digest // of the manifest or index, usually sha256, or ""
}

// ParseReference parses a reference as people and manifests write it: "busybox", "quay.io/a/b:1.2",
// "quay.io/a/b@sha256:…". Without tag and digest the tag is "latest". With both, the tag is
// dropped. The error is of kind Invalid and quotes s.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Reference{}, fault.New(fault.Invalid,
			"image reference %q: %w; it should look like registry.example/path/name:tag", withoutUser(s), err)
	}
	ref := Reference{Repository: named.Name()}
	switch n := named.(type) {
	case reference.Digested:
		ref.Digest = n.Digest()
	case reference.Tagged:
		ref.Tag = n.Tag()
	}
	return ref, nil
}

// withoutUser removes user and password from a malformed reference, which ends up in events and
// logs.
func withoutUser(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "", s
	}
	host, path, _ := strings.Cut(rest, "/")
	at := strings.LastIndex(host, "@")
	if at < 0 || !strings.Contains(host[:at], ":") && !ok {
		return s
	}
	return strings.TrimSuffix(strings.TrimPrefix(scheme+"://", "://")+host[at+1:]+"/"+path, "/")
}

// String returns the full reference: "docker.io/library/busybox:1" or
// "docker.io/library/busybox@sha256:…".
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Repository + "@" + r.Digest.String()
	}
	return r.Repository + ":" + r.Tag
}

// Host returns the registry's host, with its port if there is one: "docker.io", "localhost:5000".
func (r Reference) Host() string {
	host, _, _ := strings.Cut(r.Repository, "/")
	return host
}

// Path returns the repository within the registry: "library/busybox".
func (r Reference) Path() string {
	_, path, _ := strings.Cut(r.Repository, "/")
	return path
}

// target returns the tag or digest for the manifest endpoint.
func (r Reference) target() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}
