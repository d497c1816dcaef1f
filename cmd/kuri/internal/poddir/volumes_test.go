package poddir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// The files of a volume, a claim that outlives the pod, and paths within volumes that no link may
// lead out of.
func TestPodVolumes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("files are given owners, and paths are mounted: needs root")
	}
	f := filesIn(t)
	group := int64(2000)
	secret := t.TempDir()
	if err := os.WriteFile(filepath.Join(secret, "shadow"), []byte("the node's"), 0o600); err != nil {
		t.Fatal(err)
	}
	paths, err := f.Make("/run/kuri/kuri.sock", []manifest.Volume{
		{Name: "config", Mode: 0o755, Group: &group, ReadOnly: true, Files: []manifest.VolumeFile{
			{Path: "a", Data: []byte("A"), Mode: 0o400}, {Path: "deep/b", Data: []byte("B"), Mode: 0o644, User: 7}}},
		{Name: "keys", Mode: 0o755, Memory: true, ReadOnly: true,
			Files: []manifest.VolumeFile{{Path: "k", Data: []byte("K"), Mode: 0o400}}},
		{Name: "data", Mode: 0o777, Claim: "data-db-0"},
		{Name: "scratch", Mode: 0o777},
	}, nil)
	t.Cleanup(func() {
		if err := f.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		data           string
		mode, uid, gid uint32
	}{"config/a": {"A", 0o440, 0, 2000}, "config/deep/b": {"B", 0o644, 7, 2000}, "keys/k": {"K", 0o400, 0, 0}} {
		volume, file, _ := strings.Cut(path, "/")
		at := filepath.Join(paths[volume], file)
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(at)
		if string(data) != want.data || st.Mode&0o7777 != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: %q, mode %o, owner %d:%d", path, data, st.Mode&0o7777, st.Uid, st.Gid)
		}
	}
	var keys unix.Statfs_t
	if err := unix.Statfs(paths["keys"], &keys); err != nil || keys.Type != unix.TMPFS_MAGIC {
		t.Errorf("secrets are on the disk: type %x (%v)", keys.Type, err)
	}

	// Links that a container of the pod has left in the volume lead nowhere.
	for link, to := range map[string]string{"up": "../../../..", "abs": secret, "proc": "/proc/self/root", "in": "made"} {
		if err := os.Symlink(to, filepath.Join(paths["scratch"], link)); err != nil {
			t.Fatal(err)
		}
	}
	for i, sub := range []string{"up", "abs", "abs/shadow", "proc", "up/new", "abs/new"} {
		if at, err := f.SubPath("c", manifest.SubPath{Mount: i, Volume: "scratch", Path: sub},
			paths["scratch"]); err == nil || !strings.Contains(err.Error(), "leads out of the volume") {
			t.Errorf("%s: %q, %v", sub, at, err)
		}
	}
	if _, err := os.Stat(filepath.Join(secret, "new")); err == nil {
		t.Error("a directory was made outside of the volume")
	}
	made, err := f.SubPath("c", manifest.SubPath{Mount: 10, Volume: "scratch", Path: "made/deep"}, paths["scratch"])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(made, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(paths["scratch"], "made/deep"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o777 {
		t.Errorf("mode %v", info.Mode())
	}
	for i, sub := range []string{"in/deep/file", "made/deep/file"} { // a link that stays within the volume is permitted
		at, err := f.SubPath("c", manifest.SubPath{Mount: 20 + i, Volume: "scratch", Path: sub}, paths["scratch"])
		if data, _ := os.ReadFile(at); err != nil || string(data) != "x" {
			t.Errorf("%s: %q (%v)", sub, data, err)
		}
	}

	claim := filepath.Join(paths["data"], "row")
	if err := os.WriteFile(claim, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.SubPath("c", manifest.SubPath{Mount: 30, Volume: "data", Path: "row"}, paths["data"]); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(claim); err != nil || string(data) != "1" {
		t.Errorf("the claim has not stayed: %q (%v)", data, err)
	}
	again := f
	again.uid = "99999999-2222-3333-4444-555555555555"
	more, err := again.Make("/run/kuri/kuri.sock", []manifest.Volume{{Name: "data", Mode: 0o777, Claim: "data-db-0"}}, nil)
	if err != nil || more["data"] != paths["data"] {
		t.Errorf("the claim is not found again: %v (%v)", more, err)
	}
	if err := again.Remove(); err != nil {
		t.Error(err)
	}
	c := &cli.CLI{PodsDir: f.podsDir}
	if err := RemoveClaims(c, manifest.Ref{Namespace: f.namespace, Claims: []string{"data-db-0", "absent"}}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(f.podsDir, claimsDir, f.namespace)); err == nil {
		t.Error("the claim is still there")
	}
}
