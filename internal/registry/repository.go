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

// MaxManifest is the largest manifest or index that is read, in bytes: what the distribution specification asks
// registries to accept.
const MaxManifest = 4 << 20

// acceptManifests lists what the manifest endpoint may answer with. The last makes a registry answer with whatever it
// has, so that an old or foreign manifest can be refused by its name.
var acceptManifests = strings.Join([]string{
	imagespec.MediaTypeImageIndex, imagespec.MediaTypeImageManifest, DockerManifestList, DockerManifest, "*/*",
}, ", ")

// Repository is a conversation with the hosts of one repository. See [Open].
type Repository struct {
	ref        Reference
	hosts      []*source // mirrors first
	transports []*http.Transport
	caller     *credentials            // of the pull
	creds      map[origin]*credentials // what each origin may see; one that is not in it: nothing
	options    Options
	unknown    []string // keys of hosts.toml
	secrets    *secrets

	mu     sync.Mutex
	late   map[string]bool                       // hosts that were slow, wrong or did not answer: they are asked last
	served map[digest.Digest]map[string]*serving // who has served a blob, by host
	from   map[digest.Digest]string              // host that has served a blob last
	proofs map[proofKey]*proof
}

// proofKey names a proof: the client differs from host to host, and a redirect may lead to another's origin.
type proofKey struct {
	host *source
	at   origin
}

// serving is how a host has served a blob.
type serving struct {
	wrong   int  // times that it was not the blob
	decoded bool // it called the last one gzip, and it was unpacked
	asItIs  bool // what it calls gzip is the blob's own
}

// Options say how the hosts of a registry are found, and when one is given up.
type Options struct {
	CertsDirs []string          // where <host>/hosts.toml is looked for, in order
	Limits                      // of every host; 0: a minute, 16 KiB
	Traffic   *Traffic          // counts what comes; nil: nobody counts
	Sources   map[string]Limits // of single hosts, "mirror.example:5000", registries and mirrors alike; 0: as of every host
}

// Limits say when a host is given up.
type Limits struct {
	Stall   time.Duration // it sends nothing for so long: it is left for the next
	MinRate int64         // it sends fewer bytes per second over a quarter of Stall: so it is, when there is a next
}

// orElse fills the fields that are 0 from defaults.
func (l Limits) orElse(defaults Limits) Limits {
	return Limits{Stall: cmp.Or(l.Stall, defaults.Stall), MinRate: cmp.Or(l.MinRate, defaults.MinRate)}
}

// at returns the limits of a host.
func (o Options) at(host string) Limits { return o.Sources[canonicalHost(host)].orElse(o.Limits) }

// longestStall is how long the most patient limits wait.
func (o Options) longestStall() time.Duration {
	longest := o.Stall
	for _, l := range o.Sources {
		longest = max(longest, l.Stall)
	}
	return longest
}

// withDefaults are the options with nothing left open.
func (o Options) withDefaults() Options {
	o.Limits = o.Limits.orElse(Limits{Stall: time.Minute, MinRate: 16 << 10})
	named := o.Sources
	o.Sources = make(map[string]Limits)
	for host, l := range named {
		o.Sources[canonicalHost(host)] = l
	}
	return o
}

