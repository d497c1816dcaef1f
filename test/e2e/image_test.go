package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
	if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
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
	resp, err := d.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
	return resp.GetImageRef(), err
}

// imageStatus returns the ImageStatus of a reference, or nil if there is no such image.
func imageStatus(t *testing.T, d *harness.Daemon, ref string) *runtimeapi.Image {
	t.Helper()
	resp, err := d.Images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
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
				if s.Id != id || len(s.RepoTags) != 1 || s.RepoTags[0] != byTag || len(s.RepoDigests) != 1 || s.RepoDigests[0] != byDigest || s.Size == 0 {
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
	if _, err := d.Images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: one}}); err != nil {
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
	if _, err := d.Images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	if b, _ := used(); b > bytesBefore+1<<20 {
		t.Errorf("used_bytes is %d after the removal, it was %d before the pull", b, bytesBefore)
	}
}

// Two concurrent pulls of one image download it once.
func TestPullsJoin(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	var blobs atomic.Int64
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
			time.Sleep(200 * time.Millisecond)
		}
		next.ServeHTTP(w, r)
	})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := pull(t, d, ref, nil); err != nil {
				t.Errorf("pull: %v", err)
			}
		})
	}
	wg.Wait()
	if n := blobs.Load(); n != 2 { // the configuration and the layer
		t.Errorf("%d blobs were fetched, want 2", n)
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
	harness.Write(t, certs, "registry.example.test/hosts.toml", fmt.Sprintf("[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", d.Registry.Host))
	d.Pull(t, ref)
	if s := imageStatus(t, d, ref); s == nil || s.RepoTags[0] != ref {
		t.Errorf("the image is known as %v", s)
	}
}

// The configured verifiers decide about each pull and report in terms that a kubelet knows. Images
// that are already present can be run.
func TestImageVerifiers(t *testing.T) {
	dir := t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[image]\nverifier_dir = %q\nverifier_timeout = 2\n", filepath.Join(dir, "bin"))})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	_, err := pull(t, d, ref, nil)
	harness.WantError(t, err, codes.Unknown, "SignatureValidationFailed: pull image "+ref, "not there", "image.verifier_dir")

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

// A pull that fails reports the cause and leaves nothing behind.
func TestPullsThatFail(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "app:1", withFile(t, strings.Repeat("some text ", 100000), types.OCILayer, compression.GZip))
	path := func(r *http.Request, kind string) bool {
		return strings.Contains(r.URL.Path, "/"+kind+"/") && r.Method == http.MethodGet
	}

	for _, test := range []struct {
		name, ref string
		intercept func(w http.ResponseWriter, r *http.Request, next http.Handler)
		code      codes.Code
		says      []string
	}{
		{name: "malformed", ref: d.Registry.Host + "/UPPER:1", code: codes.InvalidArgument, says: []string{"UPPER"}},
		{name: "empty", ref: "", code: codes.InvalidArgument},
		{name: "bad digest", ref: d.Registry.Host + "/app@sha256:12", code: codes.InvalidArgument},
		{name: "unknown tag", ref: d.Registry.Host + "/app:9", code: codes.NotFound, says: []string{"app:9"}},
		{name: "unknown repository", ref: d.Registry.Host + "/nothing:1", code: codes.NotFound, says: []string{"nothing"}},
		{name: "nobody listens", ref: "127.0.0.1:1/app:1", code: codes.Unknown, says: []string{"RegistryUnavailable: ", "127.0.0.1:1"}},
		{name: "not a manifest", ref: ref, code: codes.InvalidArgument, says: []string{"manifest"}, intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !path(r, "manifests") && r.Method != http.MethodHead {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			fmt.Fprint(w, "<html>log in first</html>")
		}},
		{name: "schema 1", ref: ref, code: codes.Unimplemented, intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", string(types.DockerManifestSchema1))
			fmt.Fprint(w, `{"schemaVersion": 1, "name": "app", "tag": "1"}`)
		}},
		{name: "wrong bytes", ref: ref, code: codes.DataLoss, says: []string{"sha256:"}, intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(corrupting{w, path(r, "blobs")}, r)
		}},
		{name: "server trouble", ref: ref, code: codes.Unknown, says: []string{"RegistryUnavailable: ", "503"}, intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			http.Error(w, "overloaded", http.StatusServiceUnavailable)
		}},
		{name: "no credentials", ref: ref, code: codes.Unauthenticated, intercept: basicAuth},
		{name: "refused", ref: ref, code: codes.PermissionDenied, intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			http.Error(w, "not you", http.StatusForbidden)
		}},
		{name: "cut each time", ref: ref, code: codes.Unknown, says: []string{"RegistryUnavailable: "}, intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if path(r, "blobs") {
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d.Registry.Intercept(test.intercept)
			defer d.Registry.Intercept(nil)
			_, err := pull(t, d, test.ref, nil)
			harness.WantError(t, err, test.code, test.says...)
			if left := layers(t, d); len(left) > 0 {
				// busybox's own layer may be complete. No image must exist.
				t.Logf("layers kept for the next try: %v", left)
			}
			if test.ref != "" && imageStatus(t, d, ref) != nil {
				t.Error("there is an image")
			}
		})
	}
	if _, err := pull(t, d, ref, nil); err != nil {
		t.Errorf("with the registry well again: %v", err)
	}
}

