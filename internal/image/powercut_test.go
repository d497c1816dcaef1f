package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is on a disk when the power goes is what had reached it. Here the disk is a file with a filesystem in it: the
// store's process is killed, and the file copied before the kernel writes back anything more. In the copy, every image
// that is listed must be whole. The power goes at any time, and the moment that a record comes into its place.
func TestPowerCut(t *testing.T) {
	disk, refs := newDisk(t), threeImages(t)
	root := filepath.Join(mountDisk(t, disk), "kuri")
	images := 0
	for cut := range 20 {
		atRecord := cut >= 12
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), childRoot+"="+root, childRefs+"="+strings.Join(refs, " "))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 10)); err != nil {
			t.Fatalf("the child did not start: %v", err)
		}
		if atRecord {
			nextRecord(t, filepath.Join(root, "images"))
		} else {
			time.Sleep(time.Duration(cut*cut) * 2 * time.Millisecond)
		}
		child.Process.Kill()
		child.Wait()
		after := cutPower(t, disk)
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			s := openStore(t, filepath.Join(mountDisk(t, after), "kuri"))
			images += len(s.List())
			whole(t, s)
			for _, ref := range refs {
				pull(t, s, ref)
			}
		})
	}
	if images == 0 {
		t.Error("no image was ever there")
	}
}

// What a pull or a removal has returned for is on the disk.
func TestPowerCutAfterAVerb(t *testing.T) {
	disk, refs := newDisk(t), threeImages(t)
	root := filepath.Join(mountDisk(t, disk), "kuri")
	s := openStore(t, root)
	look := func(when string, want ...string) {
		t.Helper()
		after := cutPower(t, disk)
		t.Run(when, func(t *testing.T) {
			s := openStore(t, filepath.Join(mountDisk(t, after), "kuri"))
			var got []string
			for _, img := range s.List() {
				got = append(got, img.References...)
			}
			got = slices.DeleteFunc(got, func(ref string) bool { return strings.Contains(ref, "@") })
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("the images are %v, want %v", got, want)
			}
			whole(t, s)
		})
	}
	pull(t, s, refs[0])
	look("the first image", refs[0])
	pull(t, s, refs[1])
	look("one with a layer that was there", refs[0], refs[1])
	if err := s.Remove(refs[0]); err != nil {
		t.Fatal(err)
	}
	look("one removed", refs[1])
	pull(t, s, refs[0])
	look("and pulled again", refs[0], refs[1])
}

// whole wants every image of the store to be whole, and no record to have been set aside.
func whole(t *testing.T, s *Store) {
	t.Helper()
	for _, img := range s.List() {
		if got := fileIn(t, s, img, "own"); got != strings.Repeat(img.Config.Cmd[0], 100_000) {
			t.Errorf("image %v is not whole", img.References)
		}
	}
	for _, f := range check(t, s, false) {
		t.Errorf("%+v", f)
	}
}

// threeImages serves images that have a layer in common.
func threeImages(t *testing.T) (refs []string) {
	h := newHub(t)
	shared := layerOf(t, file{"shared", strings.Repeat("s", 300_000)})
	for i := range 3 {
		own := layerOf(t, file{"own", strings.Repeat(fmt.Sprint(i), 100_000)}, file{"more/small", "small"})
		refs = append(refs, h.push(fmt.Sprintf("app:%d", i), imageOf(t, fmt.Sprint(i), shared, own)))
	}
	return refs
}

// nextRecord returns the moment after a record has come into its place in dir.
func nextRecord(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil && err != unix.EINTR {
		t.Fatal(err)
	}
}

// newDisk makes a disk with an empty filesystem.
func newDisk(t *testing.T) string {
	t.Helper()
	needRoot(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", disk).CombinedOutput(); err != nil {
		t.Skipf("no ext4 can be made here: %v, %s", err, out)
	}
	return disk
}

// cutPower copies what has reached the disk.
func cutPower(t *testing.T, disk string) string {
	t.Helper()
	after := disk + ".cut"
	if out, err := exec.Command("cp", "--sparse=always", disk, after).CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	return after
}

// mountDisk mounts the filesystem in the file until the test ends.
func mountDisk(t *testing.T, disk string) string {
	t.Helper()
	at := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", disk, at).CombinedOutput(); err != nil {
		t.Skipf("no loop device here: %v, %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v, %s", err, out)
		}
	})
	return at
}
