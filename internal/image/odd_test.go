package image

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Sloppy images that docker and containerd run must be pulled.
func TestSloppyImagesArePulled(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	s := openStore(t, "")
	n := 0
	good := func(name, mediaType string, desc object) {
		t.Helper()
		n++
		ref := d.tag(fmt.Sprint("t", n), desc, mediaType)
		img, err := s.Pull(t.Context(), ref, registry.Auth{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		if got := fileIn(t, s, img, "a"); got != "yes" || img.Config.Cmd[0] != "yes" {
			t.Errorf("%s: the image of %q, command %v", name, got, img.Config.Cmd)
		}
		if err := s.Check(t.Context(), func(f Finding) { t.Errorf("%s: damaged: %+v", name, f) }); err != nil {
			t.Error(err)
		}
		if _, err := s.Describe(ref); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Remove(ref); err != nil {
			t.Error(err)
		}
		assertEmpty(t, s)
	}
	made := func(change func(i *image)) object {
		i := d.image("yes")
		change(i)
		return i.done(d)
	}
	for name, change := range map[string]func(i *image){
		"as it should be":            func(*image) {},
		"no schema version":          func(i *image) { delete(i.manifest, "schemaVersion") },
		"schema version as text":     func(i *image) { i.manifest["schemaVersion"] = "2" },
		"another schema version":     func(i *image) { i.manifest["schemaVersion"] = 3 },
		"no media type":              func(i *image) { delete(i.manifest, "mediaType") },
		"an odd media type":          func(i *image) { i.manifest["mediaType"] = "application/vnd.example+json" },
		"an empty list of manifests": func(i *image) { i.manifest["manifests"] = []any{} },
		"no type of the rootfs":      func(i *image) { delete(i.config["rootfs"].(object), "type") },
		"no platform":                func(i *image) { delete(i.config, "os"); delete(i.config, "architecture") },
		"another architecture":       func(i *image) { i.config["architecture"] = "s390x" },
		"another operating system":   func(i *image) { i.config["os"] = "darwin" },
		"a variant that is not here": func(i *image) { i.config["variant"] = "v9" },
		"a date that is none":        func(i *image) { i.config["created"] = "" },
		"a history with odd dates":   func(i *image) { i.config["history"] = []any{object{"created": "yesterday"}} },
		"a command of one word":      func(i *image) { i.config["config"].(object)["Cmd"] = "yes" },
		"lists that are null":        func(i *image) { i.config["config"].(object)["Env"] = nil; i.config["config"].(object)["Volumes"] = nil },
		"config as application/json": func(i *image) { i.configDesc["mediaType"] = "application/json" },
		"config of no type":          func(i *image) { delete(i.configDesc, "mediaType") },
		"config of an odd type":      func(i *image) { i.configDesc["mediaType"] = "application/vnd.example.config+json" },
		"config of docker's type":    func(i *image) { i.configDesc["mediaType"] = "application/vnd.docker.container.image.v1+json" },
		"config without a size":      func(i *image) { i.configDesc["size"] = 0 },
		"layer as octet-stream":      func(i *image) { i.layers[0]["mediaType"] = "application/octet-stream" },
		"layer of no type":           func(i *image) { delete(i.layers[0], "mediaType") },
		"layer as a gzip":            func(i *image) { i.layers[0]["mediaType"] = "application/x-gzip" },
		"docker's foreign layer":     func(i *image) { i.layers[0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" },
		"nondistributable layer": func(i *image) {
			i.layers[0]["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		},
		"foreign layer with addresses": func(i *image) { i.layers[0]["urls"] = []string{"https://nowhere.invalid/layer"} },
		"layer that is not gzip":       func(i *image) { i.layers[0]["mediaType"] = imagespec.MediaTypeImageLayerZstd },
		"layer without a size":         func(i *image) { delete(i.layers[0], "size") },
		"layer of zstd:chunked": func(i *image) {
			body := zstdChunked(t, i.plain[0])
			i.layers[0] = object{"mediaType": imagespec.MediaTypeImageLayerZstd, "digest": d.blob(digest.SHA256, body),
				"size": len(body), "annotations": object{
					"io.github.containers.zstd-chunked.manifest-checksum": digest.FromString("lie"),
					"io.github.containers.zstd-chunked.manifest-position": "-1:99999999999:x:0"}}
		},
		"layer of eStargz": func(i *image) {
			body := stargz(i.plain[0])
			i.layers[0] = object{"mediaType": imagespec.MediaTypeImageLayerGzip, "digest": d.blob(digest.SHA256, body),
				"size": len(body), "annotations": object{
					"containerd.io/snapshot/stargz/toc.digest": digest.FromString("lie")}}
		},
		"a history that is too long": func(i *image) {
			i.config["history"] = []any{object{},
				object{"empty_layer": false}, object{}}
		},
		"ports and labels that are odd": func(i *image) {
			i.config["config"].(object)["ExposedPorts"] = object{"": object{}, "http/tcp": object{}, "80": nil}
			i.config["config"].(object)["Labels"] = object{"": "", "a": ""}
		},
		"no command of its own": func(i *image) { i.config["config"].(object)["Entrypoint"] = []string{} },
		"names in lower case": func(i *image) {
			i.config["config"] = object{"cmd": []string{"yes"}}
		},
		"an annotation that is null": func(i *image) { i.manifest["annotations"] = object{"a": nil} },
		"a subject that is not here": func(i *image) {
			i.manifest["subject"] = object{"mediaType": imagespec.MediaTypeImageManifest,
				"digest": digest.FromString("gone"), "size": 3}
		},
		"an empty artifact type": func(i *image) { i.manifest["artifactType"] = "" },
		"nothing says what it is": func(i *image) {
			delete(i.configDesc, "mediaType")
			delete(i.manifest, "mediaType")
			i.layers[0]["mediaType"] = "application/octet-stream"
		},
		"an environment without values": func(i *image) { i.config["config"].(object)["Env"] = []string{"NOEQ", ""} },
	} {
		good(name, imagespec.MediaTypeImageManifest, made(change))
	}
	for _, mt := range []string{
		"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar",
		"Application/Vnd.OCI.Image.Layer.V1.Tar+GZIP", "application/vnd.oci.image.layer.v1.tar+gzip; charset=binary",
		"application/x-tar", "application/vnd.example.layer.tar+gzip",
	} {
		good("layer as "+mt, imagespec.MediaTypeImageManifest, made(func(i *image) { i.layers[0]["mediaType"] = mt }))
	}
	plain := made(func(*image) {})
	for _, mt := range []string{"", "application/json", "text/plain; charset=utf-8", "binary/octet-stream",
		"application/vnd.example", registry.DockerManifest} {
		good("sent as "+mt, mt, plain)
	}

	// The same layer several times, in any position.
	e, a := tarOf(t), tarOf(t, file{"a", "yes"})
	for name, layers := range map[string][][]byte{
		"twice":          {a, a},
		"apart":          {a, tarOf(t, file{"b", ""}), a},
		"empty ones":     {e, a, e, e},
		"no bytes":       {{}, a},
		"all the same":   slices.Repeat([][]byte{a}, 200),
		"on top of it":   {tarOf(t, file{"a", "no"}), a},
		"there and back": {a, tarOf(t, file{"a", "no"}), a},
	} {
		good("layers: "+name, "", d.image("yes", layers...).done(d))
	}
	i := d.image("yes", a, a)
	z, _ := zstd.NewWriter(nil)
	packed := z.EncodeAll(a, nil)
	i.layers[1] = object{"mediaType": imagespec.MediaTypeImageLayerZstd, "digest": d.blob(digest.SHA256, packed),
		"size": len(packed)}
	good("layers: one content, two blobs", "", i.done(d))

	// Other digest algorithms.
	for _, by := range []digest.Algorithm{digest.SHA384, digest.SHA512} {
		i := d.image("yes")
		i.layers[0]["digest"] = d.blob(by, d.blobs[i.layers[0]["digest"].(digest.Digest)])
		good("layer by "+by.String(), "", i.done(d))
		i = d.image("yes")
		i.config["rootfs"].(object)["diff_ids"] = []digest.Digest{by.FromBytes(i.plain[0])}
		good("diffID by "+by.String(), "", i.done(d))
		good("config by "+by.String(), "", d.image("yes").doneBy(d, by, digest.SHA256))
		good("manifest by "+by.String(), "", d.doc(index(d.image("yes").doneBy(d, digest.SHA256, by))))
		desc := d.image("yes").doneBy(d, by, by)
		ref := d.addr + "/odd@" + desc["digest"].(digest.Digest).String()
		img := pull(t, s, ref)
		if again := pull(t, s, ref); again != img || !slices.Equal(img.Digests, []string{ref}) {
			t.Errorf("%+v", again)
		}
		s.Remove(ref)
	}
}

// The image is found among other entries of an index, in any order.
func TestTheImageIsFoundInAnIndex(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	s := openStore(t, "")
	yes := d.image("yes").done(d)
	no := d.image("no").done(d)
	alien := d.image("no")
	alien.config["architecture"] = "s390x"
	foreign := alien.done(d)
	mislabelled := d.image("yes")
	mislabelled.config["architecture"] = "s390x"
	windows := d.image("no")
	windows.config["os"] = "windows"
	unknown := with(d.signature(), "platform", platform("unknown", "unknown"))
	attestation := with(no, "annotations", object{"vnd.docker.reference.type": "attestation-manifest"})
	here, there := platform("linux", nodeArch), platform("linux", "s390x")
	missing := object{"mediaType": imagespec.MediaTypeImageManifest,
		"digest": digest.FromString("not there"), "size": 7}
	old := d.doc(object{"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws",
		"fsLayers": []any{}})
	nested := d.doc(index(with(no, "platform", there), with(yes, "platform", here)))
	for name, row := range map[string]struct {
		index object
		says  string // "yes", "file" for an artifact, or part of the error
	}{
		"an artifact first": {index(d.artifact("application/vnd.example+json"), yes), "yes"},
		"an artifact of ORAS first": {index(d.artifact(imagespec.MediaTypeEmptyJSON),
			d.artifact("application/vnd.unknown.config.v1+json"), yes), "yes"},
		"a signature first": {index(d.signature(), yes), "yes"},
		"a signature last":  {index(yes, d.signature()), "yes"},
		"attestations":      {index(unknown, attestation, yes), "yes"},
		"attestation of this platform": {index(with(d.signature(), "platform", here),
			with(yes, "platform", here)), "yes"},
		"platformless, another first":        {index(foreign, yes), "yes"},
		"platformless, another last":         {index(yes, foreign), "yes"},
		"platformless, two that fit":         {index(yes, no), "yes"},
		"the platform over what names none":  {index(no, with(yes, "platform", here)), "yes"},
		"an index says more than a config":   {index(with(mislabelled.done(d), "platform", here)), "yes"},
		"platformless, mislabelled, alone":   {index(mislabelled.done(d)), "yes"},
		"the same, beside a signature":       {index(d.signature(), mislabelled.done(d)), "yes"},
		"platformless for Windows":           {index(windows.done(d)), "not made for this node"},
		"platformless, two others":           {index(foreign, mislabelled.done(d)), "linux/s390x"},
		"for others, and a signature":        {index(d.signature(), with(no, "platform", there)), "linux/s390x"},
		"one of a mirror's that is not here": {index(missing, yes), "yes"},
		"the platform's is not here":         {index(with(missing, "platform", here), no), "not there"},
		"nested":                             {index(nested), "yes"},
		"nested, after another":              {index(d.doc(index(with(no, "platform", there))), nested), "yes"},
		"nested, for others":                 {index(d.doc(index(with(no, "platform", there)))), "linux/s390x"},
		"the same entry twice":               {index(yes, yes), "yes"},
		"an artifact alone":                  {index(d.artifact("application/vnd.example+json")), "file"},
		"no schema version, no types": {object{"manifests": []object{{"digest": yes["digest"],
			"size": yes["size"]}}}, "yes"},
		"one platform twice": {index(with(yes, "platform", here), with(no, "platform", here)), "yes"},
		// as in containerd
		"one platform twice, the first gone": {index(with(missing, "platform", here),
			with(yes, "platform", here)), "not there"},
		"a platform that is null": {index(with(yes, "platform", nil)), "yes"},
		"a platform in other letters": {index(with(no, "platform", there),
			with(yes, "platform", platform("Linux", strings.ToUpper(nodeArch)))), "yes"},
		"an operating system alone": {index(with(yes, "platform", object{"os": "linux"})), "yes"},
		"a version of the system":   {index(with(yes, "platform", with(here, "os.version", "9"))), "yes"},
		"a feature that is not here": {index(with(yes, "platform",
			with(here, "os.features", []string{"x"}))), "linux(+x)"},
		"lists of lists": {index(d.doc(index(d.doc(index(nested))))), "yes"},
		"a list in a list of docker's": {with(index(with(nested, "mediaType", registry.DockerManifestList)),
			"mediaType", registry.DockerManifestList), "yes"},
		"a list that is called an image": {index(with(nested, "mediaType",
			imagespec.MediaTypeImageManifest)), "yes"},
		"an image that is called a list": {index(with(yes, "mediaType", imagespec.MediaTypeImageIndex)), "yes"},
		"schema 1 beside it":             {index(old, yes), "yes"},
		"schema 1 alone":                 {index(with(old, "platform", here)), "schema 1"},
		"an entry without a digest": {index(object{"mediaType": imagespec.MediaTypeImageManifest},
			yes), "digest"},
		"an entry of another size": {index(with(yes, "size", 1)), "yes"},
		"empty platforms": {index(with(yes, "platform",
			object{"os": "", "architecture": ""})), "yes"},
		"too many to look at": {index(slices.Repeat([]object{d.signature()},
			maxLooked+1)...), "more than"},
		"nothing": {object{"schemaVersion": 2, "manifests": []any{}}, "none"},
	} {
		ref := d.tag("t", d.doc(row.index), "")
		img, err := s.Pull(t.Context(), ref, registry.Auth{})
		switch {
		case err != nil:
			if fault.Of(err) == "" || !strings.Contains(err.Error(), row.says) {
				t.Errorf("%s: %v", name, err)
			}
		case row.says == "file":
			if got := fileIn(t, s, img, digest.FromString("file").Encoded()); got != "file" {
				t.Errorf("%s: the file has %q", name, got)
			}
		case fileIn(t, s, img, "a") != row.says:
			t.Errorf("%s: the image of %q", name, fileIn(t, s, img, "a"))
		}
		for _, img := range s.List() {
			s.Remove(img.ID)
		}
		assertEmpty(t, s)
	}
}

func TestArtifactsAreNotImages(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	s := openStore(t, "")
	for _, configType := range []string{"application/json", "application/octet-stream", "",
		imagespec.MediaTypeEmptyJSON, "application/vnd.unknown.config.v1+json",
		"application/vnd.cncf.helm.config.v1+json"} {
		img := pull(t, s, d.tag("t", d.artifact(configType), ""))
		if got := fileIn(t, s, img, digest.FromString("file").Encoded()); got != "file" {
			t.Errorf("config of type %q: the file has %q", configType, got)
		}
	}
	twice := object{"mediaType": "text/plain", "digest": d.blob(digest.SHA256, []byte("file")), "size": 4}
	titled := with(twice, "annotations", object{imagespec.AnnotationTitle: "f"})
	respelt := with(twice, "annotations", object{imagespec.AnnotationTitle: "./f"})
	i := d.image("x")
	i.configDesc["mediaType"] = "application/vnd.example+json"
	i.layers = []object{twice, twice, titled, respelt}
	img := pull(t, s, d.tag("t", i.done(d), ""))
	if fileIn(t, s, img, "f") != "file" {
		t.Error("one file given twice")
	}
}

func TestLayerWithForeignURLs(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	i := d.image("x")
	delete(d.blobs, i.layers[0]["digest"].(digest.Digest))
	i.layers[0]["urls"] = []string{"http://169.254.169.254/latest"}
	_, err := openStore(t, "").Pull(t.Context(), d.tag("t", i.done(d), ""), registry.Auth{})
	if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "169.254.169.254") ||
		!strings.Contains(err.Error(), "push the image") {
		t.Errorf("%v", err)
	}
}

// Nearly empty configs, of images without layers and with one.
func TestEmptyConfigs(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	s := openStore(t, "")
	for body, row := range map[string]struct {
		layers int
		says   string // part of the error; "": it is an image
	}{
		`{}`:                     {0, ""},
		` {"rootfs":null} `:      {0, ""},
		`{"config":null}`:        {0, ""},
		`{"rootfs":{"type":""}}`: {0, ""},
		`null`:                   {0, ""},
		``:                       {0, "config"},
		`[]`:                     {0, "config"},
		`"x"`:                    {0, "config"},
		`{"rootfs":{"type":"layers","diff_ids":["sha256:1"]}}`: {0, "digest"},
		`{} `:    {1, "0 layers"},
		`null `:  {1, "0 layers"},
		`{"a":1`: {1, "config"},
	} {
		i := d.image("x")
		i.layers = i.layers[:row.layers]
		i.manifest["config"] = object{"mediaType": imagespec.MediaTypeImageConfig,
			"digest": d.blob(digest.SHA256, []byte(body)), "size": len(body)}
		i.manifest["layers"] = i.layers
		img, err := s.Pull(t.Context(), d.tag("t", d.doc(i.manifest), imagespec.MediaTypeImageManifest),
			registry.Auth{})
		switch {
		case row.says == "" && err != nil, row.says != "" &&
			(fault.Of(err) == "" || !strings.Contains(err.Error(), row.says)):
			t.Errorf("%q with %d layers: %v", body, row.layers, err)
		case err == nil:
			s.Remove(img.ID)
		}
		assertEmpty(t, s)
	}
}

// zstdChunked compresses a tar as podman does: in frames, with the table of contents in skippable
// frames.
func zstdChunked(t *testing.T, plain []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	skipped := func(body []byte) []byte {
		head := binary.LittleEndian.AppendUint32(nil, 0x184d2a50)
		return append(binary.LittleEndian.AppendUint32(head, uint32(len(body))), body...)
	}
	half := len(plain) / 2
	return slices.Concat(z.EncodeAll(plain[:half], nil), z.EncodeAll(plain[half:], nil),
		skipped(z.EncodeAll([]byte("{}"), nil)), skipped(make([]byte, 64)))
}

// stargz compresses a tar as several gzip members, the last of which is empty and has an extra
// field.
func stargz(plain []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	for from := 0; from < len(plain); from += 700 {
		w.Reset(&out)
		w.Write(plain[from:min(from+700, len(plain))])
		w.Close()
	}
	w.Reset(&out)
	w.Extra = append([]byte("SG\x16\x00"), fmt.Sprintf("%016xSTARGZ", 0)...)
	w.Close()
	return out.Bytes()
}
