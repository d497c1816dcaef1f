package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"google.golang.org/grpc/codes"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// noise returns n bytes that do not compress, the same bytes each time.
func noise(n int) []byte {
	b := make([]byte, n)
	seed := uint32(1)
	for i := range b {
		seed = seed*1664525 + 1013904223
		b[i] = byte(seed >> 24)
	}
	return b
}

// A pull onto a full disk says so and frees its space.
func TestFullDisk(t *testing.T) {
	dir, err := os.MkdirTemp("", "kuri-full")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=6m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(root, 0); err != nil {
				t.Errorf("something still uses the daemon's root: %v", err)
			}
		})
	}
	d := harness.Start(t, harness.Options{Dir: dir})
	big, err := image.New(v1.Config{}, image.File{Path: "/big", Data: noise(16 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	free := func() uint64 {
		var s syscall.Statfs_t
		if err := syscall.Statfs(root, &s); err != nil {
			t.Fatal(err)
		}
		return s.Bavail * uint64(s.Bsize)
	}
	before := free()
	_, err = pull(t, d, d.Registry.Push(t, "big:1", big), nil)
	harness.WantError(t, err, codes.ResourceExhausted, "space")
	if left := layers(t, d); len(left) > 0 {
		t.Errorf("layers are left: %v", left)
	}
	if after := free(); after+256<<10 < before {
		t.Errorf("%d bytes were free, now %d are", before, after)
	}
	if _, err := pull(t, d, d.Registry.Push(t, "busybox:1", harness.Busybox(t)), nil); err != nil {
		t.Errorf("a smaller image does not fit any more: %v", err)
	}
}

// smallDisk mounts an ext4 filesystem of 64 MiB with 2048 inodes on a loop device. It skips the
// test if that is not possible.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, to mount a filesystem")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIP: no mkfs.ext4")
	}
	file, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, command := range [][]string{{"truncate", "-s", "64M", file},
		{"mkfs.ext4", "-q", "-N", "2048", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", file}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
	if out, err := exec.Command("mount", "-o", "loop", file, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIP: no ext4 on a loop device here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("something still uses the daemon's root: %v", err)
		}
		if out, err := exec.Command("e2fsck", "-fn", file).CombinedOutput(); err != nil {
			t.Errorf("the filesystem is damaged: %v: %s", err, out)
		}
	})
	return dir
}

// The same on ext4, which allocates blocks late and also runs out of inodes: the existing images
// stay complete and can be run, and the pull succeeds when there is space again.
func TestFullDiskOfExt4(t *testing.T) {
	root := smallDisk(t)
	dir := t.TempDir()
	if err := os.Symlink(root, filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.Options{Dir: dir})
	used := func() (bytes, inodes int64) {
		t.Helper()
		var s syscall.Statfs_t
		if err := syscall.Statfs(root, &s); err != nil {
			t.Fatal(err)
		}
		return int64(s.Blocks-s.Bfree) * s.Bsize, int64(s.Files - s.Ffree)
	}
	busybox := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	d.Pull(t, busybox)
	there := layers(t, d)
	many := make([]image.File, 1500)
	for n := range many {
		many[n] = image.File{Path: fmt.Sprintf("/f%d", n), Data: []byte("x")}
	}
	for _, test := range []struct {
		name  string
		files []image.File
		says  []string
		fill  func(t *testing.T) // uses so much space that the image no longer fits
	}{
		{"bytes", []image.File{{Path: "/big", Data: noise(24 << 20)}},
			[]string{"no space left on device", "free space on the filesystem of "}, func(t *testing.T) {
				if err := os.WriteFile(filepath.Join(root, "ballast"), noise(38<<20), 0o600); err != nil {
					t.Fatal(err)
				}
			}},
		{"inodes", many, []string{"all 2048 inodes of the filesystem of ", "in use"}, func(t *testing.T) {
			if err := os.Mkdir(filepath.Join(root, "ballast"), 0o700); err != nil {
				t.Fatal(err)
			}
			for n := range 700 {
				harness.Write(t, root, fmt.Sprintf("ballast/%d", n), "")
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			small, err := image.New(v1.Config{}, image.File{Path: "/small", Data: []byte(test.name)})
			if err != nil {
				t.Fatal(err)
			}
			content, err := image.New(v1.Config{}, test.files...)
			if err != nil {
				t.Fatal(err)
			}
			more, err := small.Layers()
			if err != nil {
				t.Fatal(err)
			}
			if content, err = mutate.AppendLayers(content, more...); err != nil { // one layer fits, one does not
				t.Fatal(err)
			}
			ref := d.Registry.Push(t, test.name+":1", content)
			test.fill(t)
			syscall.Sync()
			bytes, inodes := used()
			for range 2 {
				_, err = pull(t, d, ref, nil)
				harness.WantError(t, err, codes.ResourceExhausted, test.says...)
			}
			if left := layers(t, d); !slices.Equal(left, there) {
				t.Errorf("there were the layers %v, now there are %v", there, left)
			}
			syscall.Sync()
			if b, i := used(); b > bytes+64<<10 || i > inodes {
				t.Errorf("%d bytes and %d inodes were in use, now %d and %d are", bytes, inodes, b, i)
			}
			if out, errs, code := d.Kuri(t, "check", "--images"); code != 0 {
				t.Errorf("kuri check exits %d: %s%s", code, out, errs)
			}
			pod, id := d.RunAlone(t, "app-"+test.name, busybox, "sleep", "1000")
			if out := d.Output(t, id, "echo", "works"); out != "works\n" {
				t.Errorf("a container of another image says %q", out)
			}
			d.RemovePod(t, pod)

			if err := os.RemoveAll(filepath.Join(root, "ballast")); err != nil {
				t.Fatal(err)
			}
			d.Pull(t, ref)
			if out, errs, code := d.Kuri(t, "check", "--images"); code != 0 {
				t.Errorf("with room again, kuri check exits %d: %s%s", code, out, errs)
			}
			if out, errs, code := d.Kuri(t, "rmi", "--force", ref); code != 0 {
				t.Errorf("kuri rmi exits %d: %s%s", code, out, errs)
			}
		})
	}
}
