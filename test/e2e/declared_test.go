package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// pushes builds an image of busybox with more files and a configuration, and has the daemon pull it.
func (s *shell) pushes(t *testing.T, name string, config v1.Config, more ...image.File) (ref string) {
	t.Helper()
	files, err := image.Busybox("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.New(config, append(files, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	ref = s.Registry.Push(t, name, img)
	s.Pull(t, ref)
	return ref
}

// The VOLUMEs of an image are writable directories with the image's content, even with a read-only
// root. They belong to one container, and a requested mount takes precedence over them.
func TestDeclaredVolumes(t *testing.T) {
	s := newShell(t)
	volumes := map[string]struct{}{"/srv/data": {}, "/missing/deep/": {}, "relative": {}, "/link/sub": {},
		"/mounted/below": {}, "/etc": {}, "/proc/x": {}}
	ref := s.pushes(t, "volumes:1", v1.Config{Volumes: volumes},
		image.File{Path: "/srv/data/", Mode: 0o770, UID: 1000, GID: 1000},
		image.File{Path: "/srv/data/old", Data: []byte("of the image\n"), UID: 1000, GID: 1000},
		image.File{Path: "/link", Symlink: "/target"},
		image.File{Path: "/target/"},
	)
	host := t.TempDir()
	asked := func(readonly bool, user int64) func(*container, *security) {
		return func(c *container, sc *security) {
			c.Image.Image, sc.ReadonlyRootfs, sc.RunAsUser = ref, readonly, &runtimeapi.Int64Value{Value: user}
			c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/mounted"}}
		}
	}
	const write = `cat /srv/data/old; for d in /srv/data /missing/deep /relative /link/sub /etc; do echo new > $d/file && cat $d/file; done
		echo more >> /srv/data/old && tail -n 1 /srv/data/old; stat -c '%n %a %u:%g' /srv/data /missing/deep; test -e /mounted/below || echo yields; grep -q shell /etc/hosts && echo hosts; (echo x > /x) 2>/dev/null || echo read-only`
	const written = "of the image\nnew\nnew\nnew\nnew\nnew\nmore\n/srv/data 770 1000:1000\n/missing/deep 755 0:0\nyields\nhosts\n"
	for name, readonly := range map[string]bool{"a root that can be written": false, "a read-only root": true} {
		want := written
		if readonly {
			want += "read-only\n"
		}
		if out := s.says(t, asked(readonly, 0), "sh", "-c", write); out != want {
			t.Errorf("%s: %q, want %q", name, out, want)
		}
	}
	// Volumes are not shared: the next container starts with the image's content, and its user may
	// write to it.
	if out := s.says(t, asked(true, 1000), "sh", "-c",
		"cat /srv/data/*; echo mine > /srv/data/own && cat /srv/data/own"); out != "of the image\nmine\n" {
		t.Errorf("a user that is not root, in the next container: %q", out)
	}
	if left, _ := os.ReadDir(host); len(left) > 0 {
		t.Errorf("the host's directory has %v", left)
	}
	if log := s.Log(t); !strings.Contains(log, `VOLUME`) || !strings.Contains(log, "/proc/x") {
		t.Error("the log does not say that a VOLUME at /proc/x is left out")
	}
}

// The same in a user namespace: the directory belongs to the pod's root.
func TestDeclaredVolumesOfAUserNamespace(t *testing.T) {
	s := usernsShell(t, nil)
	ref := s.pushes(t, "volumes:1", v1.Config{Volumes: map[string]struct{}{"/srv/data": {}, "/missing/deep": {}}},
		image.File{Path: "/srv/data/old", Data: []byte("of the image\n"), UID: 7, GID: 8},
	)
	for _, readonly := range []bool{false, true} {
		out := s.says(t, inPod(func(c *container, sc *security) { c.Image.Image, sc.ReadonlyRootfs = ref, readonly }),
			"sh", "-c", "cat /srv/data/old; touch /srv/data/new /missing/deep/new && stat -c '%u:%g' /srv/data/old /missing /missing/deep /missing/deep/new")
		if out != "of the image\n7:8\n0:0\n0:0\n0:0\n" {
			t.Errorf("read-only %v: %q", readonly, out)
		}
	}
}

// Entries of an image's environment that no process can have are skipped, and the image runs.
func TestOddEnvironmentOfAnImage(t *testing.T) {
	s := newShell(t)
	ref := s.pushes(t, "env:1", v1.Config{Env: []string{"PATH=/bin:/usr/bin", "NOEQ", "", "=x", "TWICE=1", "TWICE=2",
		"_KURI_RAW_3=zz", "EMPTY=", "A=b=c"}})
	out := s.says(t, func(c *container, _ *security) { c.Image.Image = ref }, "env")
	for _, want := range []string{"PATH=/bin:/usr/bin\n", "TWICE=2\n", "EMPTY=\n", "A=b=c\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	for _, not := range []string{"NOEQ", "TWICE=1", "KURI", "\n="} {
		if strings.Contains(out, not) {
			t.Errorf("%q in %q", not, out)
		}
	}
	if n := strings.Count(s.Log(t), "NOEQ"); n != 1 {
		t.Errorf("the log tells of it in %d lines", n)
	}
}

// A log directory that is a symlink is refused, and nothing is written behind it.
func TestLogDirectoryThatIsALink(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.PullBusybox(t)
	top := t.TempDir()
	victim := filepath.Join(top, "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	config := harness.Pod("log")
	config.LogDirectory = filepath.Join(top, "pod")
	if err := os.Symlink(victim, config.LogDirectory); err != nil {
		t.Fatal(err)
	}
	pod := d.RunPod(t, config)
	for i, path := range []string{"0.log", "ctr/0.log"} {
		c := harness.Container(fmt.Sprint("c", i), ref, "echo", "hello")
		c.LogPath = path
		_, err := d.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c,
			SandboxConfig: config})
		harness.WantError(t, err, codes.InvalidArgument, "log_directory", config.LogDirectory, "symlink")
	}
	if left, _ := os.ReadDir(victim); len(left) > 0 {
		t.Errorf("made behind the link: %v", left)
	}
}
