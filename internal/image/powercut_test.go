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

// After a power cut a disk has only the data that had reached it. The disk is a file with a
// filesystem: the test kills the store's process and copies the file before the kernel writes back
// more. In the copy every listed image must be complete. The cut happens at any time, and right
// after a record is renamed into place.
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

// A completed pull or removal is on disk.
func TestPowerCutAfterPullAndRemove(t *testing.T) {
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

// whole asserts that every image of the store is complete and that no record was set aside.
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

// threeImages serves three images that share a layer.
func threeImages(t *testing.T) (refs []string) {
	h := newHub(t)
	shared := layerOf(t, file{"shared", strings.Repeat("s", 300_000)})
	for i := range 3 {
		own := layerOf(t, file{"own", strings.Repeat(fmt.Sprint(i), 100_000)}, file{"more/small", "small"})
		refs = append(refs, h.push(fmt.Sprintf("app:%d", i), imageOf(t, fmt.Sprint(i), shared, own)))
	}
	return refs
}

// nextRecord returns right after a record has been renamed into dir.
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
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil &&
		err != unix.EINTR {
		t.Fatal(err)
	}
}

// newDisk returns a file with an empty filesystem.
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

// cutPower returns a copy of the disk as it is now.
func cutPower(t *testing.T, disk string) string {
	t.Helper()
	after := disk + ".cut"
	if out, err := exec.Command("cp", "--sparse=always", disk, after).CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	return after
}

// mountDisk mounts the filesystem until the test ends.
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
