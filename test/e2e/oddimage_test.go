package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// Images that other runtimes run are pulled, saved and loaded, and a container reads one of their files.
func TestOddImagesRun(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	const gzip = compression.GZip
	hello := func(content string, media types.MediaType) v1.Layer {
		return fileLayer(t, "hello", content, media, gzip)
	}
	of := func(layers ...v1.Layer) v1.Image {
		img, err := mutate.AppendLayers(harness.Busybox(t), layers...)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	labelled := func(img v1.Image, change func(*v1.ConfigFile)) v1.Image {
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		change(config)
		if img, err = mutate.ConfigFile(img, config); err != nil {
			t.Fatal(err)
		}
		return img
	}
	yes, no, other := hello("yes", types.OCILayer), hello("no", types.OCILayer), fileLayer(t, "other", "",
		types.OCILayer, gzip)
	for name, img := range map[string]v1.Image{
		"a layer twice":               of(yes, other, other),
		"layers in turns":             of(yes, no, yes, other, no, yes),
		"most layers the same":        of(slices.Repeat([]v1.Layer{yes}, 150)...),
		"one content packed twice":    of(yes, fileLayer(t, "hello", "yes", types.OCILayerZStd, compression.ZStd)),
		"a name with dots":            of(fileLayer(t, "x/../hello", "yes", types.OCILayer, gzip)),
		"another architecture":        labelled(of(yes), func(c *v1.ConfigFile) { c.Architecture = "s390x" }),
		"another operating system":    labelled(of(yes), func(c *v1.ConfigFile) { c.OS = "darwin" }),
		"no type of rootfs":           labelled(of(yes), func(c *v1.ConfigFile) { c.RootFS.Type = "" }),
		"config as application/json":  mutate.ConfigMediaType(of(yes), "application/json"),
		"layer as octet-stream":       of(hello("yes", "application/octet-stream")),
		"layer as a foreign one":      of(hello("yes", types.DockerForeignLayer)),
		"layer as one not to be sent": of(hello("yes", types.OCIRestrictedLayer)),
	} {
		t.Run(name, func(t *testing.T) {
			ref := d.Registry.Push(t, strings.ReplaceAll(name, " ", "-")+":1", img)
			before := d.Pull(t, ref)
			says := func(when string) {
				t.Helper()
				pod, c := d.RunAlone(t, strings.ReplaceAll(when+name, " ", "-"), ref, "cat", "/hello")
				if s := d.WaitExit(t, c); s.ExitCode != 0 ||
					d.LogText(t, c, "stdout") != "yes" && d.LogText(t, c, "stdout") != "yes\n" {
					t.Errorf("%s: exit code %d, %q", when, s.ExitCode, d.LogText(t, c, "stdout"))
				}
				d.RemovePod(t, pod)
			}
			says("pulled")
			archive := filepath.Join(t.TempDir(), "saved.tar")
			kuri(t, d, "save", "-o", archive, ref)
			kuri(t, d, "rmi", "--force", ref)
			_, warning, code := d.Kuri(t, "load", archive)
			if code != 0 || strings.Contains(name, "another") != strings.Contains(warning, "may not run") {
				t.Errorf("kuri load: code %d, %s", code, warning)
			}
			if s := imageStatus(t, d, ref); s.GetId() != before {
				t.Errorf("loaded as %s, it was %s", s.GetId(), before)
			}
			says("loaded")
		})
	}
}

// kuri runs the command line, which must succeed.
func kuri(t *testing.T, d *harness.Daemon, args ...string) string {
	t.Helper()
	stdout, stderr, code := d.Kuri(t, args...)
	if code != 0 {
		t.Fatalf("kuri %s: %s", strings.Join(args, " "), stderr)
	}
	return stdout
}

// A node without a network runs pods that pin digests, with images that another node has saved.
func TestPinnedDigestsWithoutARegistry(t *testing.T) {
	one, two := harness.Start(t, harness.Options{}), harness.Start(t, harness.Options{})
	index, err := image.Index(withFile(t, "pinned", types.OCILayer, compression.GZip))
	if err != nil {
		t.Fatal(err)
	}
	tag := one.Registry.Push(t, "pinned:1", index)
	id := one.Pull(t, tag)
	status := imageStatus(t, one, tag)
	pinned := status.RepoDigests[0]
	dir := filepath.Join(t.TempDir(), "layout")
	kuri(t, one, "save", "-o", dir+"/", tag)
	away := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	one.Registry.Intercept(away)
	two.Registry.Intercept(away)
	kuri(t, two, "load", dir)
	loaded := imageStatus(t, two, pinned)
	if loaded.GetId() != id || !slices.Equal(loaded.RepoDigests, status.RepoDigests) ||
		!slices.Equal(loaded.RepoTags, status.RepoTags) {
		t.Errorf("loaded %v, was %v", loaded, status)
	}
	_, c := two.RunAlone(t, "pinned", pinned, "cat", "/hello")
	if s := two.WaitExit(t, c); s.ExitCode != 0 || s.ImageId != id {
		t.Errorf("%+v", s)
	}

	// A forged index gives the image no name.
	made := strings.Replace(pinned, pinned[strings.Index(pinned, "@"):], "@sha256:"+strings.Repeat("1", 64), 1)
	file := filepath.Join(dir, "kuri.json")
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(body, []byte(pinned), []byte(made)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := two.Kuri(t, "load", dir); code == 0 || !strings.Contains(stderr, made) {
		t.Errorf("code %d: %s", code, stderr)
	}
	if s := imageStatus(t, two, made); s != nil {
		t.Errorf("%v", s)
	}
}

// No part of an archive is skipped silently.
func TestArchivesAreLoadedWhole(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	dir := t.TempDir()
	p, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"v1", "v2"} {
		if err := p.AppendImage(withFile(t, tag, types.OCILayer, compression.GZip),
			layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		t.Helper()
		resp, err := d.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.Images)
	}
	if kuri(t, d, "load", filepath.Join(dir, "layout")); count() != 2 {
		t.Errorf("%d images of two with tags alone", count())
	}
	kuri(t, d, "load", "--name", "reg.example/x", filepath.Join(dir, "layout"))
	for _, tag := range []string{"v1", "v2"} {
		_, c := d.RunAlone(t, tag, "reg.example/x:"+tag, "cat", "/hello")
		if d.WaitExit(t, c); !strings.HasPrefix(d.LogText(t, c, "stdout"), tag) {
			t.Errorf("%s says %q", tag, d.LogText(t, c, "stdout"))
		}
	}
	if _, stderr, code := d.Kuri(t, "load", "--name", "reg.example/x:3", filepath.Join(dir, "layout")); code == 0 ||
		!strings.Contains(stderr, "without a tag") {
		t.Errorf("one name for two images: code %d, %s", code, stderr)
	}

	whole := dockerArchive(t, withFile(t, "whole", types.OCILayer, compression.GZip))
	for name, row := range map[string]struct {
		body []byte
		says string // "": it is loaded
	}{
		"plain":        {whole, ""},
		"xz":           {packedBy(t, whole, "xz"), ""},
		"bzip2":        {packedBy(t, whole, "bzip2"), ""},
		"lz4":          {[]byte("\x04\x22\x4d\x18 and more"), "lz4 -dc"},
		"cut off":      {whole[:len(whole)/2], "truncated"},
		"xz, cut off":  {packedBy(t, whole, "xz")[:5000], "damaged"},
		"two in a row": {append(bytes.Clone(whole), whole...), "one by one"},
	} {
		at := filepath.Join(dir, "archive")
		if err := os.WriteFile(at, row.body, 0o600); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, code := d.Kuri(t, "load", at)
		if row.says == "" && (code != 0 || !strings.Contains(stdout, "reg.example/whole:1")) ||
			row.says != "" && (code == 0 || !strings.Contains(stderr, row.says)) {
			t.Errorf("%s: code %d, %s%s", name, code, stdout, stderr)
		}
	}
}

// dockerArchive returns an image in the format of docker save.
func dockerArchive(t *testing.T, img v1.Image) []byte {
	t.Helper()
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	entry := map[string]any{"Config": "config.json",
		"RepoTags": []string{"reg.example/whole:1", "", "reg.example/whole:1"}}
	files := map[string][]byte{"config.json": config}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range layers {
		id, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		from, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(from)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, id.Hex+"/layer.tar")
		files[id.Hex+"/layer.tar"] = body
	}
	entry["Layers"] = names
	if files["manifest.json"], err = json.Marshal([]any{entry}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644,
			Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		w.Write(body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func packedBy(t *testing.T, body []byte, program string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s", program)
	}
	cmd := exec.Command(path, "-c", "-1")
	cmd.Stdin = bytes.NewReader(body)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
