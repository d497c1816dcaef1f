package image

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/registry"
)

func digestOf(h v1.Hash) digest.Digest { return digest.Digest(h.String()) }

func TestImagesAreThereAfterARestart(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "one", layerOf(t, file{"a", "x"})))
	h.push("app:2", imageOf(t, "two", layerOf(t, file{"a", "y"})))
	root := t.TempDir()
	s := openStore(t, root, func(o *Options) { o.Pinned = []string{ref} })
	pull(t, s, h.addr+"/app:2")
	before := pull(t, s, ref)
	list := s.List()
	if !before.Pinned || s.List()[1].Pinned {
		t.Error("pinned is wrong")
	}

	s = openStore(t, root)
	after, err := s.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	if after.ID != before.ID || after.Size != before.Size || !slices.Equal(after.Digests, before.Digests) ||
		after.Config.User != "7:8" || after.Pinned {
		t.Errorf("%+v, was %+v", after, before)
	}
	if len(list) != 2 || len(s.List()) != 2 || s.List()[0].ID != list[0].ID {
		t.Errorf("%v, was %v", s.List(), list)
	}
	if got := fileIn(t, s, after, "a"); got != "x" {
		t.Errorf("a = %q", got)
	}
}

// Each row damages the files of one image. The store opens with the other image and sets the
// damaged record aside.
func TestDamageAffectsOnlyItsOwnImage(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	bad := h.push("bad:1", imageOf(t, "bad", layerOf(t, file{"a", "bad"})))
	good := h.push("good:1", imageOf(t, "good", layerOf(t, file{"a", "good"})))
	overwrite := func(path func(*Store, digest.Digest) string, body string) func(*testing.T, *Store, *Image) {
		return func(t *testing.T, s *Store, img *Image) {
			if err := os.WriteFile(path(s, digest.Digest(img.ID)), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, damage := range map[string]func(*testing.T, *Store, *Image){
		"record cut off": overwrite((*Store).recordPath, `{"version":1,"da`),
		"record empty":   overwrite((*Store).recordPath, ``),
		"record of another": overwrite((*Store).recordPath,
			`{"version":1,"data":{"id":"sha256:`+strings.Repeat("0", 64)+`"}}`),
		"record nonsense": overwrite((*Store).recordPath, `{"version":1,"data":{"id":"nonsense"}}`),
		"config changed":  overwrite((*Store).blob, `{}`),
		"config gone":     func(t *testing.T, s *Store, img *Image) { os.Remove(s.blob(digest.Digest(img.ID))) },
		"layer gone": func(t *testing.T, s *Store, img *Image) {
			os.RemoveAll(filepath.Join(s.root, "layers", img.DiffIDs[0].Encoded()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := openStore(t, root)
			pull(t, s, good)
			img := pull(t, s, bad)
			damage(t, s, img)

			s = openStore(t, root)
			if len(s.List()) != 1 || s.List()[0].References[0] != good {
				t.Errorf("listed: %+v", s.List())
			}
			if _, err := os.Stat(s.recordPath(digest.Digest(img.ID)) + ".damaged"); err != nil {
				t.Error(err)
			}
			if again := pull(t, s, bad); again.ID != img.ID || fileIn(t, s, again, "a") != "bad" {
				t.Errorf("%+v", again)
			}
		})
	}
}

func TestKilledBetweenTwoRecords(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "old", layerOf(t, file{"a", "old"})))
	root := t.TempDir()
	s := openStore(t, root)
	old := pull(t, s, ref)
	var stale imageRecord
	if err := record.Read(s.recordPath(digest.Digest(old.ID)), recordVersion, &stale); err != nil {
		t.Fatal(err)
	}
	h.push("app:1", imageOf(t, "new", layerOf(t, file{"a", "new"})))
	moved := pull(t, s, ref)
	if err := record.Write(s.recordPath(digest.Digest(old.ID)), recordVersion, stale); err != nil {
		t.Fatal(err)
	}
	for _, junk := range []string{"images/.x.json.123", "images/blobs/sha256/.new-1", "images/blobs/sha256/" +
		strings.Repeat("1", 64)} {
		if err := os.WriteFile(filepath.Join(root, junk), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	s = openStore(t, root)
	if got, err := s.Get(ref); err != nil || got.ID != moved.ID {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := s.Get(old.ID); err != nil || len(got.References) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if left, _ := os.ReadDir(filepath.Join(root, "images/blobs/sha256")); len(left) != 4 {
		t.Errorf("blobs %v", left)
	}
}

func TestLayersHeldByAContainerOutliveTheImage(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "")
	img := pull(t, s, h.push("app:1", imageOf(t, "one", layerOf(t, file{"a", "x"}))))
	release := s.layers.Hold(img.DiffIDs)
	if err := s.Remove(img.ID); err != nil {
		t.Fatal(err)
	}
	if got := fileIn(t, s, img, "a"); got != "x" {
		t.Errorf("a = %q", got)
	}
	release()
	assertEmpty(t, s)
}

func TestAmbiguousPrefixOfAnID(t *testing.T) {
	s := &Store{}
	s.now.Store(newSnapshot([]*Image{{ID: "sha256:abc1" + strings.Repeat("0", 60)},
		{ID: "sha256:abc2" + strings.Repeat("0", 60)}}))
	for _, id := range []string{"abc", "sha256:abc"} {
		if _, err := s.Get(id); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", id, err)
		}
		if err := s.Remove(id); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if img, err := s.Get("abc2"); err != nil || img != s.List()[1] {
		t.Errorf("%v, %v", img, err)
	}
}

func TestUsageMatchesTheDisk(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "")
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	shared := layerOf(t, file{"shared", string(random)}, file{"d/", ""}, file{"d/small", "x"})
	one := pull(t, s, h.push("app:1", imageOf(t, "one", shared)))
	pull(t, s, h.push("app:2", imageOf(t, "two", shared, layerOf(t, file{"b", "y"}))))
	if one.Size < 1<<20 || one.Size > 1<<20+64<<10 {
		t.Errorf("size %d", one.Size)
	}
	check := func() {
		t.Helper()
		var want Usage
		for _, dir := range []string{"images", "layers"} {
			filepath.WalkDir(filepath.Join(s.root, dir), func(path string, d fs.DirEntry, err error) error {
				if path != filepath.Join(s.root, "layers") {
					info, _ := d.Info()
					want.Bytes += uint64(info.Sys().(*syscall.Stat_t).Blocks) * 512
					want.Inodes++
				}
				return err
			})
		}
		want.Path = s.root
		if got, err := s.Usage(t.Context()); err != nil || got != want {
			t.Errorf("usage %+v, %v; measured %+v", got, err, want)
		}
	}
	check()
	s.Remove(one.ID)
	check()
}

func TestFullDiskGivesItsSpaceBack(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	h := newHub(t)
	random := make([]byte, 4<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	s := openStore(t, root)
	ref := h.push("app:1", imageOf(t, "one", layerOf(t, file{"small", "x"}), layerOf(t, file{"big", string(random)})))
	if _, err := s.Pull(t.Context(), ref, registry.Auth{}); !errors.Is(err, fault.Exhausted) ||
		!strings.Contains(err.Error(), "remove images") {
		t.Errorf("%v", err)
	}
	assertEmpty(t, s)
	pull(t, s, h.push("app:2", imageOf(t, "two", layerOf(t, file{"small", "x"}))))
}

// An image is pulled again from another repository, and its record cannot be written: it keeps its
// names.
func TestImageKeepsItsNamesWhenItsRecordCannotBeWritten(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	img := imageOf(t, "one", layerOf(t, file{"a", "x"}))
	ref, again := h.push("app:1", img), h.push("other:1", img)
	s := openStore(t, t.TempDir())
	before := pull(t, s, ref)

	path := s.recordPath(digest.Digest(before.ID))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), again, registry.Auth{}); err == nil {
		t.Fatal("pulled, without a record")
	}
	pull(t, s, h.push("app:2", imageOf(t, "two", layerOf(t, file{"b", "y"})))) // publishes
	if after, err := s.Get(ref); err != nil || !slices.Equal(after.References, before.References) ||
		!slices.Equal(after.Digests, before.Digests) {
		t.Errorf("was %+v, is %+v, %v", before, after, err)
	}

	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if after := pull(t, s, again); after.ID != before.ID || len(after.References) != 2 {
		t.Errorf("%+v", after)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "one", layerOf(t, file{"a", "x"})))
	reached := make(chan struct{}, 10)
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			reached <- struct{}{}
			<-r.Context().Done()
			return true
		}
		return false
	})
	s := openStore(t, "")
	told, err := s.WatchPull(context.Background(), "busybox", "")
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := s.Pull(context.Background(), ref, registry.Auth{})
		failed <- err
	}()
	<-reached
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("Close hangs")
	}
	if err := <-failed; !errors.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
	if _, open := <-told; open {
		t.Error("a watcher was told something")
	}
	assertNoTempFiles(t, s)
}
