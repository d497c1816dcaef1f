package image

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// FuzzLoad loads archives with arbitrary documents. INDEX, MANIFEST, CONFIG, LAYER and DIFF stand
// for the digests of the others, so that references between documents stay intact. An archive must
// either load, check and be removed, or be refused with a kind. Neither may leave anything behind.
func FuzzLoad(f *testing.F) {
	needRoot(f)
	config := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["DIFF"]},"config":{"Cmd":["a"]},"history":[{"created_by":"x"}]}`
	manifest := `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"CONFIG","size":1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"LAYER","size":2048}]}`
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"MANIFEST","size":1,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"org.opencontainers.image.ref.name":"app:1"}}]}`
	artifact := `{"schemaVersion":2,"artifactType":"application/x","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"CONFIG","size":2},"layers":[{"mediaType":"text/plain","digest":"LAYER","size":2048,"annotations":{"org.opencontainers.image.title":"../x"}}]}`
	nested := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"MANIFEST","size":1}]}`
	dockers := `[{"Config":"config","RepoTags":["app:1"],"Layers":["layer"]}]`
	f.Add(false, index, manifest, config, "")
	f.Add(false, index, artifact, `{}`, "")
	f.Add(false, index, nested, config, "")
	f.Add(true, dockers, manifest, config, "")
	f.Add(true, `[{"Config":"layer","Layers":["config","layer"]}]`, "", config, "")
	f.Add(false, index, manifest, config,
		`{"version":1,"images":[{"id":"CONFIG","manifest":"MANIFEST","documents":["INDEX","CONFIG"],"names":["app:1","x@MANIFEST","y@INDEX linux/arm64"]}]}`)
	layers := tarOf(f, file{"etc/a", "x"})
	s := openStore(f, "")
	f.Fuzz(func(t *testing.T, docker bool, index, manifest, config, travel string) {
		top := "index.json"
		if docker {
			top = "manifest.json"
		}
		config = strings.ReplaceAll(config, "DIFF", digest.FromBytes(layers).String())
		at := map[string]string{"LAYER": digest.FromBytes(layers).String(),
			"CONFIG": digest.FromString(config).String()}
		fill := func(doc string) string {
			for word, d := range at {
				doc = strings.ReplaceAll(doc, word, d)
			}
			return doc
		}
		manifest = fill(manifest)
		at["MANIFEST"] = digest.FromString(manifest).String()
		index = fill(index)
		at["INDEX"] = digest.FromString(index).String()
		blob := func(d string) string { return "blobs/sha256/" + strings.TrimPrefix(d, "sha256:") }
		archive := tarOf(t, file{top, index}, file{"config", config}, file{"layer", string(layers)},
			file{blob(at["LAYER"]), string(layers)}, file{blob(at["CONFIG"]), config},
			file{blob(at["MANIFEST"]), manifest}, file{blob(at["INDEX"]), index},
			file{provenanceFile, fill(travel)})
		images, err := s.Load(t.Context(), bytes.NewReader(archive), "")
		if err != nil && fault.Of(err) == "" {
			t.Errorf("an error of no kind: %v", err)
		}
		if errors.Is(err, fault.Exhausted) && strings.Contains(err.Error(), "free space") {
			t.Fatal(err)
		}
		if err := s.Check(t.Context(), func(f Finding) { t.Errorf("damaged: %+v", f) }); err != nil {
			t.Error(err)
		}
		for _, img := range images {
			if _, err := s.Describe(img.ID); err != nil {
				t.Error(err)
			}
		}
		for _, img := range s.List() { // an archive that failed may have loaded some
			if err := s.Remove(img.ID); err != nil {
				t.Error(err)
			}
		}
		assertEmpty(t, s)
	})
}
