package image

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// docs is a registry, or an archive, with arbitrary documents.
type docs struct {
	t     *testing.T
	addr  string
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	types map[digest.Digest]string
	tags  map[string]digest.Digest
}

type object = map[string]any

func newDocs(t *testing.T) *docs {
	d := &docs{t: t, blobs: make(map[digest.Digest][]byte), types: make(map[digest.Digest]string),
		tags: make(map[string]digest.Digest)}
	srv := httptest.NewServer(d)
	t.Cleanup(srv.Close)
	d.addr = strings.TrimPrefix(srv.URL, "http://")
	return d
}

func (d *docs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	id := digest.Digest(at)
	if tagged, ok := d.tags[at]; ok {
		id = tagged
	}
	body, ok := d.blobs[id]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", d.types[id])
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// blob stores the bytes under a digest of the algorithm.
func (d *docs) blob(a digest.Algorithm, body []byte) digest.Digest {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := a.FromBytes(body)
	d.blobs[id], d.types[id] = body, "application/octet-stream"
	return id
}

// doc stores a document and returns its descriptor.
func (d *docs) doc(doc object) object { return d.docBy(digest.SHA256, doc) }

func (d *docs) docBy(a digest.Algorithm, doc object) object {
	body, err := json.Marshal(doc)
	if err != nil {
		d.t.Fatal(err)
	}
	desc := object{"digest": d.blob(a, body), "size": len(body)}
	if mt, ok := doc["mediaType"]; ok {
		desc["mediaType"] = mt
	}
	return desc
}

// tag names a document in the registry.
func (d *docs) tag(tag string, desc object, mediaType string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := desc["digest"].(digest.Digest)
	d.tags[tag] = id
	d.types[id] = mediaType
	return d.addr + "/odd:" + tag
}

// image has the parts of an image, which a test may change before done.
type image struct {
	manifest, config, configDesc object
	layers                       []object
	plain                        [][]byte
}

func (d *docs) image(says string, layers ...[]byte) *image {
	if len(layers) == 0 {
		layers = [][]byte{tarOf(d.t, file{"a", says})}
	}
	i := &image{plain: layers}
	ids := []digest.Digest{}
	for _, l := range layers {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		w.Write(l)
		w.Close()
		ids = append(ids, digest.FromBytes(l))
		i.layers = append(i.layers, object{"mediaType": imagespec.MediaTypeImageLayerGzip,
			"digest": d.blob(digest.SHA256, packed.Bytes()), "size": packed.Len()})
	}
	i.config = object{"architecture": nodeArch, "os": "linux", "config": object{"Cmd": []string{says}},
		"rootfs": object{"type": "layers", "diff_ids": ids}}
	i.configDesc = object{"mediaType": imagespec.MediaTypeImageConfig}
	i.manifest = object{"schemaVersion": 2, "mediaType": imagespec.MediaTypeImageManifest}
	return i
}

// done stores the image and returns the descriptor of its manifest.
func (i *image) done(d *docs) object { return i.doneBy(d, digest.SHA256, digest.SHA256) }

func (i *image) doneBy(d *docs, config, manifest digest.Algorithm) object {
	desc := d.docBy(config, i.config)
	for k, v := range i.configDesc {
		desc[k] = v
	}
	i.manifest["config"], i.manifest["layers"] = desc, i.layers
	return d.docBy(manifest, i.manifest)
}

func with(desc object, pairs ...any) object {
	made := object{}
	for k, v := range desc {
		made[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		made[pairs[i].(string)] = pairs[i+1]
	}
	return made
}

func index(entries ...object) object {
	return object{"schemaVersion": 2, "mediaType": imagespec.MediaTypeImageIndex, "manifests": entries}
}

func platform(os, arch string) object { return object{"os": os, "architecture": arch} }

// signature returns a signature as cosign and others store it beside images.
func (d *docs) signature() object {
	body := d.blob(digest.SHA256, []byte("{}"))
	layer := object{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": body, "size": 2}
	i := d.image("signature")
	i.layers = []object{layer}
	return i.done(d)
}

// artifact returns an artifact with one file.
func (d *docs) artifact(configType string) object {
	body := []byte("file")
	return d.doc(object{
		"schemaVersion": 2, "mediaType": imagespec.MediaTypeImageManifest,
		"config": object{"mediaType": configType, "digest": d.blob(digest.SHA256, []byte("{}")), "size": 2},
		"layers": []object{{"mediaType": "application/vnd.oci.image.layer.v1.tar",
			"digest": d.blob(digest.SHA256, body), "size": len(body)}},
	})
}

// tar packs the documents as an OCI layout with these entries in index.json.
func (d *docs) tar(entries ...object) []byte {
	var files []file
	top, _ := json.Marshal(index(entries...))
	files = append(files, file{"index.json", string(top)})
	for id, body := range d.blobs {
		files = append(files, file{blobPath(id), string(body)})
	}
	return tarOf(d.t, files...)
}
