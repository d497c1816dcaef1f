package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// If the reference resolves but a part of the image is missing, the error says so: the name and the tag
// are right.
func TestMissingPartOfAnImage(t *testing.T) {
	c := newContent(t)
	addr := serve(t, c.ServeHTTP)
	gone := digest.FromString("gone")
	for ref, whole := range map[string]bool{"/library/app:1": true, "/library/app:2": false,
		"/library/app@" + gone.String(): false} {
		r := open(t, nil, addr+ref, Auth{})
		_, err := r.Manifest(t.Context())
		if whole == errors.Is(err, fault.NotFound) || !whole && !strings.Contains(err.Error(), "check the name and the tag") {
			t.Errorf("%s: %v", ref, err)
		}
	}
	r := open(t, nil, addr+"/library/app:1", Auth{})
	_, manifest := r.ManifestAt(t.Context(), gone)
	_, config := r.Config(t.Context(), gone, 100)
	_, blob := r.Blob(t.Context(), gone, 100)
	for what, err := range map[string]error{"manifests/": manifest, "blobs/": errors.Join(config, blob)} {
		says := what + gone.String() + " of the image is not there"
		if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), says) ||
			strings.Contains(err.Error(), "check the name") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