// corrupting flips a bit of the content it passes while on is set.
type corrupting struct {
	http.ResponseWriter
	on bool
}

func (c corrupting) Write(b []byte) (int, error) {
	if c.on && len(b) > 0 {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1
	}
	return c.ResponseWriter.Write(b)
}

func basicAuth(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if user, password, _ := r.BasicAuth(); user != "kuri" || password != "secret" {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	next.ServeHTTP(w, r)
}

func TestCredentials(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "app:1", harness.Busybox(t))
	d.Registry.Intercept(basicAuth)
	_, err := pull(t, d, ref, &runtimeapi.AuthConfig{Username: "kuri", Password: "wrong"})
	harness.WantError(t, err, codes.Unauthenticated)
	if strings.Contains(err.Error(), "wrong") || strings.Contains(d.Log(t), "\"wrong\"") {
		t.Error("the password is in the error or in the log")
	}
	if _, err := pull(t, d, ref, &runtimeapi.AuthConfig{Username: "kuri", Password: "secret"}); err != nil {
		t.Errorf("with the right password: %v", err)
	}
	d.Registry.Intercept(nil)
	other := d.Registry.Push(t, "other:1", withFile(t, "y", types.OCILayer, compression.GZip))
	d.Registry.Intercept(basicAuth)
	auth := base64.StdEncoding.EncodeToString([]byte("kuri:secret"))
	if _, err := pull(t, d, other, &runtimeapi.AuthConfig{Auth: auth}); err != nil {
		t.Errorf("with auth: %v", err)
	}
}

// noise returns n bytes that do not compress, the same bytes each time.
func noise(n int) []byte {
	b := make([]byte, n)
	seed := uint32(1)
	for i := range b {
		seed = seed*1664525 + 1013904223
		b[i] = byte(seed >> 24)
	}
	return b
}

