package oci

import (
	"bytes"
	"encoding/json"
	"slices"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// seccompProfile is a seccomp profile in the forms that a start needs. Decoding and converting
// RuntimeDefault takes a third of a millisecond and 100 KiB of garbage. It is immutable.
type seccompProfile struct {
	encoded []byte // in a bundle
	spec    *specs.LinuxSeccomp
	config  *configs.Seccomp
}

// profiles are the last profiles of containers, the newest last. The containers of a node have one
// or two. The zero value is ready for concurrent use.
type profiles struct {
	mu     sync.Mutex // guards recent
	recent []*seccompProfile
}

// decode returns the profile that is encoded in a specification. The caller must not change it.
func (p *profiles) decode(encoded []byte) (*specs.LinuxSeccomp, error) {
	same := func(known *seccompProfile) bool { return bytes.Equal(known.encoded, encoded) }
	if known := p.find(same); known != nil {
		return known.spec, nil
	}
	made := &seccompProfile{encoded: bytes.Clone(encoded)}
	if err := json.Unmarshal(encoded, &made.spec); err != nil || made.spec == nil {
		return nil, err
	}
	var err error
	if made.config, err = specconv.SetupSeccomp(made.spec); err != nil {
		return made.spec, nil // convert returns the error
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent = append(slices.DeleteFunc(p.recent, same), made)
	if len(p.recent) > recentMax {
		p.recent = slices.Delete(p.recent, 0, 1)
	}
	return made.spec, nil
}

// convert returns libcontainer's form of a profile. The caller must not change it.
func (p *profiles) convert(spec *specs.LinuxSeccomp) (*configs.Seccomp, error) {
	if known := p.find(func(known *seccompProfile) bool { return known.spec == spec }); known != nil {
		return known.config, nil
	}
	return specconv.SetupSeccomp(spec)
}

// find returns a recent profile, and makes it the newest; nil if there is none.
func (p *profiles) find(is func(*seccompProfile) bool) *seccompProfile {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := slices.IndexFunc(p.recent, is)
	if at < 0 {
		return nil
	}
	found := p.recent[at]
	p.recent = append(slices.Delete(p.recent, at, at+1), found)
	return found
}
