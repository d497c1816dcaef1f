package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// fileLayer returns a layer with one file, with the given compression and media type.
func fileLayer(t *testing.T, path, content string, media types.MediaType, with compression.Compression) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(content)),
		Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil },
		tarball.WithMediaType(media), tarball.WithCompression(with))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// withFile returns busybox with one more layer that has content in /hello.
func withFile(t *testing.T, content string, media types.MediaType, with compression.Compression) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(harness.Busybox(t), fileLayer(t, "hello", content, media, with))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// pull pulls with credentials.
func pull(t *testing.T, d *harness.Daemon, ref string, auth *runtimeapi.AuthConfig) (string, error) {
	t.Helper()
	resp, err := d.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref},
		Auth: auth})
	return resp.GetImageRef(), err
}

// imageStatus returns the ImageStatus of a reference, or nil if there is no such image.
func imageStatus(t *testing.T, d *harness.Daemon, ref string) *runtimeapi.Image {
	t.Helper()
	resp, err := d.Images.ImageStatus(t.Context(),
		&runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("status of image %s: %v", ref, err)
	}
	return resp.Image
}

// layers lists the directories of unpacked layers, and fails t if there are incomplete ones.
func layers(t *testing.T, d *harness.Daemon) []string {
	t.Helper()
	if tmp, _ := os.ReadDir(filepath.Join(d.Root, "tmp")); len(tmp) > 0 {
		t.Errorf("half-made layers are left: %v", tmp)
	}
	entries, err := os.ReadDir(filepath.Join(d.Root, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Images in every format of manifests and layers are pulled by tag and by digest, and a container
// reads their file.
func TestImageFormats(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	docker := func(img v1.Image) v1.Image {
		return mutate.ConfigMediaType(mutate.MediaType(img, types.DockerManifestSchema2), types.DockerConfigJSON)
	}
	for _, test := range []struct {
		name string
		img  v1.Image
	}{
		{"gzip", withFile(t, "gzip", types.OCILayer, compression.GZip)},
		{"zstd", withFile(t, "zstd", types.OCILayerZStd, compression.ZStd)},
		{"uncompressed", withFile(t, "uncompressed", types.OCIUncompressedLayer, compression.None)},
		{"docker", docker(withFile(t, "docker", types.DockerLayer, compression.GZip))},
	} {
		t.Run(test.name, func(t *testing.T) {
			config, err := test.img.ConfigName()
			if err != nil {
				t.Fatal(err)
			}
			manifest, err := test.img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			byTag := d.Registry.Push(t, test.name+":1", test.img)
			byDigest := d.Registry.Host + "/" + test.name + "@" + manifest.String()
			index, err := image.Index(test.img)
			if err != nil {
				t.Fatal(err)
			}
			id := d.Pull(t, byTag)
			if id != config.String() {
				t.Errorf("the image's id is %s, want the digest of its configuration, %s", id, config)
			}
			if again := d.Pull(t, byDigest); again != id {
				t.Errorf("by digest the id is %s", again)
			}
			for _, name := range []string{byTag, byDigest, id, strings.TrimPrefix(id, "sha256:")[:12]} {
				s := imageStatus(t, d, name)
				if s == nil {
					t.Errorf("%s is not known", name)
					continue
				}
				if s.Id != id || len(s.RepoTags) != 1 || s.RepoTags[0] != byTag || len(s.RepoDigests) != 1 ||
					s.RepoDigests[0] != byDigest || s.Size == 0 {
					t.Errorf("status by %s: %v", name, s)
				}
			}
			d.Pull(t, d.Registry.Push(t, test.name+"-list:1", index))

			_, c := d.RunAlone(t, test.name, byTag, "cat", "/hello")
			s := d.WaitExit(t, c)
			if text := d.LogText(t, c, "stdout"); s.ExitCode != 0 || text != test.name+"\n" && text != test.name {
				t.Errorf("cat /hello exits %d and says %q", s.ExitCode, text)
			}
			if s.ImageId != id || s.Image.Image != byTag {
				t.Errorf("the container's image_id is %s and its image %s, want %s and %s", s.ImageId, s.Image.Image, id, byTag)
			}
		})
	}
}

func TestRemoveImage(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	img := withFile(t, "x", types.OCILayer, compression.GZip)
	one, two := d.Registry.Push(t, "app:1", img), d.Registry.Push(t, "app:2", img)
	d.Pull(t, one)
	id := d.Pull(t, two)
	if s := imageStatus(t, d, id); len(s.GetRepoTags()) != 2 {
		t.Errorf("two tags, and the status says %v", s)
	}
	// A container keeps the layers that it uses, but not the image.
	pod, c := d.RunAlone(t, "holds", one, "sleep", "1000")
	if _, err := d.Images.RemoveImage(t.Context(),
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: one}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{one, two, id} {
		if s := imageStatus(t, d, name); s != nil {
			t.Errorf("%s is known after the image was removed by one of its tags", name)
		}
	}
	if out := d.Output(t, c, "cat", "/hello"); out != "x" {
		t.Errorf("the container sees %q in its file", out)
	}
	d.RemovePod(t, pod)
	harness.Eventually(t, 5*time.Second, "the layers are gone with the container", func() error {
		if left := layers(t, d); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}

func TestImageFsInfo(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	used := func() (uint64, uint64) {
		t.Helper()
		resp, err := d.Images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil || len(resp.ImageFilesystems) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		fs := resp.ImageFilesystems[0]
		if !strings.HasPrefix(fs.FsId.Mountpoint, d.Root) && !strings.HasPrefix(d.Root, fs.FsId.Mountpoint) {
			t.Errorf("the filesystem is at %s, the images are in %s", fs.FsId.Mountpoint, d.Root)
		}
		return fs.UsedBytes.GetValue(), fs.InodesUsed.GetValue()
	}
	bytesBefore, inodesBefore := used()
	const size = 8 << 20
	big, err := image.New(v1.Config{}, image.File{Path: "/big", Data: bytes.Repeat([]byte("kuri"), size/4)})
	if err != nil {
		t.Fatal(err)
	}
	ref := d.Registry.Push(t, "big:1", big)
	d.Pull(t, ref)
	bytesAfter, inodesAfter := used()
	if grown := bytesAfter - bytesBefore; grown < size || grown > size+1<<20 {
		t.Errorf("used_bytes grew by %d for a file of %d", grown, size)
	}
	if inodesAfter <= inodesBefore {
		t.Errorf("inodes_used went from %d to %d", inodesBefore, inodesAfter)
	}
	if _, err := d.Images.RemoveImage(t.Context(),
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	if b, _ := used(); b > bytesBefore+1<<20 {
		t.Errorf("used_bytes is %d after the removal, it was %d before the pull", b, bytesBefore)
	}
}

// A mirror serves the images of a host under their own names. hosts.toml is read again for each pull.
func TestMirror(t *testing.T) {
	certs := t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[image]\ncerts_dirs = [%q]\n", certs)})
	d.Registry.Push(t, "team/app:1", harness.Busybox(t))
	const ref = "registry.example.test/team/app:1"
	_, err := pull(t, d, ref, nil)
	harness.WantError(t, err, codes.Unknown, "RegistryUnavailable: ")
	harness.Write(t, certs, "registry.example.test/hosts.toml",
		fmt.Sprintf("[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", d.Registry.Host))
	d.Pull(t, ref)
	if s := imageStatus(t, d, ref); s == nil || s.RepoTags[0] != ref {
		t.Errorf("the image is known as %v", s)
	}
}

// The configured verifiers decide about each pull and report in terms that a kubelet knows. Images
// that are already present can be run.
func TestImageVerifiers(t *testing.T) {
	dir := t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[image]\nverifier_dir = %q\nverifier_timeout = 2\n",
		filepath.Join(dir, "bin"))})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	_, err := pull(t, d, ref, nil)
	harness.WantError(t, err, codes.Unknown, "SignatureValidationFailed: pull image "+ref, "not there",
		"image.verifier_dir")

	program := func(body string) {
		t.Helper()
		harness.Write(t, dir, "bin/verify", "#!/bin/sh\n"+body+"\n")
		if err := os.Chmod(filepath.Join(dir, "bin", "verify"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program("exit 0")
	d.Pull(t, ref)
	program("echo 'no signature of alice'; exit 1")
	_, err = pull(t, d, ref, nil)
	harness.WantError(t, err, codes.Unknown, "verifier verify: refused with exit code 1: no signature of alice")
	if text := status.Convert(err).Message(); !strings.HasPrefix(text, "SignatureValidationFailed: ") {
		t.Errorf("a kubelet does not know %q", text)
	}
	d.RunAlone(t, "app", ref, "sleep", "1000")
	if _, said, code := d.Kuri(t, "pull", ref); code == 0 || !strings.Contains(said, "no signature of alice") {
		t.Errorf("kuri pull exits %d and says:\n%s", code, said)
	}

	// A verifier leaves no process behind, whether it hangs or kurid is killed meanwhile.
	program("(setsid sleep 7351 &) ; sleep 7351")
	_, err = pull(t, d, ref, nil)
	harness.WantError(t, err, codes.Unknown, "SignatureValidationFailed: ", "did not answer within 2s")
	gone := func() {
		t.Helper()
		harness.Eventually(t, 5*time.Second, "the verifier is gone", func() error {
			if left := harness.Processes(t, "sleep 7351"); len(left) > 0 {
				return fmt.Errorf("%v", left)
			}
			return nil
		})
	}
	gone()
	program("(setsid sleep 7351 &) ; : >" + dir + "/runs; sleep 7351")
	asked := make(chan error, 1)
	go func() {
		_, err := pull(t, d, ref, &runtimeapi.AuthConfig{Username: "u", Password: "p"})
		asked <- err
	}()
	harness.Eventually(t, 5*time.Second, "the verifier runs", func() error {
		_, err := os.Stat(filepath.Join(dir, "runs"))
		return err
	})
	d.Kill9(t)
	<-asked
	gone()
	d.Continue(t)
	if left, _ := filepath.Glob(filepath.Join(d.State, "verify-*")); len(left) > 0 {
		t.Errorf("credentials stayed: %v", left)
	}
}

// Images that arrive while kuri prune waits for the answer were not in its question, and stay.
func TestPruneRemovesWhatItShowed(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	shown := d.Registry.Push(t, "shown:1", harness.Busybox(t))
	later := d.Registry.Push(t, "later:1", harness.Web(t))
	d.Pull(t, shown)
	cmd := exec.Command(harness.Bin("kuri"), "prune")
	cmd.Env = append(os.Environ(), d.Env()...)
	answer, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	question, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	asked := make([]byte, 256)
	n, err := question.Read(asked)
	if err != nil || !strings.Contains(string(asked[:n]), "remove them") {
		t.Errorf("it asks %q: %v", asked[:n], err)
	}
	d.Pull(t, later)
	fmt.Fprintln(answer, "yes")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if imageStatus(t, d, shown) != nil || imageStatus(t, d, later) == nil {
		t.Errorf("it showed %s and left the wrong one", shown)
	}
}

// An index is resolved to this machine's architecture. The error for an index without it names the
// architecture.
func TestIndexWithoutOurPlatform(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	file, err := harness.Busybox(t).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Architecture = "s390x"
	foreign, err := mutate.ConfigFile(harness.Busybox(t), file)
	if err != nil {
		t.Fatal(err)
	}
	var index remote.Taggable = mutate.AppendManifests(mutate.IndexMediaType(emptyIndex(t), types.OCIImageIndex),
		mutate.IndexAddendum{
			Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
		})
	_, err = pull(t, d, d.Registry.Push(t, "foreign:1", index), nil)
	harness.WantError(t, err, codes.NotFound, "s390x")
}

// emptyIndex returns an index without entries.
func emptyIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	index, err := image.Index(harness.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	return mutate.RemoveManifests(index, func(v1.Descriptor) bool { return true })
}

// Files that a container writes count in container_filesystems, not in image_filesystems, until the
// container is removed.
func TestImageFsInfoOfWritableLayers(t *testing.T) {
	s := newShell(t)
	used := func() (images, containers uint64) {
		t.Helper()
		resp, err := s.Images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil || len(resp.ImageFilesystems) != 1 || len(resp.ContainerFilesystems) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		return resp.ImageFilesystems[0].UsedBytes.GetValue(), resp.ContainerFilesystems[0].UsedBytes.GetValue()
	}
	images, before := used()
	const size = 4 << 20
	s.run(t, nil, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=4 2>/dev/null && sleep 1000")
	wait := func(what string, fits func(uint64) bool) {
		t.Helper()
		var now uint64
		for range 150 { // a measurement is cached for some seconds
			if _, now = used(); fits(now) {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
		t.Errorf("%s: container_filesystems has %d bytes, it had %d", what, now, before)
	}
	wait("with a file of 4 MiB", func(now uint64) bool { return now >= before+size && now < before+size+1<<20 })
	if now, _ := used(); now > images+1<<20 {
		t.Errorf("image_filesystems went from %d to %d", images, now)
	}
	s.RemovePod(t, s.pod)
	wait("after the removal", func(now uint64) bool { return now == 0 })
}

// A damaged record affects only its own image and is reported by a check. kurid starts, and a pull
// restores the image.
func TestADamagedRecordCostsItsOwnImage(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	var refs, ids []string
	for _, name := range []string{"one", "two"} {
		ref := d.Registry.Push(t, name+":1", withFile(t, name, types.OCILayer, compression.GZip))
		id, err := pull(t, d, ref, nil)
		if err != nil {
			t.Fatal(err)
		}
		refs, ids = append(refs, ref), append(ids, id)
	}
	for _, damage := range []string{"", "{", `{"version":1,"id":"sha256:00"}`, "\x00\xff"} {
		d.Stop(t)
		file := filepath.Join(d.Root, "images", strings.TrimPrefix(ids[0], "sha256:")+".json")
		if err := os.WriteFile(file, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Continue(t)
		if imageStatus(t, d, refs[0]) != nil || imageStatus(t, d, refs[1]) == nil {
			t.Errorf("%q: the damaged image is listed, or the other one is not", damage)
		}
		if out, _, code := d.Kuri(t, "check", "--images"); code == 0 || !strings.Contains(out, ids[0][7:19]) {
			t.Errorf("%q: kuri check ends with %d and says %s", damage, code, out)
		}
		if _, err := pull(t, d, refs[0], nil); err != nil {
			t.Errorf("%q: %v", damage, err)
		}
		if imageStatus(t, d, refs[0]) == nil {
			t.Errorf("%q: the image did not come back", damage)
		}
	}
}
