package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Media types of Docker's image manifest, version 2, schema 2, which image-spec does not name.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// MaxManifest is the maximum size of a manifest or index in bytes: the size that the distribution
// specification requires registries to accept.
const MaxManifest = 4 << 20

// acceptManifests lists the accepted media types. The last one makes a registry send whatever it
// has, so that an old or foreign manifest can be refused by its type.
var acceptManifests = strings.Join([]string{
	imagespec.MediaTypeImageIndex, imagespec.MediaTypeImageManifest, DockerManifestList, DockerManifest, "*/*",
}, ", ")

// Repository is a client for one repository and its hosts. See [Open].
type Repository struct {
	ref        Reference
	hosts      []*source // mirrors first
	transports []*http.Transport
	caller     *credentials            // of the pull
	creds      map[origin]*credentials // the credentials for each origin; others get none
	options    Options
	unknown    []string // unknown keys of hosts.toml
	secrets    *secrets

	mu sync.Mutex
	// hosts that were slow, wrong or did not answer: they are tried last
	deprioritized  map[string]bool
	served         map[digest.Digest]map[string]*serving // how hosts have served each blob
	from           map[digest.Digest]string              // host that served a blob last
	authenticators map[authKey]*authenticator
}

// authKey identifies an authenticator. Hosts have different clients, and a redirect may lead to
// another host's origin.
type authKey struct {
	host *source
	at   origin
}

// serving describes how a host has served a blob.
type serving struct {
	wrong    int  // how often it was corrupt
	decoded  bool // the last response was declared as gzip and decompressed
	keepGzip bool // its declared gzip is the blob's own compression
}

// Options configure how the hosts of a registry are found, and when one is given up.
type Options struct {
	CertsDirs []string          // directories in which <host>/hosts.toml is looked for, in order
	Limits                      // for all hosts; defaults: one minute, 16 KiB
	Traffic   *Traffic          // counts received data; may be nil
	Sources   map[string]Limits // for single hosts, such as "mirror.example:5000"; 0: as for all hosts
}

// Limits determine when a host is given up.
type Limits struct {
	Stall   time.Duration // without any data, the next host is tried
	MinRate int64         // bytes per second over a quarter of Stall; below, the next host is tried, if there is one
}

// orElse replaces zero fields by defaults.
func (l Limits) orElse(defaults Limits) Limits {
	return Limits{Stall: cmp.Or(l.Stall, defaults.Stall), MinRate: cmp.Or(l.MinRate, defaults.MinRate)}
}

// at returns the limits of a host.
func (o Options) at(host string) Limits { return o.Sources[canonicalHost(host)].orElse(o.Limits) }

// longestStall returns the longest stall limit of any host.
func (o Options) longestStall() time.Duration {
	longest := o.Stall
	for _, l := range o.Sources {
		longest = max(longest, l.Stall)
	}
	return longest
}

// withDefaults returns the options with defaults filled in and canonical host names.
func (o Options) withDefaults() Options {
	o.Limits = o.Limits.orElse(Limits{Stall: time.Minute, MinRate: 16 << 10})
	named := o.Sources
	o.Sources = make(map[string]Limits)
	for host, l := range named {
		o.Sources[canonicalHost(host)] = l
	}
	return o
}

// Open reads the configuration of ref's registry and prepares a client with the credentials of
// auth. It sends nothing. The caller closes the Repository. The error is of kind Invalid (auth) or
// Precondition (hosts.toml).
func Open(ctx context.Context, o Options, ref Reference, auth Auth) (*Repository, error) {
	o = o.withDefaults()
	caller, err := auth.decode()
	if err != nil {
		return nil, err
	}
	silent := logrus.New() // containerd's packages would log the errors that we return
	silent.SetOutput(io.Discard)
	hosts, transports, file, err := lookupHosts(log.WithLogger(ctx, logrus.NewEntry(silent)), o, ref.Host())
	if err != nil {
		return nil, err
	}
	r := &Repository{
		ref: ref, hosts: hosts, transports: transports, caller: caller, creds: make(map[origin]*credentials),
		options: o, unknown: file.unknown, secrets: &secrets{},
		deprioritized: make(map[string]bool), from: make(map[digest.Digest]string),
		served: make(map[digest.Digest]map[string]*serving), authenticators: make(map[authKey]*authenticator),
	}
	for _, h := range hosts {
		for _, at := range h.origins() {
			r.creds[at] = r.credentialsFor(h, at, file)
			r.secrets.addCredentials(r.creds[at])
		}
	}
	r.secrets.addCredentials(caller)
	return r, nil
}

// credentialsFor returns the credentials for a host: those configured in hosts.toml; otherwise
// those of the caller, if the host is the registry itself or the host to which the caller or
// hosts.toml assigns them; otherwise none.
func (r *Repository) credentialsFor(h *source, at origin, file *hostsConfig) *credentials {
	if own := file.own[at]; own != nil {
		return own
	}
	mine := sameHost(r.caller.only, h.Host)
	if r.caller.only == "" {
		mine = !h.mirror || file.shared[at]
	} else if !h.mirror {
		mine = mine || sameHost(r.caller.only, r.ref.Host())
	}
	if !mine {
		return &credentials{}
	}
	return r.caller
}

// credentialsAt returns the credentials for the origin.
func (r *Repository) credentialsAt(at origin) *credentials {
	if c := r.creds[at]; c != nil {
		return c
	}
	return &credentials{}
}

// ownOrigin reports whether at is an origin of the host.
func (r *Repository) ownOrigin(h *source, at origin) bool {
	return slices.ContainsFunc(h.origins(), func(o origin) bool { return o == at || o.upgrade(at) })
}

