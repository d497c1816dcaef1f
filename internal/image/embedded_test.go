package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// A descriptor may carry its content, which then need not be in the registry or the archive, as with
// containerd. Content that does not match the descriptor does not count.
func TestEmbeddedContent(t *testing.T) {
	needRoot(t)
	for name, row := range map[string]struct {
		config, layer, manifest bool   // embedded, and nowhere else
		data                    []byte // of the config, if it is not embedded
		kind                    fault.Kind
	}{
		"config":                          {config: true},
		"layer":                           {layer: true},
		"manifest in an index":            {manifest: true},
		"all":                             {config: true, layer: true, manifest: true},
		"not the content":                 {data: []byte("{}")},
		"a config of the wrong size":      {data: []byte("")},
		"not the content, and none there": {config: true, data: []byte("{}"), kind: fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDocs(t)
			i := d.image("yes")
			take := func(desc object) []byte {
				id := desc["digest"].(digest.Digest)
				defer delete(d.blobs, id)
				return d.blobs[id]
			}
			if row.layer {
				i.layers[0]["data"] = take(i.layers[0])
			}
			config, err := json.Marshal(i.config)
			if err != nil {
				t.Fatal(err)
			}
			if row.config {
				i.configDesc["data"] = config
			}
			if row.data != nil {
				i.configDesc["data"] = row.data
			}
			manifest := i.done(d)
			if row.config {
				delete(d.blobs, digest.FromBytes(config))
			}
			if row.manifest {
				manifest["data"] = take(manifest)
			}
			ref := d.tag("t", d.doc(index(manifest)), "")
			s := openStore(t, "")
			pulled, err := s.Pull(t.Context(), ref, registry.Auth{})
			loaded, lerr := openStore(t, "").Load(t.Context(), bytes.NewReader(d.tar(manifest)), "")
			if row.kind != "" {
				if !errors.Is(err, row.kind) || !errors.Is(lerr, fault.Invalid) {
					t.Errorf("%v; %v", err, lerr)
				}
				return
			}
			if err != nil || lerr != nil {
				t.Fatal(err, lerr)
			}
			if fileIn(t, s, pulled, "a") != "yes" || len(loaded) != 1 || loaded[0].ID != pulled.ID {
				t.Errorf("%+v, %+v", pulled, loaded)
			}
		})
	}
}
