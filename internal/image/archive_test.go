package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// dockerTar returns a docker-archive with the entries and files.
func dockerTar(t *testing.T, entries []dockerEntry, files ...file) []byte {
	t.Helper()
	body, err := json.Marshal(entries)
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, append(files, file{"manifest.json", string(body)})...)
}

// Every image of an archive is loaded with each of its names once.
func TestNamesOfAnArchive(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	one, two := d.image("one"), d.image("two")
	oneDesc, twoDesc := one.done(d), two.done(d)
	foreign := d.image("foreign")
	foreign.config["architecture"] = "s390x"
	foreignDesc := foreign.done(d)
	windows := d.image("windows")
	windows.config["os"] = "windows"
	windowsDesc := windows.done(d)
	ref := func(desc object, name string) object {
		return with(desc, "annotations", object{imagespec.AnnotationRefName: name})
	}
	full := func(desc object, name string) object {
		return with(desc, "annotations", object{"io.containerd.image.name": name, imagespec.AnnotationRefName: "x"})
	}
	config := func(i *image) string {
		body, _ := json.Marshal(i.config)
		return string(body)
	}
	docker := func(entries ...dockerEntry) []byte {
		return dockerTar(t, entries, file{"1.json", config(one)}, file{"1/layer.tar", string(one.plain[0])},
			file{"2.json", config(two)}, file{"2.tar", string(two.plain[0])})
	}
	first := func(tags ...string) dockerEntry {
		return dockerEntry{Config: "1.json", RepoTags: tags, Layers: []string{"1/layer.tar"}}
	}
	second := func(tags ...string) dockerEntry {
		return dockerEntry{Config: "./2.json", RepoTags: tags, Layers: []string{"x/../2.tar"}}
	}
	here, there := platform("linux", nodeArch), platform("linux", "s390x")
	hex := strings.Repeat("a", 64)
	for name, row := range map[string]struct {
		body  []byte
		given string
		want  string // "one=names", sorted; or part of the error
	}{
		"tags alone": {d.tar(ref(oneDesc, "v1"), ref(twoDesc, "v2")), "", "one= two="},
		"tags, a repository": {d.tar(ref(oneDesc, "v1"), ref(twoDesc, "v2")), "reg.example/x",
			"one=reg.example/x:v1 two=reg.example/x:v2"},
		"tags, a name": {d.tar(ref(oneDesc, "v1"), ref(twoDesc, "v2")), "reg.example/x:3",
			"a repository without a tag"},
		"one tag twice": {d.tar(ref(oneDesc, "v1"), ref(oneDesc, "v1")), "x",
			"one=docker.io/library/x:v1"},
		"one tag, two images": {d.tar(ref(oneDesc, "v1"), ref(twoDesc, "v1")), "",
			"two images have the name"},
		"one name, two images": {d.tar(full(oneDesc, "x:1"), full(twoDesc, "docker.io/library/x:1")), "",
			"two images have the name"},
		"one name, two platforms": {d.tar(with(full(twoDesc, "x:1"), "platform", there),
			with(full(oneDesc, "x:1"), "platform", here)), "", "one=docker.io/library/x:1"},
		"one name, platforms by config": {d.tar(full(foreignDesc, "x:1"), full(oneDesc, "x:1")), "",
			"one=docker.io/library/x:1"},
		"one image, two names": {d.tar(full(oneDesc, "x:1"), full(oneDesc, "x:2")), "",
			"one=docker.io/library/x:1,docker.io/library/x:2"},
		"one name, spelled thrice": {d.tar(full(oneDesc, "x:1"), full(oneDesc, "docker.io/x:1"),
			ref(oneDesc, "index.docker.io/library/x:1")), "", "one=docker.io/library/x:1"},
		"no names":        {d.tar(oneDesc, twoDesc), "", "one= two="},
		"no names, given": {d.tar(oneDesc, twoDesc), "x", "can name one only"},
		"no name, twice":  {d.tar(oneDesc, oneDesc), "x", "one=docker.io/library/x:latest"},
		"no names, two platforms": {d.tar(with(twoDesc, "platform", there), with(oneDesc, "platform", here)), "x",
			"one=docker.io/library/x:latest"},
		"no names, platforms by config": {d.tar(foreignDesc, oneDesc), "", "foreign= one="},
		"no names, one platform": {d.tar(with(twoDesc, "platform", here), with(oneDesc, "platform", here)),
			"", "one= two="},
		"labelled for others": {d.tar(with(foreignDesc, "platform", there)), "", "foreign="},
		"for others only": {d.tar(with(full(foreignDesc, "x:1"), "platform", there),
			with(full(twoDesc, "x:1"), "platform", platform("linux", "riscv64"))), "", "linux/s390x"},
		"too many to be honest": {d.tar(slices.Repeat([]object{oneDesc}, maxImages+1)...), "", "more than"},
		"Windows":               {d.tar(full(windowsDesc, "x:1")), "", "not made for this node"},
		"named and not": {d.tar(full(oneDesc, "x:1"), twoDesc), "y",
			"one=docker.io/library/x:1 two=docker.io/library/y:latest"},
		"names that are none": {d.tar(full(oneDesc, "<none>:<none>"), full(twoDesc, "sha256:"+hex)),
			"", "one= two="},
		"with a signature":          {d.tar(d.signature(), full(oneDesc, "x:1")), "", "one=docker.io/library/x:1"},
		"with a signature, no name": {d.tar(d.signature(), oneDesc), "x:1", "one=docker.io/library/x:1"},
		"a digest": {d.tar(full(oneDesc,
			"x@"+oneDesc["digest"].(digest.Digest).String())), "", "one="},

		"docker": {docker(first("x:1"), second("y:1")), "",
			"one=docker.io/library/x:1 two=docker.io/library/y:1"},
		"docker: null":        {docker(first()), "", "one="},
		"docker: null, given": {docker(first()), "x", "one=docker.io/library/x:latest"},
		"docker: one null, given": {docker(first("x:1"), second()), "y:1",
			"one=docker.io/library/x:1 two=docker.io/library/y:1"},
		"docker: two null, given": {docker(first(), second()), "y:1", "can name one only"},
		"docker: twice": {docker(first("x:1", "x:1", "docker.io/library/x:1")), "",
			"one=docker.io/library/x:1"},
		"docker: empty": {docker(first("", "x:1", "<none>:<none>")), "", "one=docker.io/library/x:1"},
		"docker: one image twice": {docker(first("x:1"), first("x:2")), "",
			"one=docker.io/library/x:1,docker.io/library/x:2"},
		"docker: one name twice": {docker(first("x:1"), second("x:1")), "", "one= two=docker.io/library/x:1"},
		"docker: a layer is not there": {docker(first("x:1"),
			dockerEntry{"2.json", []string{"y:1"}, []string{"3.tar"}}), "", "3.tar"},
		"docker: a bad name":          {docker(first("Bad Name")), "", "Bad Name"},
		"docker: an entry of nothing": {docker(first("x:1"), dockerEntry{}), "", "no config"},
		"docker, and an index of none": {tarOf(t, file{"index.json", `{"manifests":[]}`}, file{"1.json", config(one)},
			file{"1.tar", string(one.plain[0])}, file{"manifest.json",
				`[{"Config":"1.json","RepoTags":["x:1"],"Layers":["1.tar"]}]`}), "", "one=docker.io/library/x:1"},
		"docker before 1.10": {tarOf(t, file{"repositories", `{}`}), "", "before 1.10"},
		"skopeo's dir":       {dirTar(d, oneDesc), "x:1", "one=docker.io/library/x:1"},
		"one file in two spellings": {tarOf(t, file{"./manifest.json", `[{"Config":"1","Layers":["2"]}]`},
			file{"a/../manifest.json", `[{"Config":"1","Layers":["2"]}]`}, file{"1", config(one)},
			file{"/2", string(one.plain[0])}), "", "one="},
		"two files of one name": {tarOf(t, file{"manifest.json", `[{"Config":"1","Layers":["2"]}]`},
			file{"./manifest.json", `[]`}), "", "different files"},
		"two configs of one name": {tarOf(t, file{"manifest.json", `[{"Config":"1","Layers":["2"]}]`},
			file{"1", config(one)}, file{"1", config(two)}, file{"2", string(one.plain[0])}), "", "different files"},
		"two archives in a row": {append(docker(first("x:1")), docker(second("y:1"))...), "",
			"load them one by one"},
		"zeros behind it": {append(docker(first("x:1")), make([]byte, 10240)...), "",
			"one=docker.io/library/x:1"},
		"something behind it": {append(docker(first("x:1")), "what is this"...), "", "after the end"},
		"no end": {docker(first("x:1"))[:len(docker(first("x:1")))-1024], "",
			"one=docker.io/library/x:1"},
		"cut off in the last file":     {docker(first("x:1"))[:len(docker(first("x:1")))-1024-512], "", "truncated"},
		"cut off before the last file": {docker(first("x:1"))[:len(docker(first("x:1")))-1024-1024], "", "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			for packing, packed := range map[string][]byte{"plain": row.body, "gzip": gzipOf(row.body)} {
				s := openStore(t, "")
				images, err := s.Load(t.Context(), bytes.NewReader(packed), row.given)
				if err != nil {
					if fault.Of(err) == "" || !strings.Contains(err.Error(), row.want) {
						t.Errorf("%s: %v, want %q", packing, err, row.want)
					}
					for _, img := range s.List() {
						s.Remove(img.ID)
					}
					assertEmpty(t, s)
					continue
				}
				var got []string
				for _, img := range images {
					got = append(got, img.Config.Cmd[0]+"="+strings.Join(img.References, ","))
					if fileIn(t, s, img, "a") != img.Config.Cmd[0] {
						t.Errorf("%s: the wrong layer", packing)
					}
				}
				slices.Sort(got)
				if all := strings.Join(got, " "); all != row.want || len(images) != len(s.List()) {
					t.Errorf("%s: %q, want %q", packing, all, row.want)
				}
			}
		})
	}
}

