package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
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
	hosts      []docker.RegistryHost // mirrors first
	transports []*http.Transport
	creds      *credentials
	options    Options
	quiet      *log.Entry // for containerd's packages, which would log what our errors say

	mu   sync.Mutex
	late map[string]bool          // hosts that were slow, wrong or did not answer: they are asked last
	from map[digest.Digest]string // host that has served a blob last
}

// Options say how the hosts of a registry are found, and when one is given up.
type Options struct {
	CertsDirs []string          // where <host>/hosts.toml is looked for, in order
	Limits                      // of every host; 0: a minute, 16 KiB
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
	creds, err := auth.decode()
	if err != nil {
		return nil, err
	}
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	quiet := logrus.NewEntry(silent)
	hosts, transports, err := lookupHosts(log.WithLogger(ctx, quiet), o, ref.Host(), creds)
	if err != nil {
		return nil, err
	}
	return &Repository{ref: ref, hosts: hosts, transports: transports, creds: creds, options: o, quiet: quiet, late: make(map[string]bool), from: make(map[digest.Digest]string)}, nil
}

// Close drops the idle connections.
func (r *Repository) Close() {
	for _, t := range r.transports {
		t.CloseIdleConnections()
	}
}

// Manifest is a manifest or index as the registry sent it. Body has the digest Digest.
type Manifest struct {
	MediaType string // of the response; "" when the registry did not say
	Digest    digest.Digest
	Body      []byte
}

// Resolve asks for what the reference stands for now, without fetching the manifest: a HEAD request. The digest is ""
// when the registry does not tell it this way, the size -1, and the media type "".
func (r *Repository) Resolve(ctx context.Context) (imagespec.Descriptor, error) {
	desc := imagespec.Descriptor{Size: -1}
	err := r.eachHost(ctx, r.capability(r.ref.target()), func(h docker.RegistryHost) error {
		resp, err := r.send(ctx, h, http.MethodHead, "manifests/"+r.ref.target(), http.Header{"Accept": {acceptManifests}})
		if errors.Is(err, fault.Unimplemented) {
			return nil
		}
		if err != nil {
			return err
		}
		resp.Body.Close()
		dgst := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if dgst.Validate() != nil || dgst.Algorithm() != digest.SHA256 {
			dgst = ""
		}
		desc = imagespec.Descriptor{MediaType: mediaType(resp), Digest: dgst, Size: resp.ContentLength}
		return nil
	})
	return desc, err
}

// Manifest fetches what the reference stands for and verifies it against the digest, when the reference has one.
func (r *Repository) Manifest(ctx context.Context) (Manifest, error) {
	return r.manifest(ctx, r.ref.target())
}

// ManifestAt fetches the manifest with the digest, verified.
func (r *Repository) ManifestAt(ctx context.Context, dgst digest.Digest) (Manifest, error) {
	return r.manifest(ctx, dgst.String())
}

func (r *Repository) manifest(ctx context.Context, target string) (m Manifest, err error) {
	err = r.eachHost(ctx, r.capability(target), func(h docker.RegistryHost) error {
		m, err = r.manifestFrom(ctx, h, target)
		return err
	})
	return m, err
}

func (r *Repository) manifestFrom(ctx context.Context, h docker.RegistryHost, target string) (Manifest, error) {
	resp, err := r.send(ctx, h, http.MethodGet, "manifests/"+target, http.Header{"Accept": {acceptManifests}})
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	what := fmt.Sprintf("manifest %s of %s from %s", target, r.ref.Repository, h.Host)
	body, err := readBounded(resp.Body, MaxManifest, what)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Digest: digest.SHA256.FromBytes(body), Body: body}
	if want := digest.Digest(target); want.Validate() == nil && want != m.Digest {
		return Manifest{}, fault.New(fault.Corrupt, "%s has digest %s", what, m.Digest)
	}
	m.MediaType = mediaType(resp)
	return m, nil
}

// mediaType is what the response calls its content; "" when it does not say.
func mediaType(resp *http.Response) string {
	mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return mt
}

// Config fetches a small blob whole, verified: an image's config. The error is of kind Exhausted when it has more than
// limit bytes.
func (r *Repository) Config(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error) {
	stream, err := r.Blob(ctx, dgst, -1)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	what := fmt.Sprintf("blob %s of %s", dgst, r.ref.Repository)
	body, err := readBounded(stream, limit, what)
	if err != nil {
		return nil, err
	}
	if got := digest.SHA256.FromBytes(body); got != dgst {
		return nil, fault.New(fault.Corrupt, "%s from %s has digest %s", what, r.ref.Host(), got)
	}
	return body, nil
}

func readBounded(from io.Reader, limit int64, what string) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(from, limit+1))
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("read %s: %w", what, err))
	}
	if int64(len(body)) > limit {
		return nil, fault.New(fault.Exhausted, "%s is larger than %d bytes, which is more than any image needs", what, limit)
	}
	return body, nil
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
func (r *Repository) eachHost(ctx context.Context, need docker.HostCapabilities, ask func(docker.RegistryHost) error) error {
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
		if errors.Is(err, fault.Unavailable) {
			if answered[address] {
				continue
			}
			r.shun(h.Host)
		} else {
			answered[address] = true
		}
		texts = append(texts, err.Error())
		if last == nil || h.Host == r.hosts[len(r.hosts)-1].Host {
			last = err
		}
	}
	switch len(texts) {
	case 0:
		return fault.New(fault.Precondition, "no host of registry %s is allowed to serve %s: look at the capabilities in hosts.toml", r.ref.Host(), r.ref)
	case 1:
		return last
	}
	return fault.As(fault.Of(last), errors.New(strings.Join(texts, "; then ")))
}

// order is the hosts that may do what is needed: as they are configured, but those that were shunned last.
func (r *Repository) order(need docker.HostCapabilities) []docker.RegistryHost {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first, last []docker.RegistryHost
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

// Distrust has the host that served the blob last asked last from now on: what it sent was not the blob.
func (r *Repository) Distrust(blob digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if host := r.from[blob]; host != "" {
		r.late[host] = true
	}
}

func (r *Repository) servedBy(blob digest.Digest, host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from[blob] = host
}

// alternative tells whether there is a host to serve blobs that has not been shunned, beside this one.
func (r *Repository) alternative(host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.hosts, func(h docker.RegistryHost) bool {
		return h.Host != host && !r.late[h.Host] && h.Capabilities.Has(docker.HostCapabilityPull)
	})
}

// url builds the address of an endpoint of this repository at h. A mirror is told which registry it stands for.
func (r *Repository) url(h docker.RegistryHost, endpoint string) *url.URL {
	u := &url.URL{Scheme: h.Scheme, Host: h.Host, Path: h.Path + "/" + r.ref.Path() + "/" + endpoint}
	if canonicalHost(h.Host) != r.ref.Host() {
		u.RawQuery = url.Values{"ns": {r.ref.Host()}}.Encode()
	}
	return u
}
