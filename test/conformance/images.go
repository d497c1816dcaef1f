package conformance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuri-cri/kuri/test/image"
)

// e2eImages is where the suite has most images from.
const e2eImages = "registry.k8s.io/e2e-test-images/"

// registryHosts are those that the images' names begin with.
var registryHosts = []string{"registry.k8s.io", "gcr.io", "docker.io", "quay.io"}

// images returns what the suite pulls, by name, as indexes for two architectures. Agnhost is the
// program, kubernetes the directory of the module's source.
func images(busybox, agnhost, kubernetes string) (map[string]remote.Taggable, error) {
	m, err := newMaker(busybox, agnhost, kubernetes)
	if err != nil {
		return nil, err
	}
	out := map[string]remote.Taggable{}
	var errs []error
	add := func(config v1.Config, layers []v1.Layer, names ...string) {
		for _, name := range names {
			img, err := m.image(name, config, layers)
			if err == nil {
				out[name], err = image.Index(img)
			}
			errs = append(errs, err)
		}
	}
	shell := []v1.Layer{m.busybox}
	programs := []v1.Layer{m.busybox, m.programs}
	add(v1.Config{Cmd: []string{"sh"}}, shell, e2eImages+"busybox:1.29-4", e2eImages+"busybox:1.37.0-1",
		e2eImages+"glibc-dns-testing:2.0.0", e2eImages+"ipc-utils:1.4")
	add(v1.Config{User: "1234"}, shell, e2eImages+"nonroot:1.5")
	add(v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT"}, programs, e2eImages+"nginx:1.15-4",
		e2eImages+"nginx:1.27-0")
	add(v1.Config{Entrypoint: []string{"/usr/sbin/nonewprivs"}}, programs, e2eImages+"nonewprivs:1.4")
	add(v1.Config{Entrypoint: []string{"/usr/sbin/pause"}, User: "65535:65535"}, []v1.Layer{m.programs},
		"registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10.2")
	add(v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}}, []v1.Layer{m.busybox, m.agnhost},
		e2eImages+"agnhost:2.55", e2eImages+"agnhost:2.63.0")
	return out, errors.Join(errs...)
}

// maker holds the layers that the images share.
type maker struct {
	busybox  v1.Layer // busybox with its applets
	programs v1.Layer // what critest's program stands in for
	agnhost  v1.Layer
}

func newMaker(busybox, agnhost, kubernetes string) (*maker, error) {
	files, err := image.Busybox(busybox)
	if err != nil {
		return nil, err
	}
	files = append(files, inBin(files)...)
	program, err := image.Program("github.com/kuri-cri/kuri/test/critest/program", "/usr/sbin/nginx")
	if err != nil {
		return nil, err
	}
	setuid := program
	setuid.Path, setuid.Mode = "/usr/sbin/nonewprivs", os.ModeSetuid|0o755
	m := &maker{}
	if m.busybox, err = image.Layer(files...); err != nil {
		return nil, err
	}
	m.programs, err = image.Layer(program, image.File{Path: "/usr/sbin/pause", Link: program.Path}, setuid,
		image.File{Path: "/var/run/"})
	if err != nil {
		return nil, err
	}
	if files, err = agnhostFiles(agnhost, kubernetes); err != nil {
		return nil, err
	}
	m.agnhost, err = image.Layer(files...)
	return m, err
}

// inBin returns links in /bin to the applets of other directories: there the specs look for them.
func inBin(busybox []image.File) (links []image.File) {
	have := map[string]bool{}
	for _, f := range busybox {
		have[f.Path] = true
	}
	for _, f := range busybox {
		if at := "/bin/" + filepath.Base(f.Path); f.Link != "" && !have[at] {
			have[at] = true
			links = append(links, image.File{Path: at, Link: f.Link, Mode: f.Mode})
		}
	}
	return links
}

// bash returns the files of this machine's bash, which some specs of agnhost start, and of the libraries that it needs.
func bash() ([]image.File, error) {
	const program = "/bin/bash"
	libraries, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", program, err)
	}
	paths := append([]string{program}, regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1)...)
	var files []image.File
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		files = append(files, image.File{Path: p, Data: data, Mode: 0o755})
	}
	return files, nil
}

// agnhostFiles are those that the image of agnhost has beside a shell. The registry that it can be
// has no images: the specs that pull from it are not run.
func agnhostFiles(agnhost, kubernetes string) ([]image.File, error) {
	curl, err := image.Program("github.com/kuri-cri/kuri/test/conformance/curl", "/usr/bin/curl")
	if err != nil {
		return nil, err
	}
	files := []image.File{
		curl,
		{Path: "/agnhost-2", Symlink: "agnhost"},
		{Path: "/uploads/"},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser-defined-in-image:x:1000:1000::/home/user:/bin/sh\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")},
	}
	for from, to := range map[string]string{
		agnhost: "/agnhost",
		filepath.Join(kubernetes, "test/images/agnhost/porter/localhost.crt"): "/localhost.crt",
		filepath.Join(kubernetes, "test/images/agnhost/porter/localhost.key"): "/localhost.key",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		files = append(files, image.File{Path: to, Data: data, Mode: 0o755})
	}
	shell, err := bash()
	return append(files, shell...), err
}

// image makes an image that differs from all with another name.
func (m *maker) image(name string, config v1.Config, layers []v1.Layer) (v1.Image, error) {
	config.Labels = map[string]string{"name": name}
	return image.WithLayers(config, layers...)
}
