package registry

import (
	_ "crypto/sha512" // for digests that are not sha256
	"errors"
	"fmt"
	"strings"

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
//
// The grammar is that of github.com/distribution/reference, with which a test compares it. (That
// package compiles its patterns at each start of kurid, which takes a tenth of the start's CPU time.)
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err != nil {
		return Reference{}, fault.New(fault.Invalid,
			"image reference %q: %w; it should look like registry.example/path/name:tag", withoutUser(s), err)
	}
	return ref, nil
}

// maxPath is the greatest length of a repository's path, in bytes.
const maxPath = 255

func parseReference(s string) (Reference, error) {
	if len(s) == 64 && consistsOf(s, hexDigits) {
		return Reference{}, errors.New("64 hexadecimal digits are the ID of an image, not its name")
	}
	// 1. Split: host/path, :tag, @digest.
	host, rest := splitHost(s)
	rest, text, digested := strings.Cut(rest, "@")
	path, tag, tagged := strings.Cut(rest, ":")
	if path != strings.ToLower(path) {
		return Reference{}, fmt.Errorf("the repository %q has upper-case letters", path)
	}
	// 2. The repository. A first part that can be no host, such as a_b.c, is a part of the path.
	ref := Reference{Repository: host + "/" + path}
	if !isHost(host) {
		path = ref.Repository
	}
	if len(path) > maxPath {
		return Reference{}, fmt.Errorf("the repository's path has more than %d characters", maxPath)
	}
	for part := range strings.SplitSeq(path, "/") {
		if !isComponent(part) {
			return Reference{}, errInvalidReference
		}
	}
	// 3. The tag and the digest.
	if tagged && !isTag(tag) {
		return Reference{}, errInvalidReference
	}
	if digested {
		var err error
		ref.Digest, err = digest.Parse(text)
		return ref, err
	}
	if ref.Tag = tag; !tagged {
		ref.Tag = "latest"
	}
	return ref, nil
}

var errInvalidReference = errors.New("invalid reference format")

// splitHost splits a reference after its host. Names without a host are Docker Hub's, and those
// without a slash are in its library.
func splitHost(s string) (host, rest string) {
	const hub, formerHub = "docker.io", "index.docker.io"
	host, rest, found := strings.Cut(s, "/")
	switch {
	case !found, host != "localhost" && !strings.ContainsAny(host, ".:") && host == strings.ToLower(host):
		host, rest = hub, s
	case host == formerHub:
		host = hub
	}
	if host == hub && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	return host, rest
}

const (
	digits       = "0123456789"
	hexDigits    = digits + "abcdef"
	lowerLetters = "abcdefghijklmnopqrstuvwxyz"
	letters      = lowerLetters + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// consistsOf reports whether s is not empty and all of its characters are in set.
func consistsOf(s, set string) bool { return s != "" && strings.Trim(s, set) == "" }

// isHost reports whether s is a host name, an IPv4 address or an IPv6 address in brackets, perhaps
// with a port.
func isHost(s string) bool {
	if inside, ok := strings.CutPrefix(s, "["); ok {
		address, port, ok := strings.Cut(inside, "]")
		port, colon := strings.CutPrefix(port, ":")
		return ok && consistsOf(address, hexDigits+"ABCDEF:") &&
			(colon && consistsOf(port, digits) || !colon && port == "")
	}
	name, port, found := strings.Cut(s, ":")
	if found && !consistsOf(port, digits) {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !consistsOf(label, letters+digits+"-") || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

// isComponent reports whether s is a component of a repository's path: lower-case letters and
// digits, between which may be a period, one or two underscores, or dashes.
func isComponent(s string) bool {
	for {
		rest := strings.TrimLeft(s, lowerLetters+digits)
		switch {
		case len(rest) == len(s):
			return false
		case rest == "":
			return true
		case strings.HasPrefix(rest, "__"):
			s = rest[2:]
		case rest[0] == '.' || rest[0] == '_':
			s = rest[1:]
		case rest[0] == '-':
			s = strings.TrimLeft(rest, "-")
		default:
			return false
		}
	}
}

func isTag(s string) bool {
	return len(s) <= 128 && consistsOf(s, letters+digits+"_.-") && s[0] != '.' && s[0] != '-'
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