// An interrupted download resumes at its offset.
func TestDroppedConnectionResumes(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	img, err := image.New(v1.Config{}, image.File{Path: "/data", Data: noise(4 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	ref := d.Registry.Push(t, "data:1", img)
	var cuts, ranges atomic.Int64
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		// The tests' registry supports only some forms of ranges; the standard library supports all.
		whole := httptest.NewRecorder()
		bare := r.Clone(r.Context())
		bare.Header.Del("Range")
		next.ServeHTTP(whole, bare)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(&cutting{ResponseWriter: w, left: 1 << 20, cuts: &cuts}, r, "", time.Time{}, bytes.NewReader(whole.Body.Bytes()))
	})
	if _, err := pull(t, d, ref, nil); err != nil {
		t.Fatalf("pull: %v", err)
	}
	if cuts.Load() == 0 || ranges.Load() == 0 {
		t.Errorf("%d cuts, %d requests for a range: the test tests nothing", cuts.Load(), ranges.Load())
	}
}

// cutting closes the connection after left bytes.
type cutting struct {
	http.ResponseWriter
	left int
	cuts *atomic.Int64
}

func (c *cutting) Write(b []byte) (int, error) {
	if len(b) <= c.left {
		c.left -= len(b)
		return c.ResponseWriter.Write(b)
	}
	c.ResponseWriter.Write(b[:c.left])
	c.ResponseWriter.(http.Flusher).Flush()
	c.cuts.Add(1)
	panic(http.ErrAbortHandler)
}

// A pull onto a full disk says so and frees its space.
func TestFullDisk(t *testing.T) {
	dir, err := os.MkdirTemp("", "kuri-full")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=6m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(root, 0); err != nil {
				t.Errorf("something still uses the daemon's root: %v", err)
			}
		})
	}
	d := harness.Start(t, harness.Options{Dir: dir})
	big, err := image.New(v1.Config{}, image.File{Path: "/big", Data: noise(16 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	free := func() uint64 {
		var s syscall.Statfs_t
		if err := syscall.Statfs(root, &s); err != nil {
			t.Fatal(err)
		}
		return s.Bavail * uint64(s.Bsize)
	}
	before := free()
	_, err = pull(t, d, d.Registry.Push(t, "big:1", big), nil)
	harness.WantError(t, err, codes.ResourceExhausted, "space")
	if left := layers(t, d); len(left) > 0 {
		t.Errorf("layers are left: %v", left)
	}
	if after := free(); after+256<<10 < before {
		t.Errorf("%d bytes were free, now %d are", before, after)
	}
	if _, err := pull(t, d, d.Registry.Push(t, "busybox:1", harness.Busybox(t)), nil); err != nil {
		t.Errorf("a smaller image does not fit any more: %v", err)
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

// smallDisk mounts an ext4 filesystem of 64 MiB with 2048 inodes on a loop device. It skips the
// test if that is not possible.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, to mount a filesystem")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIP: no mkfs.ext4")
	}
	file, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, command := range [][]string{{"truncate", "-s", "64M", file}, {"mkfs.ext4", "-q", "-N", "2048", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", file}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
	if out, err := exec.Command("mount", "-o", "loop", file, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIP: no ext4 on a loop device here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("something still uses the daemon's root: %v", err)
		}
		if out, err := exec.Command("e2fsck", "-fn", file).CombinedOutput(); err != nil {
			t.Errorf("the filesystem is damaged: %v: %s", err, out)
		}
	})
	return dir
}

// The same on ext4, which allocates blocks late and also runs out of inodes: the existing images
// stay complete and can be run, and the pull succeeds when there is space again.
func TestFullDiskOfExt4(t *testing.T) {
	root := smallDisk(t)
	dir := t.TempDir()
	if err := os.Symlink(root, filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.Options{Dir: dir})
	used := func() (bytes, inodes int64) {
		t.Helper()
		var s syscall.Statfs_t
		if err := syscall.Statfs(root, &s); err != nil {
			t.Fatal(err)
		}
		return int64(s.Blocks-s.Bfree) * s.Bsize, int64(s.Files - s.Ffree)
	}
	busybox := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	d.Pull(t, busybox)
	there := layers(t, d)
	many := make([]image.File, 1500)
	for n := range many {
		many[n] = image.File{Path: fmt.Sprintf("/f%d", n), Data: []byte("x")}
	}
	for _, test := range []struct {
		name  string
		files []image.File
		says  []string
		fill  func(t *testing.T) // uses so much space that the image no longer fits
	}{
		{"bytes", []image.File{{Path: "/big", Data: noise(24 << 20)}}, []string{"no space left on device", "free space on the filesystem of "}, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(root, "ballast"), noise(38<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"inodes", many, []string{"all 2048 inodes of the filesystem of ", "in use"}, func(t *testing.T) {
			if err := os.Mkdir(filepath.Join(root, "ballast"), 0o700); err != nil {
				t.Fatal(err)
			}
			for n := range 700 {
				harness.Write(t, root, fmt.Sprintf("ballast/%d", n), "")
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			small, err := image.New(v1.Config{}, image.File{Path: "/small", Data: []byte(test.name)})
			if err != nil {
				t.Fatal(err)
			}
			content, err := image.New(v1.Config{}, test.files...)
			if err != nil {
				t.Fatal(err)
			}
			more, err := small.Layers()
			if err != nil {
				t.Fatal(err)
			}
			if content, err = mutate.AppendLayers(content, more...); err != nil { // one layer fits, one does not
				t.Fatal(err)
			}
			ref := d.Registry.Push(t, test.name+":1", content)
			test.fill(t)
			syscall.Sync()
			bytes, inodes := used()
			for range 2 {
				_, err = pull(t, d, ref, nil)
				harness.WantError(t, err, codes.ResourceExhausted, test.says...)
			}
			if left := layers(t, d); !slices.Equal(left, there) {
				t.Errorf("there were the layers %v, now there are %v", there, left)
			}
			syscall.Sync()
			if b, i := used(); b > bytes+64<<10 || i > inodes {
				t.Errorf("%d bytes and %d inodes were in use, now %d and %d are", bytes, inodes, b, i)
			}
			if out, errs, code := d.Kuri(t, "check", "--images"); code != 0 {
				t.Errorf("kuri check exits %d: %s%s", code, out, errs)
			}
			pod, id := d.RunAlone(t, "app-"+test.name, busybox, "sleep", "1000")
			if out := d.Output(t, id, "echo", "works"); out != "works\n" {
				t.Errorf("a container of another image says %q", out)
			}
			d.RemovePod(t, pod)

			if err := os.RemoveAll(filepath.Join(root, "ballast")); err != nil {
				t.Fatal(err)
			}
			d.Pull(t, ref)
			if out, errs, code := d.Kuri(t, "check", "--images"); code != 0 {
				t.Errorf("with room again, kuri check exits %d: %s%s", code, out, errs)
			}
			if out, errs, code := d.Kuri(t, "rmi", "--force", ref); code != 0 {
				t.Errorf("kuri rmi exits %d: %s%s", code, out, errs)
			}
		})
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
	var index remote.Taggable = mutate.AppendManifests(mutate.IndexMediaType(emptyIndex(t), types.OCIImageIndex), mutate.IndexAddendum{
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

// Ten pods that start at once with an image that is not present, and each pull it as a kubelet
// does, download it once.
func TestColdStartOfTenPods(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	var blobs, manifests atomic.Int64
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
			blobs.Add(1)
			time.Sleep(time.Second) // so that all of them have requested it
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/"):
			manifests.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			pod := harness.Pod(fmt.Sprintf("cold-%d", i))
			made, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
			if err != nil {
				t.Errorf("pod %d: %v", i, err)
				return
			}
			id, err := pull(t, d, ref, nil)
			if err != nil {
				t.Errorf("pull for pod %d: %v", i, err)
				return
			}
			c, err := d.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: made.PodSandboxId, SandboxConfig: pod,
				Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: id}, Command: []string{"sleep", "100"}}})
			if err == nil {
				_, err = d.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
			}
			if err != nil {
				t.Errorf("container of pod %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := blobs.Load(); n != 2 { // the configuration and the layer
		t.Errorf("%d blobs were fetched, want 2", n)
	}
	if n := manifests.Load(); n != 1 {
		t.Errorf("%d manifests were fetched, want 1", n)
	}
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

// A caller's deadline of a millisecond does not stop the pull: it continues, and the retry joins it.
func TestPullOutlivesADeadline(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	var manifests atomic.Int64
	asked, goOn := make(chan struct{}), make(chan struct{})
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			if manifests.Add(1) == 1 {
				close(asked)
			}
			<-goOn
		}
		next.ServeHTTP(w, r)
	})
	var err error
	for reached := false; !reached; { // a millisecond may pass before kurid has received the request
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err = d.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		cancel()
		harness.WantError(t, err, codes.DeadlineExceeded)
		select {
		case <-asked:
			reached = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	time.AfterFunc(100*time.Millisecond, func() { close(goOn) })
	if _, err := pull(t, d, ref, nil); err != nil {
		t.Fatal(err)
	}
	if n := manifests.Load(); n != 1 {
		t.Errorf("%d manifests were fetched: the retry did not join", n)
	}
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
