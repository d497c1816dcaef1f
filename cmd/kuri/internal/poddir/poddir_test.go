package poddir

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

const testUID = "11111111-2222-3333-4444-555555555555"

func filesIn(t *testing.T) Files {
	dir := t.TempDir()
	return Files{podsDir: filepath.Join(dir, "pods"), logsDir: filepath.Join(dir, "logs"), namespace: "shop",
		name: "web.1", uid: testUID}
}

func TestPodFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("volumes are given owners, and a tmpfs is mounted: needs root")
	}
	f := filesIn(t)
	group := int64(2000)
	host := t.TempDir()
	paths, err := f.Make("/run/kuri/kuri.sock", []manifest.Volume{
		{Name: "disk", Mode: 0o777},
		{Name: "shared", Mode: 0o755, Group: &group},
		{Name: "sticky", Mode: 0o1777},
		{Name: "mem", Mode: 0o777, Memory: true, SizeLimit: 1 << 20},
		{Name: "host", HostPath: host},
	}, nil)
	t.Cleanup(func() {
		if err := f.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if paths["host"] != host {
		t.Errorf("hostPath became %s", paths["host"])
	}
	for name, want := range map[string]struct {
		mode uint32
		gid  uint32
	}{"disk": {0o777, 0}, "shared": {0o2775, 2000}, "sticky": {0o1777, 0}, "mem": {0o777, 0}} {
		var st unix.Stat_t
		if err := unix.Stat(paths[name], &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != want.mode || st.Gid != want.gid || st.Uid != 0 {
			t.Errorf("%s: mode %o, group %d", name, st.Mode&0o7777, st.Gid)
		}
	}
	var mem unix.Statfs_t
	if err := unix.Statfs(paths["mem"], &mem); err != nil || mem.Type != unix.TMPFS_MAGIC ||
		mem.Blocks*uint64(mem.Bsize) != 1<<20 {
		t.Errorf("mem: type %x, %d blocks (%v)", mem.Type, mem.Blocks, err)
	}

	// Things that a container may have left: a link to another place, and a mount.
	keep := filepath.Join(host, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(host, filepath.Join(paths["disk"], "link")); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(paths["disk"], "mounted here")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(host, inside, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second removal has nothing to do
		if err := f.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(keep); err != nil {
		t.Errorf("a file outside was removed: %v", err)
	}
	for _, dir := range []string{f.podsDir, f.logsDir} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	if left, err := mountsBelow(f.podsDir); err != nil || len(left) > 0 {
		t.Errorf("still mounted: %v %v", left, err)
	}
}

func TestMountsAfterALongLine(t *testing.T) {
	overlay := "40 25 0:99 / /merged rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", 200<<10) + "/last\n"
	tmpfs := "41 25 0:98 / /pods/a\\040b rw - tmpfs tmpfs rw\n42 25 0:98 / /podsmore rw - tmpfs tmpfs rw\n"
	if got := mountsIn(overlay+tmpfs, "/pods"); !slices.Equal(got, []string{"/pods/a b"}) {
		t.Errorf("%q", got)
	}
}

func TestPodFilesOfHostileNames(t *testing.T) {
	good := filesIn(t)
	if err := os.MkdirAll(filepath.Join(good.podsDir, testUID), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ namespace, name, uid string }{
		{"..", "web", testUID}, {"shop", "../..", testUID}, {"shop", "web", ".."}, {"shop", "web", ""}, {"", "web", testUID},
		{"shop", "", testUID}, {"sh/op", "web", testUID}, {"shop", "we/b", testUID}, {"shop", "web", testUID + "/.."},
		{"shop", "web", testUID + "\n"},
		{"Shop", "web", testUID}, {"shop", strings.Repeat("a", 254), testUID},
	} {
		f := good
		f.namespace, f.name, f.uid = tt.namespace, tt.name, tt.uid
		if err := f.Remove(); err == nil || !strings.Contains(err.Error(), "left alone") {
			t.Errorf("%q: %v", tt, err)
		}
		if _, err := f.Make("/run/kuri/kuri.sock", nil, nil); err == nil {
			t.Errorf("%q: made", tt)
		}
	}
	if _, err := os.Stat(filepath.Join(good.podsDir, testUID)); err != nil {
		t.Error(err)
	}
}

func TestRemovingDoesNotFollowALinkInPlaceOfADirectory(t *testing.T) {
	f := filesIn(t)
	elsewhere := t.TempDir()
	keep := filepath.Join(elsewhere, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, name := range map[string]string{f.podsDir: f.uid, f.logsDir: f.logDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(elsewhere, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Error(err)
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var sock string
	if l, err := net.Listen("unix", filepath.Join(dir, "s")); err == nil {
		defer l.Close()
		sock = filepath.Join(dir, "s")
	}
	for _, tt := range []struct {
		path string
		kind corev1.HostPathType
		ok   bool
	}{
		{dir, "", true}, {file, "", true}, {filepath.Join(dir, "none"), "", false},
		{dir, "Directory", true}, {file, "Directory", false},
		{file, "File", true}, {dir, "File", false}, {"/dev/null", "File", false},
		{"/dev/null", "CharDevice", true}, {"/dev/null", "BlockDevice", false}, {file, "Socket", false}, {sock, "Socket",
			sock != ""},
		{filepath.Join(dir, "new/dir"), "DirectoryOrCreate", true}, {file, "DirectoryOrCreate", false},
		{filepath.Join(dir, "newfile"), "FileOrCreate", true}, {filepath.Join(dir, "no/parent"), "FileOrCreate", false},
	} {
		if err := hostPath(tt.path, tt.kind); (err == nil) != tt.ok {
			t.Errorf("%s as %q: %v", tt.path, tt.kind, err)
		}
		if _, err := os.Stat(tt.path); tt.ok && err != nil {
			t.Errorf("%s as %q: %v", tt.path, tt.kind, err)
		}
	}
}
