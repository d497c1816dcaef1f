package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVolumes(t *testing.T) {
	lower := t.TempDir()
	for _, dir := range []string{"run", "var", "srv/data", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(lower, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(lower, "srv/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"var/run": "/run", "dangling": "/new/../newer/place", "up": "../../../..", "loop": "loop", "toproc": "/proc/x",
		"abs": "/srv/data/",
	} {
		if err := os.Symlink(target, filepath.Join(lower, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name    string
		volumes []string
		mounts  []string
		want    string
		left    int // number of notes
	}{
		{"none", nil, nil, "", 0},
		{"there, and not", []string{"/srv/data", "/a/b"}, nil, "/a/b /srv/data", 0},
		{"two spellings", []string{"/srv/data", "/srv/data/", "srv//data", "/x/../srv/data", "/abs"}, nil, "/srv/data",
			0},
		{"one in another", []string{"/srv", "/srv/data"}, nil, "/srv /srv/data", 0},
		{"through links", []string{"/var/run/a", "/dangling/x"}, nil, "/newer/place/x /run/a", 0},
		{"at a mount", []string{"/srv/data"}, []string{"/srv/data/"}, "", 0},
		{"below a mount", []string{"/srv/data", "/srv/more"}, []string{"/srv"}, "", 0},
		{"above a mount", []string{"/srv"}, []string{"/srv/data"}, "/srv", 0},
		{"beside a mount", []string{"/srv/data"}, []string{"/srv/dat", "/srv/data2"}, "/srv/data", 0},
		{"a mount through a link", []string{"/run/a"}, []string{"/var/run/a"}, "", 0},
		{"a volume through a link", []string{"/var/run/a"}, []string{"/run"}, "", 0},
		{"a relative mount", []string{"/srv/data"}, []string{"srv"}, "", 0},
		{"what the kubelet mounts", []string{"/etc/hosts", "/etc/resolv.conf", "/dev/termination-log",
			"/var/run/secrets/kubernetes.io/serviceaccount"},
			[]string{"/etc/hosts", "/dev/termination-log", "/var/run/secrets/kubernetes.io/serviceaccount"}, "", 0},
		{"what Kuri mounts", []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}, nil, "", 0},
		{"the directory of those", []string{"/etc"}, nil, "/etc", 0},
		{"of the kernel", []string{"/proc", "/proc/x", "/sys/fs", "/dev", "/dev/shm", "/toproc"}, nil, "", 6},
		{"the root", []string{"/", "", ".", "/up"}, nil, "", 4},
		{"a file", []string{"/srv/file", "/srv/file/x"}, nil, "", 2},
		{"a loop", []string{"/loop"}, nil, "", 1},
		{"a NUL", []string{"/a\x00b"}, nil, "", 1},
	} {
		volumes := make(map[string]struct{})
		for _, v := range c.volumes {
			volumes[v] = struct{}{}
		}
		var mounts []*runtime.Mount
		for _, m := range c.mounts {
			mounts = append(mounts, &runtime.Mount{ContainerPath: m})
		}
		dirs, notes := Volumes([]string{lower}, volumes, mounts)
		slices.Sort(dirs)
		if strings.Join(dirs, " ") != c.want || len(notes) != c.left {
			t.Errorf("%s: %q, %q; want %q and %d notes", c.name, dirs, notes, c.want, c.left)
		}
	}
}

// The number of volumes and the length of a note are limited.
func TestVolumesAreBounded(t *testing.T) {
	volumes := make(map[string]struct{})
	for i := range 100_000 {
		volumes["/"+strconv.Itoa(i)] = struct{}{}
	}
	dirs, notes := Volumes([]string{t.TempDir()}, volumes, nil)
	if len(dirs) != maxVolumes || len(notes) != 1 || !strings.Contains(notes[0], "100000") {
		t.Errorf("%d directories, %q", len(dirs), notes)
	}
	_, notes = Volumes([]string{t.TempDir()}, map[string]struct{}{strings.Repeat("\x00", 1<<20): {}}, nil)
	if len(notes) != 1 || len(notes[0]) > 1000 {
		t.Errorf("a note of %d bytes", len(notes[0]))
	}
}
