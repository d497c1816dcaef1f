package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

const testUID = "11111111-2222-3333-4444-555555555555"

func filesIn(t *testing.T) podFiles {
	dir := t.TempDir()
	return podFiles{podsDir: filepath.Join(dir, "pods"), logsDir: filepath.Join(dir, "logs"), namespace: "shop", name: "web.1", uid: testUID}
}

func TestPodFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("volumes are given owners, and a tmpfs is mounted: needs root")
	}
	f := filesIn(t)
	group := int64(2000)
	host := t.TempDir()
	paths, err := f.make([]manifest.Volume{
		{Name: "disk", Mode: 0o777},
		{Name: "shared", Mode: 0o755, Group: &group},
		{Name: "sticky", Mode: 0o1777},
		{Name: "mem", Mode: 0o777, Memory: true, SizeLimit: 1 << 20},
		{Name: "host", HostPath: host},
	}, nil)
	t.Cleanup(func() {
		if err := f.remove(); err != nil {
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
	if err := unix.Statfs(paths["mem"], &mem); err != nil || mem.Type != unix.TMPFS_MAGIC || mem.Blocks*uint64(mem.Bsize) != 1<<20 {
		t.Errorf("mem: type %x, %d blocks (%v)", mem.Type, mem.Blocks, err)
	}

	// What a container may have left: a link to elsewhere, and something mounted.
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
	for range 2 { // the second time there is nothing to do
		if err := f.remove(); err != nil {
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

func TestPodFilesOfHostileNames(t *testing.T) {
	good := filesIn(t)
	if err := os.MkdirAll(filepath.Join(good.podsDir, testUID), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ namespace, name, uid string }{
		{"..", "web", testUID}, {"shop", "../..", testUID}, {"shop", "web", ".."}, {"shop", "web", ""}, {"", "web", testUID},
		{"shop", "", testUID}, {"sh/op", "web", testUID}, {"shop", "we/b", testUID}, {"shop", "web", testUID + "/.."}, {"shop", "web", testUID + "\n"},
		{"Shop", "web", testUID}, {"shop", strings.Repeat("a", 254), testUID},
	} {
		f := good
		f.namespace, f.name, f.uid = tt.namespace, tt.name, tt.uid
		if err := f.remove(); err == nil || !strings.Contains(err.Error(), "left alone") {
			t.Errorf("%q: %v", tt, err)
		}
		if _, err := f.make(nil, nil); err == nil {
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
	if err := f.remove(); err != nil {
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
		{"/dev/null", "CharDevice", true}, {"/dev/null", "BlockDevice", false}, {file, "Socket", false}, {sock, "Socket", sock != ""},
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

func TestPack(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"oci-layout": "{}", "index.json": "[]", "blobs/sha256/aa": strings.Repeat("x", 100)}
	for name, content := range want {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := pack(&b, dir); err != nil {
		t.Fatal(err)
	}
	r, got := tar.NewReader(&b), 0
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil || string(content) != want[h.Name] {
			t.Errorf("%s: %q %v", h.Name, content, err)
		}
		got++
	}
	if got != len(want) {
		t.Errorf("%d files", got)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "blobs/sha256/bb")); err != nil {
		t.Fatal(err)
	}
	if err := pack(io.Discard, dir); err == nil {
		t.Error("a link out of the layout was followed")
	}
}

func TestLogPrinter(t *testing.T) {
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	entries := []crilog.Entry{
		{Time: when, Stream: crilog.Stdout, Partial: true, Text: []byte("he")},
		{Time: when, Stream: crilog.Stderr, Text: []byte("oops")},
		{Time: when, Stream: crilog.Stdout, Text: []byte("llo")},
		{Time: when, Stream: crilog.Stdout, Text: nil},
		{Time: when, Stream: crilog.Stdout, Partial: true, Text: []byte("cut")},
	}
	for _, tt := range []struct {
		prefix    string
		stamps    bool
		out, errs string
	}{
		{"", false, "hello\n\ncut", "oops\n"},
		{"", true, "2026-01-02T03:04:05.000000006Z hello\n2026-01-02T03:04:05.000000006Z \n2026-01-02T03:04:05.000000006Z cut", "2026-01-02T03:04:05.000000006Z oops\n"},
		{"a", false, "[a] hello\n[a] \n[a] cut\n", "[a] oops\n"},
	} {
		var out, errs bytes.Buffer
		s := &logSource{prefix: tt.prefix, printer: &logPrinter{out: &out, err: &errs, stamps: tt.stamps}}
		for _, e := range entries {
			if err := s.entry(e); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
		if out.String() != tt.out || errs.String() != tt.errs {
			t.Errorf("%+v: %q and %q", tt, out.String(), errs.String())
		}
	}
}

func TestManifestFromStandardInput(t *testing.T) {
	c, _, errs := newCLI(nil)
	c.in = strings.NewReader("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {restartPolicy: Always, containers: [{name: c, image: i}]}\n")
	pods, err := c.manifest(t.Context(), "-", &runOptions{name: "b"})
	if err != nil || len(pods) != 1 || pods[0].Name() != "b" {
		t.Fatalf("%v %v", pods, err)
	}
	if want := "kuri: pod b: spec.restartPolicy is ignored: a container that exits is not started again\n"; errs.String() != want {
		t.Errorf("says %q", errs)
	}
	if _, err := c.manifest(t.Context(), filepath.Join(t.TempDir(), "none"), &runOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if uid := newUID(); !uidForm.MatchString(uid) || uid == newUID() {
		t.Errorf("uid %q", uid)
	}
	if code := c.main(context.Background(), []string{"run", "/dev/null"}); code != exitError {
		t.Errorf("an empty manifest: exit code %d", code)
	}
}
