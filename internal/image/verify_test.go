package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
	"github.com/kuri-cri/kuri/internal/verifier"
)

// verified opens a store with one verifier, a program that records its input and refuses if the
// file "refuse" is beside its notes.
func verified(t *testing.T) (s *Store, notes string) {
	t.Helper()
	dir, notes := t.TempDir(), t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
cat >>%[1]s/asked
cat "$DOCKER_CONFIG/config.json" 2>/dev/null >%[1]s/auth
[ ! -e %[1]s/refuse ] || { echo "$2 is not signed"; exit 1; }
`, notes)
	if err := os.WriteFile(filepath.Join(dir, "signed"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	programs := verifier.New(verifier.Options{Dir: dir, Timeout: 20 * time.Second, Scratch: t.TempDir()})
	return openStore(t, "", func(o *Options) { o.Verifiers = programs }), notes
}

func refuse(t *testing.T, notes string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(notes, "refuse"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// asked returns the descriptors that the verifier has been given since the last call.
func asked(t *testing.T, notes string) []imagespec.Descriptor {
	t.Helper()
	body, _ := os.ReadFile(filepath.Join(notes, "asked"))
	os.Remove(filepath.Join(notes, "asked"))
	var all []imagespec.Descriptor
	for line := range strings.Lines(string(body)) {
		var d imagespec.Descriptor
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, d)
	}
	return all
}

func wantRefused(t *testing.T, err error, ref string) {
	t.Helper()
	if !errors.Is(err, fault.PermissionDenied) || !strings.HasPrefix(err.Error(),
		"SignatureValidationFailed: pull image "+ref) ||
		!strings.Contains(err.Error(), "verifier signed: refused with exit code 1: "+ref+" is not signed") {
		t.Errorf("%v", err)
	}
}

// A refused image costs its manifest and nothing else.
func TestRefusedImageIsNotFetched(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s, notes := verified(t)
	ref := h.push("app:1", imageOf(t, "x", layerOf(t, file{"a", "b"})))
	refuse(t, notes)
	_, err := s.Pull(t.Context(), ref, registry.Auth{})
	wantRefused(t, err, ref)
	if blobs := h.take("/blobs/"); len(blobs) != 0 {
		t.Errorf("fetched: %v", blobs)
	}
	if len(s.List()) != 0 {
		t.Errorf("there are images: %+v", s.List())
	}
	assertNoTempFiles(t, s)
	if d := asked(t, notes); len(d) != 1 {
		t.Errorf("asked about %v", d)
	}
}

// An existing image is verified again at each pull, under any name, and stays unchanged if it is
// refused.
func TestExistingImageIsVerified(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s, notes := verified(t)
	content := imageOf(t, "x", layerOf(t, file{"a", "b"}))
	ref := h.push("app:1", content)
	img := pull(t, s, ref)
	first := asked(t, notes)
	if len(first) != 1 || first[0].Digest.Validate() != nil || first[0].Size <= 0 ||
		!strings.HasSuffix(first[0].MediaType, "json") ||
		!strings.HasSuffix(img.Digests[0], first[0].Digest.String()) {
		t.Fatalf("asked about %+v for %+v", first, img)
	}

	h.take("")
	pull(t, s, ref)
	if d := asked(t, notes); len(d) != 1 || fmt.Sprint(d[0]) != fmt.Sprint(first[0]) {
		t.Errorf("asked about %+v, then about %+v", first, d)
	}
	if got := h.take("GET /v2/app"); len(got) != 0 {
		t.Errorf("fetched again: %v", got)
	}

	// A registry whose HEAD response lacks the size, or that does not support HEAD.
	for _, code := range []int{http.StatusOK, http.StatusMethodNotAllowed} {
		h.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodHead {
				return false
			}
			w.Header().Set("Docker-Content-Digest", first[0].Digest.String())
			w.WriteHeader(code)
			return true
		})
		pull(t, s, ref)
		if d := asked(t, notes); len(d) != 1 || fmt.Sprint(d[0]) != fmt.Sprint(first[0]) {
			t.Errorf("after a HEAD with %d, asked about %+v, before about %+v", code, d, first)
		}
	}
	h.set(nil)

	refuse(t, notes)
	other := h.push("app:2", content)
	for _, name := range []string{ref, other, strings.TrimSuffix(ref, ":1") + "@" + first[0].Digest.String()} {
		_, err := s.Pull(t.Context(), name, registry.Auth{})
		wantRefused(t, err, name)
	}
	if got, err := s.Get(ref); err != nil || got.ID != img.ID || len(got.References) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.Get(other); !errors.Is(err, fault.NotFound) {
		t.Errorf("the refused name is known: %v", err)
	}
}

// The verifier gets the credentials of the pull, and only those for the registry's host.
func TestVerifierGetsTheCredentials(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s, notes := verified(t)
	ref := h.push("app:1", imageOf(t, "x", layerOf(t, file{"a", "b"})))
	for _, row := range []struct {
		auth registry.Auth
		want string
	}{
		{registry.Auth{Username: "u", Password: "p"}, `{"auths":{"` + h.addr + `":{"auth":"dTpw"}}}`},
		{registry.Auth{Auth: "dTpw"}, `{"auths":{"` + h.addr + `":{"auth":"dTpw"}}}`},
		{registry.Auth{IdentityToken: "i"}, `{"auths":{"` + h.addr + `":{"identitytoken":"i"}}}`},
		{registry.Auth{RegistryToken: "r"}, `{"auths":{"` + h.addr + `":{"registrytoken":"r"}}}`},
		{registry.Auth{Username: "u", Password: "p", ServerAddress: "elsewhere.example"}, ""},
		{registry.Auth{}, ""},
	} {
		if _, err := s.Pull(t.Context(), ref, row.auth); err != nil {
			t.Errorf("%+v: %v", row.auth, err)
		}
		if got, _ := os.ReadFile(filepath.Join(notes, "auth")); string(got) != row.want {
			t.Errorf("%+v: the verifier sees %s, want %s", row.auth, got, row.want)
		}
	}
}