func gzipOf(body []byte) []byte {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(body)
	w.Close()
	return packed.Bytes()
}

// dirTar returns the output of "skopeo copy … dir:" as a tar.
func dirTar(d *docs, desc object) []byte {
	files := []file{{"version", "Directory Transport Version: 1.1\n"},
		{"manifest.json", string(d.blobs[desc["digest"].(digest.Digest)])}}
	for id, body := range d.blobs {
		files = append(files, file{id.Encoded(), string(body)})
	}
	return tarOf(d.t, files...)
}

// An archive is loaded completely or is an error, however it is compressed.
func TestCompressedArchives(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	body := d.tar(with(d.image("one").done(d), "annotations", object{"io.containerd.image.name": "x:1"}))
	half := len(body) / 2
	z, _ := zstd.NewWriter(nil)
	by := func(program string) []byte {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("needs %s", program)
		}
		cmd := exec.Command(path, "-c")
		cmd.Stdin = bytes.NewReader(body)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, packed := range map[string][]byte{
		"gzip": gzipOf(body), "gzip members": append(gzipOf(body[:half]), gzipOf(body[half:])...),
		"zstd": z.EncodeAll(body, nil), "zstd frames": z.EncodeAll(body[half:], z.EncodeAll(body[:half], nil)),
		"xz": by("xz"), "bzip2": by("bzip2"),
	} {
		s := openStore(t, "")
		if images, err := s.Load(t.Context(), bytes.NewReader(packed), ""); err != nil || len(images) != 1 {
			t.Errorf("%s: %v, %v", name, images, err)
		}
		for what, bad := range map[string][]byte{"cut off": packed[:len(packed)-9],
			"and more": append(bytes.Clone(packed), "more of it"...), "twice": append(bytes.Clone(packed), packed...)} {
			s := openStore(t, "")
			if _, err := s.Load(t.Context(), bytes.NewReader(bad), ""); fault.Of(err) != fault.Invalid &&
				fault.Of(err) != fault.Corrupt {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			assertEmpty(t, s)
		}
	}
	_, err := openStore(t, "").Load(t.Context(), strings.NewReader("PK\x03\x04 a zip"), "")
	if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "zip") {
		t.Errorf("%v", err)
	}
}

