package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is on a disk when the power goes is what had reached it. Here the disk is a file with a filesystem in it: the
// store's process is killed, and the file copied before the kernel writes back anything more. In the copy, every image
// that is listed must be whole.
func TestPowerCut(t *testing.T) {
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
	root := mountDisk(t, disk)
	h := newHub(t)
	shared := layerOf(t, file{"shared", strings.Repeat("s", 300_000)})
	var refs []string
	for i := range 3 {
		own := layerOf(t, file{"own", strings.Repeat(fmt.Sprint(i), 100_000)}, file{"more/small", "small"})
		refs = append(refs, h.push(fmt.Sprintf("app:%d", i), imageOf(t, fmt.Sprint(i), shared, own)))
	}
	images := 0
	for cut := range 15 {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), childRoot+"="+filepath.Join(root, "kuri"), childRefs+"="+strings.Join(refs, " "))
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
		time.Sleep(time.Duration(cut*cut) * 2 * time.Millisecond)
		child.Process.Kill()
		child.Wait()
		after := disk + ".cut"
		if out, err := exec.Command("cp", "--sparse=always", disk, after).CombinedOutput(); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			s := openStore(t, filepath.Join(mountDisk(t, after), "kuri"))
			for _, img := range s.List() {
				images++
				if got := fileIn(t, s, img, "own"); got != strings.Repeat(img.Config.Cmd[0], 100_000) {
					t.Errorf("image %v is not whole", img.References)
				}
			}
			for _, f := range check(t, s, false) {
				if !strings.HasPrefix(f.Problem.Error(), "the image could not be read at start") { // an image that is not listed
					t.Errorf("%+v", f)
				}
			}
			for _, ref := range refs {
				pull(t, s, ref)
			}
		})
	}
	if images == 0 {
		t.Error("no image was ever there")
	}
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
