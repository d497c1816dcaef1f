package critest

import (
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuri-cri/kuri/test/image"
)

const (
	e2eImages  = "registry.k8s.io/e2e-test-images/"
	criImages  = "gcr.io/k8s-staging-cri-tools/"
	digestName = criImages + "test-image-digest:latest" // pulled only by digest
)

// registryHosts are the hosts in the names of the images.
var registryHosts = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io"}

// images returns, by name, the images that the suite pulls, built from the given busybox. They are
// indexes for two architectures like the real ones, except those whose manifest the suite requests.
func images(busybox string) (map[string]remote.Taggable, error) {
	m, err := newMaker(busybox)
	if err != nil {
		return nil, err
	}
	out := map[string]remote.Taggable{}
	index := func(img v1.Image, err error, names ...string) error {
		if err != nil {
			return fmt.Errorf("image %s: %w", names[0], err)
		}
		list, err := image.Index(img)
		for _, n := range names {
			out[n] = list
		}
		return err
	}
	var errs []error
	add := func(config v1.Config, layers []v1.Layer, names ...string) {
		img, err := m.image(names[0], config, layers...)
		errs = append(errs, index(img, err, names...))
	}

	shell := []v1.Layer{m.busybox}
	add(v1.Config{Cmd: []string{"sh"}}, shell, e2eImages+"busybox:1.29-1")
	add(v1.Config{Cmd: []string{"sh"}}, shell, e2eImages+"busybox:1.29-2")
	for _, tag := range []string{"1", "1-glibc", "1-musl", "1-uclibc", "1.35.0-glibc", "1.26.2-glibc"} {
		add(v1.Config{Cmd: []string{"sh"}}, shell, "docker.io/library/busybox:"+tag)
	}
	programs := []v1.Layer{m.busybox, m.programs}
	add(v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT"}, programs, e2eImages+"nginx:1.14-2")
	add(v1.Config{Cmd: []string{"httpd"}}, programs, e2eImages+"httpd:2.4.39-4")
	add(v1.Config{Entrypoint: []string{"/usr/sbin/nonewprivs"}}, programs, e2eImages+"nonewprivs:1.3")
	hostnet := v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{"PORT=12003"}}
	add(hostnet, programs, criImages+"hostnet-nginx:latest")

	pause := []v1.Layer{m.programs}
	add(v1.Config{Entrypoint: []string{"/usr/sbin/pause"}, User: "65535:65535"}, pause, "registry.k8s.io/pause:3.9",
		"k8s.gcr.io/pause:3.9")
	add(v1.Config{Entrypoint: []string{"/usr/sbin/pause"}, User: "65535:65535"}, pause, "registry.k8s.io/pause:3.10")

	for name, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004",
	} {
		add(v1.Config{User: user}, shell, criImages+"test-image-user-"+name+":latest")
	}
	add(v1.Config{User: "1000"}, []v1.Layer{m.busybox, m.group}, criImages+"test-image-predefined-group:latest")
	for _, name := range []string{"1", "2", "3", "latest"} {
		add(v1.Config{Cmd: []string{"sh"}}, shell, criImages+"test-image-"+name+":latest")
	}
	add(v1.Config{Cmd: []string{"sh"}}, shell, criImages+"test-image-tags:1", criImages+"test-image-tags:2", criImages+
		"test-image-tags:3")
	add(v1.Config{Cmd: []string{"sh"}}, shell, criImages+"test-image-tag:test", criImages+"test-image-tag:all")

	// The suite requests the manifests of these, not an index.
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := m.image("hostnet-nginx", hostnet, programs...)
		errs = append(errs, err)
		out[criImages+"hostnet-nginx-"+arch+":latest"] = img
	}
	img, err := m.image(digestName, v1.Config{Cmd: []string{"sh"}}, shell...)
	errs = append(errs, err)
	out[digestName] = img
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// maker holds the layers that the images share.
type maker struct {
	busybox  v1.Layer // busybox with its applets
	programs v1.Layer // replacements from program/
	group    v1.Layer // the users and groups of test-image-predefined-group
}

func newMaker(busybox string) (*maker, error) {
	files, err := image.Busybox(busybox)
	if err != nil {
		return nil, err
	}
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
	m.programs, err = image.Layer(program, image.File{Path: "/usr/sbin/httpd", Link: program.Path},
		image.File{Path: "/usr/sbin/pause", Link: program.Path}, setuid, image.File{Path: "/var/run/"})
	if err != nil {
		return nil, err
	}
	m.group, err = image.Layer(
		image.File{Path: "/etc/passwd",
			Data: []byte("root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n")},
		image.File{Path: "/etc/group",
			Data: []byte("root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")})
	return m, err
}

// image builds an image whose name makes it differ from all others. It uses OCI media types,
// although most of the real images have Docker's: other tests cover those.
func (m *maker) image(name string, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	config.Labels = map[string]string{"name": name}
	img, err := image.WithLayers(config, layers...)
	if err != nil {
		return nil, err
	}
	return mutate.MediaType(img, types.OCIManifestSchema1), nil
}