// Open reads the configuration of ref's registry and prepares to talk to it as auth says. It sends nothing. The caller
// closes the Repository. The error is of kind Invalid (auth) or Precondition (hosts.toml).
func Open(ctx context.Context, o Options, ref Reference, auth Auth) (*Repository, error) {
	o = o.withDefaults()
	caller, err := auth.decode()
	if err != nil {
		return nil, err
	}
	silent := logrus.New() // containerd's packages would log what our errors say
	silent.SetOutput(io.Discard)
	hosts, transports, file, err := lookupHosts(log.WithLogger(ctx, logrus.NewEntry(silent)), o, ref.Host())
	if err != nil {
		return nil, err
	}
	r := &Repository{
		ref: ref, hosts: hosts, transports: transports, caller: caller, creds: make(map[origin]*credentials), options: o, unknown: file.unknown, secrets: &secrets{},
		late: make(map[string]bool), from: make(map[digest.Digest]string), served: make(map[digest.Digest]map[string]*serving), proofs: make(map[proofKey]*proof),
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

// credentialsFor returns what a host may see: what hosts.toml has for it; else, where it is the registry itself, or the
// host that the caller or hosts.toml gives them to, those of the caller; else nothing.
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

// credentialsAt returns what the origin may see.
func (r *Repository) credentialsAt(at origin) *credentials {
	if c := r.creds[at]; c != nil {
		return c
	}
	return &credentials{}
}

// ownOrigin reports whether at is one of the host's.
func (r *Repository) ownOrigin(h *source, at origin) bool {
	return slices.ContainsFunc(h.origins(), func(o origin) bool { return o == at || o.upgrade(at) })
}

// proofAt returns the proof of who asks for an origin that is asked on the way of a request to h. An upgrade of h to TLS
// is h.
func (r *Repository) proofAt(h *source, at origin) *proof {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.either != nil && r.ownOrigin(h, at) {
		at = h.origins()[0] // one proof for either scheme
	}
	key := proofKey{h, at}
	p := r.proofs[key]
	if p == nil {
		creds := r.credentialsAt(at)
		for _, own := range h.origins() {
			if own.upgrade(at) {
				creds = r.credentialsAt(own)
			}
		}
		p = newProof(at, creds, r.ref.Path(), h.Client, r.secrets)
		r.proofs[key] = p
	}
	return p
}

// Close drops the idle connections.
func (r *Repository) Close() {
	for _, t := range r.transports {
		t.CloseIdleConnections()
	}
}

// capability is what a host must be allowed to do to answer for target: a mirror that may serve content is not always
// trusted to say what a tag stands for.
func (r *Repository) capability(target string) docker.HostCapabilities {
	if strings.Contains(target, ":") {
		return docker.HostCapabilityPull
	}
	return docker.HostCapabilityPull | docker.HostCapabilityResolve
}

// eachHost tries the hosts in order until ask succeeds. When none does, the error has the kind that the registry itself
// gave it, and the text of all. A host that does not answer is asked last from then on.
//
// hosts.toml may name the registry itself, to say how it is reached; it is asked again at the end, as the file's server
// and without that. When it has answered, not being reached then says nothing.
func (r *Repository) eachHost(ctx context.Context, need docker.HostCapabilities, ask func(*source) error) error {
	var texts []string
	var last error
	answered := make(map[string]bool) // addresses
	for _, h := range r.order(need) {
		err := ask(h)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) { // the host's deadline, not the caller's
			err = fault.As(fault.Of(err), errors.New(err.Error()))
		}
		address := h.Scheme + "://" + h.Host + h.Path
		if errors.Is(err, fault.Unavailable) && answered[address] {
			continue
		}
		if errors.Is(err, fault.Unavailable) || errors.Is(err, errWrongAnswer) {
			r.shun(h.Host)
		}
		answered[address] = answered[address] || !errors.Is(err, fault.Unavailable)
		texts = append(texts, err.Error())
		if last == nil || h.Host == r.hosts[len(r.hosts)-1].Host {
			last = err
		}
	}
	switch len(texts) {
	case 0:
		return fault.New(fault.Precondition, "no host of registry %s is allowed to serve %s: look at the capabilities in hosts.toml", r.ref.Host(), r.ref)
	case 1:
		if len(r.unknown) == 0 {
			return last
		}
	}
	text := strings.Join(texts, "; then ")
	if len(r.unknown) > 0 {
		text += fmt.Sprintf("; %s has keys that are not known: %s", hostsFile(r.options.CertsDirs, r.ref.Host()), strings.Join(r.unknown, ", "))
	}
	return &several{fault.As(fault.Of(last), errors.New(text)), last}
}

// several is the error of several hosts: the text of all, and the cause of the one that counts.
type several struct {
	error
	cause error
}

func (s *several) Unwrap() []error { return []error{s.error, s.cause} }

// order is the hosts that may do what is needed: as they are configured, but those that were shunned last.
func (r *Repository) order(need docker.HostCapabilities) []*source {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first, last []*source
	for _, h := range r.hosts {
		switch {
		case !h.Capabilities.Has(need):
		case r.late[h.Host]:
			last = append(last, h)
		default:
			first = append(first, h)
		}
	}
	return append(first, last...)
}

// shun has the host asked last from now on, for as long as this conversation.
func (r *Repository) shun(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late[host] = true
}

// Distrust has the host that served the blob last asked last from now on: what it sent was not the blob. It returns the
// host, "" when there is none, and whether the blob is worth to be asked for again: each host gets a second chance.
func (r *Repository) Distrust(blob digest.Digest) (host string, again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if host = r.from[blob]; host == "" {
		return "", false
	}
	r.late[host] = true
	s := r.served[blob][host]
	s.wrong++
	s.asItIs = s.asItIs != s.decoded
	return host, s.wrong < 2
}

// servedBy notes who serves a blob.
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

// asItIs reports whether what the host calls gzip is to be taken for the blob's own compression.
func (r *Repository) asItIs(blob digest.Digest, host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.served[blob][host]
	return s != nil && s.asItIs
}

// alternative tells whether there is a host to serve blobs that has not been shunned, beside this one.
func (r *Repository) alternative(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.hosts, func(h *source) bool {
		return h.Host != name && !r.late[h.Host] && h.Capabilities.Has(docker.HostCapabilityPull)
	})
}

// url builds the address of an endpoint of this repository at h. A mirror is told which registry it stands for.
func (r *Repository) url(h *source, endpoint string) *url.URL {
	u := &url.URL{Scheme: h.scheme(), Host: h.Host, Path: h.Path + "/" + r.ref.Path() + "/" + endpoint}
	if canonicalHost(h.Host) != r.ref.Host() {
		u.RawQuery = url.Values{"ns": {r.ref.Host()}}.Encode()
	}
	return u
}
