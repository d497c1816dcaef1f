package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// mounting returns a change that adds mounts to a container.
func mounting(mounts ...*runtimeapi.Mount) func(*container, *security) {
	return func(c *container, _ *security) { c.Mounts = mounts }
}

func TestMountOptions(t *testing.T) {
	s := newShell(t)
	resp, err := s.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Features.MountOptions || !resp.RuntimeHandlers[0].Features.RecursiveReadOnlyMounts {
		t.Errorf("features: %v, %v", resp.Features, resp.RuntimeHandlers)
	}

	// A volume with a mount below it.
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("below", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(below, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const try = "touch /v/a 2>/dev/null && echo top; touch /v/below/a 2>/dev/null && echo below; /v/run 2>/dev/null; true"
	for _, c := range []struct {
		name  string
		mount *runtimeapi.Mount
		want  string
	}{
		{"read-write", &runtimeapi.Mount{}, "top\nbelow\nran\n"},
		{"read-only at the top", &runtimeapi.Mount{Readonly: true}, "below\nran\n"},
		{"read-only with all below", &runtimeapi.Mount{Readonly: true, RecursiveReadOnly: true}, "ran\n"},
		{"noexec", &runtimeapi.Mount{MountOptions: []string{"noexec"}}, "top\nbelow\n"},
	} {
		c.mount.HostPath, c.mount.ContainerPath = dir, "/v"
		if out := s.says(t, mounting(c.mount), "sh", "-c", try); out != c.want {
			t.Errorf("%s: %q, want %q", c.name, out, c.want)
		}
	}
	m := &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", MountOptions: []string{"nodev", "nosuid", "noexec"}}
	if out := s.says(t, mounting(m), "grep", " /v ", "/proc/self/mountinfo"); !strings.Contains(out,
		"rw,nosuid,nodev,noexec") {
		t.Errorf("mountinfo: %q", out)
	}
	for _, bad := range []*runtimeapi.Mount{
		{RecursiveReadOnly: true},
		{RecursiveReadOnly: true, Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{MountOptions: []string{"remount"}},
	} {
		bad.HostPath, bad.ContainerPath = dir, "/v"
		harness.WantError(t, s.refuses(t, mounting(bad), "true"), codes.InvalidArgument, "mounts[0]")
	}
}

func TestImageVolume(t *testing.T) {
	s := newShell(t)
	push := func(name string, files ...image.File) string {
		img, err := image.New(v1.Config{}, files...)
		if err != nil {
			t.Fatal(err)
		}
		ref := s.Registry.Push(t, name, img)
		s.Pull(t, ref)
		return ref
	}
	ref := push("data:1",
		image.File{Path: "/dir/file", Data: []byte("hello\n")},
		image.File{Path: "/link", Symlink: "dir"}, image.File{Path: "/out", Symlink: "/etc"},
	)
	volume := func(sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: "/v", Readonly: true, Image: &runtimeapi.ImageSpec{Image: ref},
			ImageSubPath: sub}
	}
	for sub, cat := range map[string]string{"": "/v/dir/file", "dir": "/v/file", "link": "/v/file", "dir/file": "/v"} {
		if out := s.says(t, mounting(volume(sub)), "sh", "-c", "cat "+cat+
			"; touch /v/x 2>/dev/null && echo written; true"); out != "hello\n" {
			t.Errorf("sub path %q: %q", sub, out)
		}
	}
	harness.WantError(t, s.refuses(t, mounting(volume("nowhere")), "true"), codes.NotFound, "mounts[0]", "nowhere")
	harness.WantError(t, s.refuses(t, mounting(volume("out")), "true"), codes.NotFound, "out")
	harness.WantError(t, s.refuses(t, mounting(volume("../..")), "true"), codes.InvalidArgument, "image_sub_path")
	writable := volume("dir")
	writable.Readonly = false
	harness.WantError(t, s.refuses(t, mounting(writable), "true"), codes.InvalidArgument, "mounts[0].readonly",
		"read-only")
	absent := volume("")
	absent.Image = &runtimeapi.ImageSpec{Image: "docker.io/library/absent:1"}
	harness.WantError(t, s.refuses(t, mounting(absent), "true"), codes.NotFound, "absent")

	// A container keeps the layers of an image volume across a restart, the status names the image,
	// and two containers can use it.
	id := s.run(t, mounting(volume("dir"),
		&runtimeapi.Mount{ContainerPath: "/w", Readonly: true, Image: &runtimeapi.ImageSpec{Image: ref}}), "sleep", "1000")
	st := s.ContainerStatus(t, id)
	for i, m := range st.Mounts {
		if got, pulled := m.GetImage().GetImageRef(), s.Pull(t, ref); got != pulled {
			t.Errorf("image_ref of mount %d in the status: %q; PullImage answers %q", i, got, pulled)
		}
	}
	if out, errs, code := s.Kuri(t, "prune", "--force"); code != 0 || imageStatus(t, s.Daemon, ref) == nil {
		t.Errorf("the image of a volume is pruned: %d\n%s%s", code, out, errs)
	}
	if out, _, _ := s.Kuri(t, "images"); !strings.Contains(out, "a volume\n") {
		t.Errorf("kuri images does not tell that a volume uses it:\n%s", out)
	}
	if _, errs, code := s.Kuri(t, "rmi", ref); code != 1 || !strings.Contains(errs, "mounts it as a volume") {
		t.Errorf("kuri rmi exits %d: %s", code, errs)
	}
	if _, err := s.Images.RemoveImage(t.Context(),
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	if out := s.Output(t, id, "cat", "/v/file", "/w/dir/file"); out != "hello\nhello\n" {
		t.Errorf("after the image was removed: %q", out)
	}
}

// If configured, a missing host path is created, but not the target of a dangling symlink.
func TestMissingHostPathsAreMade(t *testing.T) {
	s := newShell(t, harness.Options{Config: "[pod]\ncreate_missing_host_paths = true"})
	dir := t.TempDir()
	made := filepath.Join(dir, "a", "b")
	if out := s.says(t, mounting(&runtimeapi.Mount{HostPath: made, ContainerPath: "/v"}), "sh", "-c",
		"touch /v/x && stat -c %a /v"); out != "755\n" {
		t.Errorf("%q", out)
	}
	if _, err := os.Stat(filepath.Join(made, "x")); err != nil {
		t.Error(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	harness.WantError(t, s.refuses(t, mounting(&runtimeapi.Mount{HostPath: link, ContainerPath: "/v"}), "true"),
		codes.FailedPrecondition, link)
	harness.WantError(t, s.refuses(t, mounting(&runtimeapi.Mount{HostPath: "relative", ContainerPath: "/v"}), "true"),
		codes.InvalidArgument, "relative")
	harness.WantError(t, s.refuses(t, mounting(&runtimeapi.Mount{HostPath: "/proc/no/such", ContainerPath: "/v"}), "true"),
		codes.FailedPrecondition, "/proc/no/such")
}

// The pod's /dev/shm has the configured size and is shared by all of its containers.
func TestShmSize(t *testing.T) {
	s := newShell(t, harness.Options{Config: "[pod]\nshm_size = 1048576"})
	id := s.run(t, nil, "sleep", "1000")
	if out := s.Output(t, id, "sh", "-c",
		"df -k /dev/shm | tail -1 | awk '{print $2}'; dd if=/dev/zero of=/dev/shm/x bs=1k count=1025 2>/dev/null || echo full; echo y >/dev/shm/x"); out != "1024\nfull\n" {
		t.Errorf("%q", out)
	}
	if out := s.says(t, nil, "cat", "/dev/shm/x"); out != "y\n" {
		t.Errorf("another container reads %q", out)
	}
}

// A volume prepared for an fsGroup as a kubelet does it: a user of that group can write, and new
// files belong to the group.
func TestVolumeOfAGroup(t *testing.T) {
	s := newShell(t)
	dir := t.TempDir()
	if err := os.Chown(dir, 0, 4321); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o770|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	as := func(groups ...int64) func(*container, *security) {
		return func(c *container, sc *security) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/v"}}
			sc.RunAsUser, sc.RunAsGroup, sc.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000},
				&runtimeapi.Int64Value{Value: 1000}, groups
		}
	}
	const look = "touch /v/x 2>/dev/null && stat -c %u:%g /v/x || echo refused"
	if out := s.says(t, as(4321), "sh", "-c", look); out != "1000:4321\n" {
		t.Errorf("of the group: %q", out)
	}
	if out := s.says(t, as(), "sh", "-c", look); out != "refused\n" {
		t.Errorf("not of the group: %q", out)
	}
}