// authenticatorFor returns the authenticator for an origin in a request to h. An upgrade of h to
// TLS counts as h.
func (r *Repository) authenticatorFor(h *source, at origin) *authenticator {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.either != nil && r.ownOrigin(h, at) {
		at = h.origins()[0] // one authenticator for both schemes
	}
	key := authKey{h, at}
	p := r.authenticators[key]
	if p == nil {
		creds := r.credentialsAt(at)
		for _, own := range h.origins() {
			if own.upgrade(at) {
				creds = r.credentialsAt(own)
			}
		}
		p = newAuthenticator(at, creds, r.ref.Path(), h.Client, r.secrets)
		r.authenticators[key] = p
	}
	return p
}

// Close closes the idle connections.
func (r *Repository) Close() {
	for _, t := range r.transports {
		t.CloseIdleConnections()
	}
}

// capability returns the capability that a host needs to answer for target: a mirror that may serve
// content is not always trusted to resolve tags.
func (r *Repository) capability(target string) docker.HostCapabilities {
	if strings.Contains(target, ":") {
		return docker.HostCapabilityPull
	}
	return docker.HostCapabilityPull | docker.HostCapabilityResolve
}

// eachHost calls ask with the hosts in order until it succeeds. If it fails for all, the error has
// the kind of the registry's own error and the text of all. A host that does not answer is tried
// last from then on.
//
// hosts.toml may have a table for the registry itself that says how to reach it. The registry is
// then tried twice, the second time without that table. If it has answered, failing to reach it the
// second time is ignored.
func (r *Repository) eachHost(ctx context.Context, need docker.HostCapabilities, ask func(*source) error) error {
	var texts []string
	var last error
	answered := make(map[string]bool) // by address
	for _, h := range r.order(need) {
		err := ask(h)
		if err == nil || ctx.Err() != nil {
			return err
		}
		// the host's deadline, not the caller's
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			err = fault.As(fault.Of(err), errors.New(err.Error()))
		}
		address := h.Scheme + "://" + h.Host + h.Path
		if errors.Is(err, fault.Unavailable) && answered[address] {
			continue
		}
		if errors.Is(err, fault.Unavailable) || errors.Is(err, errWrongAnswer) {
			r.deprioritize(h.Host)
		}
		answered[address] = answered[address] || !errors.Is(err, fault.Unavailable)
		texts = append(texts, err.Error())
		if last == nil || h.Host == r.hosts[len(r.hosts)-1].Host {
			last = err
		}
	}
	switch len(texts) {
	case 0:
		return fault.New(fault.Precondition,
			"no host of registry %s is allowed to serve %s: check the capabilities in hosts.toml", r.ref.Host(), r.ref)
	case 1:
		if len(r.unknown) == 0 {
			return last
		}
	}
	text := strings.Join(texts, "; then ")
	if len(r.unknown) > 0 {
		text += fmt.Sprintf("; %s has keys that are not known: %s", hostsFile(r.options.CertsDirs, r.ref.Host()),
			strings.Join(r.unknown, ", "))
	}
	return &hostErrors{fault.As(fault.Of(last), errors.New(text)), last}
}

// hostErrors is the error of several hosts: the text of all, and the cause that determines the
// kind.
type hostErrors struct {
	error
	cause error
}

func (s *hostErrors) Unwrap() []error { return []error{s.error, s.cause} }

// order returns the hosts with the capability, in configured order, deprioritized ones last.
func (r *Repository) order(need docker.HostCapabilities) []*source {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first, last []*source
	for _, h := range r.hosts {
		switch {
		case !h.Capabilities.Has(need):
		case r.deprioritized[h.Host]:
			last = append(last, h)
		default:
			first = append(first, h)
		}
	}
	return append(first, last...)
}

// deprioritize makes the host be tried last from now on.
func (r *Repository) deprioritize(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deprioritized[host] = true
}

// Distrust makes the host that served the blob last be tried last from now on, because the blob was
// corrupt. It returns the host ("" if unknown) and whether to request the blob again: each host
// gets a second chance.
func (r *Repository) Distrust(blob digest.Digest) (host string, again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if host = r.from[blob]; host == "" {
		return "", false
	}
	r.deprioritized[host] = true
	s := r.served[blob][host]
	s.wrong++
	s.keepGzip = s.keepGzip != s.decoded
	return host, s.wrong < 2
}

// servedBy records which host serves a blob.
func (r *Repository) servedBy(blob digest.Digest, host string, decoded bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from[blob] = host
	if r.served[blob] == nil {
		r.served[blob] = make(map[string]*serving)
	}
	if r.served[blob][host] == nil {
		r.served[blob][host] = &serving{}
	}
	r.served[blob][host].decoded = decoded
}

// keepGzip reports whether the host's declared gzip is the blob's own compression.
func (r *Repository) keepGzip(blob digest.Digest, host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.served[blob][host]
	return s != nil && s.keepGzip
}

// hasAlternative reports whether another host that has not been deprioritized can serve blobs.
func (r *Repository) hasAlternative(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.hosts, func(h *source) bool {
		return h.Host != name && !r.deprioritized[h.Host] && h.Capabilities.Has(docker.HostCapabilityPull)
	})
}

// url returns the URL of an endpoint of this repository at h. A mirror is told the registry that it
// stands for.
func (r *Repository) url(h *source, endpoint string) *url.URL {
	u := &url.URL{Scheme: h.scheme(), Host: h.Host, Path: h.Path + "/" + r.ref.Path() + "/" + endpoint}
	if canonicalHost(h.Host) != r.ref.Host() {
		u.RawQuery = url.Values{"ns": {r.ref.Host()}}.Encode()
	}
	return u
}
