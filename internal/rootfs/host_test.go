package rootfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestHostPath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"to-file": "file", "to-dir": dir, "chain": "to-file",
		"dangling": "nowhere", "circle": "circle"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path, want string
		isDir      bool
		kind       fault.Kind
	}{
		{path: dir, want: dir, isDir: true},
		{path: dir + "/chain", want: dir + "/file"},
		{path: dir + "/to-dir/to-dir/file", want: dir + "/file"},
		{path: dir + "/to-dir", want: dir, isDir: true},
		{path: dir + "/dangling", kind: fault.Precondition},
		{path: dir + "/missing", kind: fault.Precondition},
		{path: dir + "/circle", kind: fault.Precondition},
		{path: dir + "/file/x", kind: fault.Precondition},
		{path: "relative", kind: fault.Invalid},
		{path: "", kind: fault.Invalid},
		{path: "/a\x00b", kind: fault.Invalid},
	} {
		got, isDir, err := HostPath(c.path)
		if got != c.want || isDir != c.isDir || fault.Of(err) != c.kind {
			t.Errorf("%q: %q, %v, %v", c.path, got, isDir, err)
		}
	}
}

func TestMounts(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Mounts([]*runtime.Mount{{HostPath: dir}, {ContainerPath: "/image"}}, false)
	if err != nil || len(got) != 2 || got[0].Source != dir || got[1].Source != "" {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := Mounts([]*runtime.Mount{{HostPath: dir + "/no", ContainerPath: "/x"}}, false); err == nil ||
		!strings.Contains(err.Error(), "mounts[0] to /x") {
		t.Errorf("a missing host path: %v", err)
	}
}

func TestPropagationNeedsASharedMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: cannot mount")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	const slave, shared = runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for _, c := range []struct {
		flag          uintptr
		slave, shared bool // whether each mode must succeed
	}{
		{unix.MS_PRIVATE, false, false},
		{unix.MS_SHARED, true, true},
	} {
		if err := unix.Mount("", dir, "", c.flag, ""); err != nil {
			t.Fatal(err)
		}
		for mode, ok := range map[runtime.MountPropagation]bool{slave: c.slave, shared: c.shared, 0: true} {
			_, err := Mounts([]*runtime.Mount{{HostPath: dir, Propagation: mode}}, false)
			if (err == nil) != ok || err != nil && fault.Of(err) != fault.Precondition {
				t.Errorf("flag %#x, %s: %v", c.flag, mode, err)
			}
		}
	}
}

func TestDevices(t *testing.T) {
	got, err := Devices([]*runtime.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nil", Permissions: "rw"}}, false)
	if err != nil || len(got) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if d := got[0]; d.Path != "/dev/nil" || d.Type != "c" || d.Major != 1 || d.Minor != 3 || d.Permissions != "rw" ||
		d.FileMode != 0o666 {
		t.Errorf("%+v", d)
	}
	for path, kind := range map[string]fault.Kind{"/etc/hostname": fault.Invalid,
		"/dev/not-there": fault.Precondition} {
		if _, err := Devices([]*runtime.Device{{HostPath: path, Permissions: "r"}}, false); fault.Of(err) != kind {
			t.Errorf("%s: %v", path, err)
		}
	}
	all, err := Devices([]*runtime.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nil", Permissions: "r"}}, true)
	if err != nil {
		t.Fatal(err)
	}
	has := make(map[string]string)
	for _, d := range all {
		has[d.Path] = d.Permissions
		if strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/shm/") ||
			d.Path == "/dev/console" {
			t.Errorf("%s is the node's own", d.Path)
		}
	}
	if has["/dev/null"] != "rwm" || has["/dev/nil"] != "r" {
		t.Errorf("a privileged container's devices: %v", has)
	}
}

func TestDirectoryThatIsNotForDevices(t *testing.T) {
	dir := t.TempDir()
	for n := range maxEntries {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(n)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Device(dir, "/dev/x", "r"); fault.Of(err) != fault.Invalid ||
		!strings.Contains(err.Error(), "name the devices themselves") {
		t.Errorf("%v", err)
	}
}

func TestDeviceDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "sub", "n"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Skipf("cannot make a device: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Device(dir, "/dev/x", "r")
	if err != nil || len(got) != 1 || got[0].Path != "/dev/x/sub/n" || got[0].FileMode != 0o600 {
		t.Fatalf("%+v, %v", got, err)
	}
}

// The error for a missing device must not give advice about volumes.
func TestMissingDevice(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/dev/no-such-device", filepath.Join(dir, "link"), "/dev/no-such-dir/0"} {
		_, err := Devices([]*runtime.Device{{HostPath: path, ContainerPath: "/dev/x", Permissions: "rw"}}, false)
		if fault.Of(err) != fault.Precondition || !strings.Contains(err.Error(),
			"device "+path+" is not on this node; is its driver loaded?") || strings.Contains(err.Error(), "volume") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := Devices([]*runtime.Device{{HostPath: "dev/null", Permissions: "r"}},
		false); fault.Of(err) != fault.Invalid {
		t.Errorf("a relative path: %v", err)
	}
}