// An archive of zeros must not fill the disk.
func TestAnArchiveIsBounded(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	from, to := io.Pipe()
	go func() {
		var head bytes.Buffer
		tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "zeros", Size: 8 << 30, Typeflag: tar.TypeReg})
		z, _ := zstd.NewWriter(nil)
		to.Write(z.EncodeAll(head.Bytes(), nil))
		zeros := z.EncodeAll(make([]byte, 16<<20), nil) // frames can follow one another
		for range 8 << 10 / 16 {
			if _, err := to.Write(zeros); err != nil {
				break
			}
		}
		to.Close()
	}()
	if _, err := s.Load(t.Context(), from, ""); !errors.Is(err, fault.Exhausted) ||
		!strings.Contains(err.Error(), "bomb") {
		t.Errorf("%v", err)
	}
	from.Close()
	assertEmpty(t, s)
}

// Blobs that belong to no loaded image are counted for the log. They are not an error: other
// platforms use them.
func TestUnusedBlobsAreCounted(t *testing.T) {
	needRoot(t)
	d := newDocs(t)
	one := d.image("one").done(d)
	for name, row := range map[string]struct {
		body []byte
		want int
	}{
		"none":        {d.tar(one), 0},
		"an artifact": {d.tar(one, d.artifact("application/vnd.example+json")), 0},
		"an image":    {d.tar(d.image("two").done(d), d.artifact("application/vnd.example+json")), 3},
	} {
		a, err := spool(t.Context(), bytes.NewReader(row.body), openStore(t, "").root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.images(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		if n := a.unused(); n != row.want {
			t.Errorf("%s: %d blobs, want %d", name, n, row.want)
		}
		a.close()
	}
}

// A file of a docker-archive may be a link, or be below one. An absolute link begins at the root of the
// archive.
func TestLoadDockerArchiveWithLinks(t *testing.T) {
	needRoot(t)
	plain := tarOf(t, file{"a", "x"})
	img := imageOf(t, "one", layerOfTar(t, plain), layerOfTar(t, plain))
	config, _ := img.RawConfigFile()
	type link struct {
		name, to string
		typeflag byte
	}
	const symbolic, hard = tar.TypeSymlink, tar.TypeLink
	for name, row := range map[string]struct {
		links []link
		says  string // part of the error; "": loaded
	}{
		"of docker before 1.10":   {[]link{{"222/layer.tar", "../111/layer.tar", symbolic}}, ""},
		"hard":                    {[]link{{"222/layer.tar", "111/layer.tar", hard}}, ""},
		"hard, with dots":         {[]link{{"./222/layer.tar", "./111/layer.tar", hard}}, ""},
		"absolute":                {[]link{{"222/layer.tar", "/111/layer.tar", symbolic}}, ""},
		"a directory":             {[]link{{"222", "111", symbolic}}, ""},
		"a directory, absolute":   {[]link{{"222", "/x/../111/", symbolic}}, ""},
		"in a linked directory":   {[]link{{"222", "333", symbolic}, {"333/layer.tar", "../111/layer.tar", symbolic}}, ""},
		"the root":                {[]link{{"222/layer.tar", "up/111/layer.tar", symbolic}, {"222/up", "..", symbolic}}, ""},
		"out of the archive":      {[]link{{"222/layer.tar", "../../../../etc/passwd", symbolic}}, "lacks the file"},
		"a loop":                  {[]link{{"222", "333", symbolic}, {"333", "222", symbolic}}, "lacks the file"},
		"a directory, two ways":   {[]link{{"222", "111", symbolic}, {"222", "333", symbolic}}, "different files"},
		"not there":               {[]link{{"222", "444", symbolic}}, "lacks the file"},
		"the same link, twice":    {[]link{{"222", "111", symbolic}, {"./222", "111/", symbolic}}, ""},
		"a directory into itself": {[]link{{"222", "222/x", symbolic}}, "lacks the file"},
	} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			put := func(name string, body []byte) {
				w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Typeflag: tar.TypeReg})
				w.Write(body)
			}
			for _, l := range row.links {
				w.WriteHeader(&tar.Header{Name: l.name, Linkname: l.to, Typeflag: l.typeflag})
			}
			put("111/layer.tar", plain)
			put("config.json", config)
			put("manifest.json", []byte(`[{"Config":"config.json","RepoTags":null,"Layers":["111/layer.tar","222/layer.tar"]}]`))
			w.Close()
			s := openStore(t, "")
			images, err := s.Load(t.Context(), &buf, "named:1")
			if row.says != "" {
				if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), row.says) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || !slices.Equal(images[0].References, []string{"docker.io/library/named:1"}) {
				t.Errorf("%+v, %v", images, err)
			}
		})
	}
}
