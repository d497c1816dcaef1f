package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of a layer. Exactly one of Data, Link and Symlink is used, in the order that
// they are set; a path that ends in a slash is a directory.
type File struct {
	Path     string      // absolute, as in the container
	Data     []byte      // what the file holds
	Link     string      // hard link to this absolute path, which must come earlier
	Symlink  string      // symbolic link with this target
	Mode     os.FileMode // permission bits with os.ModeSetuid and os.ModeSticky; 0: 0644, 0755 for a directory
	UID, GID int
}

// Layer returns files as a gzip-compressed layer of an OCI image, each directory above them made with mode 0755.
func Layer(files ...File) (v1.Layer, error) {
	content, err := archive(files)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
}

// New returns an OCI image for this machine's architecture with one layer of files. The configuration's Env gets a PATH
// when it has none.
func New(config v1.Config, files ...File) (v1.Image, error) {
	layer, err := Layer(files...)
	if err != nil {
		return nil, err
	}
	return WithLayers(config, layer)
}

// WithLayers is New for layers that are made already, lowest first.
func WithLayers(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	if !hasPath(config.Env) {
		config.Env = append(config.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return nil, fmt.Errorf("append layers: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, file)
}

// Index returns an OCI index with img for linux/amd64 and linux/arm64, as multi-architecture images have; that the
// programs in it are of one of the two is of no matter where the other is never run.
func Index(img v1.Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		file, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		file = file.DeepCopy()
		file.Architecture = arch
		one, err := mutate.ConfigFile(img, file)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        one,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return index, nil
}

// Busybox returns the files of an image around a static busybox: the program, each of its applets
// under the path that it says, as a hard link, and the users and groups that images usually have.
// Program is a path on this machine, for example /bin/busybox of Debian's busybox-static.
func Busybox(program string) ([]File, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("read busybox: %w", err)
	}
	list, err := exec.Command(program, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", program, err)
	}
	files := []File{
		{Path: "/bin/busybox", Data: data, Mode: 0o755},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")},
		{Path: "/root/", Mode: 0o700},
		{Path: "/home/", UID: 65534, GID: 65534},
		{Path: "/tmp/", Mode: 0o777 | os.ModeSticky},
		{Path: "/var/run/"},
		{Path: "/var/www/"},
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet = "/" + strings.TrimPrefix(applet, "/"); applet != "/bin/busybox" {
			files = append(files, File{Path: applet, Link: "/bin/busybox", Mode: 0o755}) // containerd gives a link that mode
		}
	}
	return files, nil
}

// Program compiles the Go package with the given import path or directory into a static program and
// returns it as a file with mode 0755 at the given path.
func Program(pkg, at string) (File, error) {
	dir, err := os.MkdirTemp("", "kuri-image-")
	if err != nil {
		return File{}, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		return File{}, fmt.Errorf("build %s: %w\n%s", pkg, err, said)
	}
	data, err := os.ReadFile(out)
	return File{Path: at, Data: data, Mode: 0o755}, err
}

// archive writes files as a tar stream, the directories above them first.
func archive(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{"/": true}
	for _, f := range files {
		if strings.HasSuffix(f.Path, "/") {
			made[path.Clean(f.Path)] = true // written below, with its own mode
		}
		if err := writeParents(w, made, path.Dir(path.Clean(f.Path))); err != nil {
			return nil, err
		}
		h := header(f)
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Path, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(f.Data); err != nil {
				return nil, fmt.Errorf("write %s: %w", f.Path, err)
			}
		}
	}
	return buf.Bytes(), w.Close()
}

func writeParents(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := writeParents(w, made, path.Dir(dir)); err != nil {
		return err
	}
	return w.WriteHeader(header(File{Path: dir + "/"}))
}

func header(f File) *tar.Header {
	h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Uid: f.UID, Gid: f.GID, Format: tar.FormatPAX}
	mode := f.Mode
	switch {
	case f.Data != nil:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Data))
	case f.Link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, strings.TrimPrefix(f.Link, "/")
	case f.Symlink != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Symlink
	case strings.HasSuffix(f.Path, "/"):
		h.Typeflag = tar.TypeDir
		if mode == 0 {
			mode = 0o755
		}
	default:
		h.Typeflag = tar.TypeReg // an empty file
	}
	if mode == 0 {
		mode = 0o644
	}
	h.Mode = int64(mode.Perm())
	if mode&os.ModeSetuid != 0 {
		h.Mode |= 0o4000
	}
	if mode&os.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	return h
}

func hasPath(env []string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, "PATH=") {
			return true
		}
	}
	return false
}

// Web returns the image of the example in examples/web: its program and nothing else, run as user 65532.
func Web() (v1.Image, error) {
	program, err := Program("github.com/kuri-cri/kuri/examples/web", "/web")
	if err != nil {
		return nil, err
	}
	return New(v1.Config{
		Entrypoint:   []string{"/web"},
		User:         "65532:65532",
		WorkingDir:   "/",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
		StopSignal:   "SIGTERM",
	}, program)
}
