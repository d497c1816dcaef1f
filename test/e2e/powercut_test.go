package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// recorder is a disk that logs every write in the order in which it becomes durable, with the device mapper's
// log-writes. (A power cut loses the disk's cache, but not writes that were flushed.)
type recorder struct {
	log string // the path of the log, once the recorder is closed
	dir string // the mount point of its filesystem
	dm  string // its device mapper name
}

const recorderSize = 192 << 20

// record creates a recorder with an ext4 filesystem. It skips the test if the kernel does not
// support it or dmsetup is missing.
func record(t *testing.T) *recorder {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make disks")
	}
	exec.Command("modprobe", "dm-log-writes").Run() // may be loaded already, or built in
	targets, err := exec.Command("dmsetup", "targets").CombinedOutput()
	if err != nil || !strings.Contains(string(targets), "log-writes") {
		t.Skip("SKIP: no dmsetup, or no dm-log-writes in this kernel, to record a disk with; make test-vm has both")
	}
	work := t.TempDir()
	r := &recorder{log: filepath.Join(work, "log"), dir: filepath.Join(work, "mnt")}
	sparse(t, r.log, 2<<30)
	disk := filepath.Join(work, "disk")
	sparse(t, disk, recorderSize)
	r.dm = fmt.Sprintf("kuri-test-%d", os.Getpid())
	do(t, "dmsetup", "create", "--noudevsync", r.dm, "--table",
		fmt.Sprintf("0 %d log-writes %s %s", recorderSize/512, loop(t, disk), loop(t, r.log)))
	t.Cleanup(func() { exec.Command("dmsetup", "remove", "--noudevsync", r.dm).Run() }) // unless close has done so
	// The kernel's own name of the device: any other name needs udev.
	dev := "/dev/dm-" + strings.TrimSpace(do(t, "dmsetup", "info", "--columns", "--noheadings", "-o", "minor", r.dm))
	do(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", dev)
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	do(t, "mount", dev, r.dir)
	t.Cleanup(func() { unix.Unmount(r.dir, 0) }) // unless close has done so
	r.mark(t, "made")
	return r
}

func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// loop attaches a file as a disk until the end of the test.
func loop(t *testing.T, path string) string {
	t.Helper()
	dev := strings.TrimSpace(do(t, "losetup", "--find", "--show", path))
	t.Cleanup(func() { do(t, "losetup", "--detach", dev) })
	return dev
}

func do(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// mark writes a name, of one word, into the log. [recorder.close] returns its position.
func (r *recorder) mark(t *testing.T, name string) {
	t.Helper()
	do(t, "dmsetup", "message", r.dm, "0", "mark", name)
}

// written is an entry of the log.
type written struct {
	at, size int64 // on the disk, in bytes
	data     int64 // offset in the log
	flushed  bool  // all earlier writes are durable
	mark     string
}

// close removes the disk and reads its log: struct log_write_super and log_write_entry of
// drivers/md/dm-log-writes.c.
func (r *recorder) close(t *testing.T) []written {
	t.Helper()
	do(t, "umount", r.dir)
	do(t, "dmsetup", "remove", "--noudevsync", r.dm)
	f, err := os.Open(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var super struct {
		Magic, Version, Entries uint64
		SectorSize              uint32
	}
	if err := binary.Read(f, binary.LittleEndian, &super); err != nil || super.Magic != 0x6a736677736872 ||
		super.Version != 1 {
		t.Fatalf("the log of the disk begins with %+v, %v", super, err)
	}
	const flush, fua, discard, mark = 1 << 0, 1 << 1, 1 << 2, 1 << 3
	sector := int64(super.SectorSize)
	log := make([]written, super.Entries)
	at := sector
	for i := range log {
		var e struct{ Sector, Sectors, Flags, Length uint64 }
		head := make([]byte, sector)
		if _, err := f.ReadAt(head, at); err != nil {
			t.Fatal(err)
		}
		if _, err := binary.Decode(head, binary.LittleEndian, &e); err != nil {
			t.Fatal(err)
		}
		at += sector
		log[i] = written{at: int64(e.Sector) * sector, size: int64(e.Sectors) * sector, data: at,
			flushed: e.Flags&(flush|fua) != 0}
		switch {
		case e.Flags&discard != 0:
			log[i].size = 0
		case e.Flags&mark != 0:
			log[i].mark = string(head[binary.Size(e):][:e.Length])
		default:
			at += log[i].size
		}
	}
	return log
}

// cut creates a disk as a power cut after the first n writes may leave it: with all flushed writes
// and a random selection of the later ones.
func (r *recorder) cut(t *testing.T, log []written, n int, chance *rand.Rand) (disk string) {
	t.Helper()
	disk = filepath.Join(t.TempDir(), "disk")
	sparse(t, disk, recorderSize)
	from, err := os.Open(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	sure := n
	for sure > 0 && !log[sure-1].flushed {
		sure--
	}
	for i, w := range log[:n] {
		if i >= sure && chance.IntN(2) == 0 {
			continue
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, w.at), io.NewSectionReader(from, w.data, w.size)); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

// storedImage is an image of the test's own with the contents of its files by layer.
type storedImage struct {
	ref    string
	layers map[string]map[string][]byte // by the encoded diffID, by path
}

// manyFiles creates an image whose layers have some files each. Layers with the same seed are identical.
func manyFiles(t *testing.T, registry *harness.Registry, repository string, seeds ...uint64) storedImage {
	t.Helper()
	out := storedImage{layers: map[string]map[string][]byte{}}
	var layers []v1.Layer
	for _, seed := range seeds {
		chance := rand.NewChaCha8([32]byte{byte(seed)})
		files, says := []image.File{}, map[string][]byte{}
		for i := range 40 {
			data := make([]byte, 100+i*1500)
			chance.Read(data)
			path := fmt.Sprintf("/of-%d/dir-%d/file-%d", seed, i%7, i)
			files, says[path] = append(files, image.File{Path: path, Data: data}), data
		}
		layer, err := image.Layer(files...)
		if err != nil {
			t.Fatal(err)
		}
		diffID, err := layer.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		layers, out.layers[diffID.Hex] = append(layers, layer), says
	}
	img, err := image.WithLayers(v1.Config{Cmd: []string{"true"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	out.ref = registry.Push(t, repository, img)
	return out
}

// missing returns the name of a file that is not on the disk with the image's content, or "".
func (i storedImage) missing(root string) string {
	for layer, files := range i.layers {
		for path, want := range files {
			got, err := os.ReadFile(filepath.Join(root, "layers", layer, "fs", path))
			if err != nil || !bytes.Equal(got, want) {
				return fmt.Sprintf("%s of layer %.12s: %d bytes of %d, %v", path, layer, len(got), len(want), err)
			}
		}
	}
	return ""
}

// After a power cut at any point of pulls and removals, each listed image has all its files, and
// each image whose pull was answered is listed.
func TestPowerCut(t *testing.T) {
	disk := record(t)
	registry := harness.NewRegistry(t)
	one, two := manyFiles(t, registry, "one:1", 1, 2, 3), manyFiles(t, registry, "two:1", 3, 4)
	images := []storedImage{one, two}

	// 1. The operations before the power cut, with a mark in the log after each response.
	t.Run("recorded", func(t *testing.T) {
		d := harness.Start(t, harness.Options{Dir: disk.dir, NoPods: true})
		for _, step := range []struct {
			mark string
			do   func() error
		}{
			{"pulled-one", func() error { d.Pull(t, one.ref); return nil }},
			{"pulled-two", func() error { d.Pull(t, two.ref); return nil }},
			{"removed-one", func() error {
				_, err := d.Images.RemoveImage(t.Context(),
					&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: one.ref}})
				return err
			}},
			{"pulled-one-again", func() error { d.Pull(t, one.ref); return nil }},
		} {
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.mark, err)
			}
			disk.mark(t, step.mark)
		}
	})
	if t.Failed() {
		return
	}
	log := disk.close(t)
	when := map[string]int{}
	for i, w := range log {
		if w.mark != "" {
			when[w.mark] = i
		}
	}
	t.Logf("%d writes, with marks %v", len(log), when)

	// 2. The points: some between every two marks, including the last writes before a response, and the end.
	var points []int
	marks := []string{"made", "pulled-one", "pulled-two", "removed-one", "pulled-one-again"}
	for i := range marks[1:] {
		from, to := when[marks[i]], when[marks[i+1]]
		points = append(points, from+1+(to-from)/3, from+1+(to-from)*2/3, to-2)
	}
	points = append(points, when["pulled-one-again"]+1)
	chance := rand.New(rand.NewPCG(1, 2))
	seen := map[int]int{} // points, by the number of images present
	for _, n := range points {
		t.Run(fmt.Sprintf("after %d writes", n), func(t *testing.T) {
			seen[disk.survives(t, log, n, when, images, chance)]++
		})
	}
	t.Logf("points by the number of images that were there: %v", seen)
	if !t.Failed() && (seen[0] == 0 || seen[1] == 0 || seen[2] == 0) {
		t.Errorf("the power was cut at %d points, and never with none, one or two images on the disk: %v", len(points), seen)
	}
}

// anotherBoot makes the layers below dir those of an earlier boot, as they are after a power cut. kurid
// removes such layers unless an image has them: their files may not have reached the disk.
func anotherBoot(t *testing.T, dir string) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(dir, "*", "layers", "*", "layer.json"))
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	const other = "00000000-0000-0000-0000-000000000000"
	for _, path := range records {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.ReplaceAll(body, bytes.TrimSpace(boot), []byte(other))
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// survives cuts the power after n writes and returns the number of images present, all of which
// must be complete.
func (r *recorder) survives(t *testing.T, log []written, n int, when map[string]int, images []storedImage,
	chance *rand.Rand) (there int) {
	dev, dir := loop(t, r.cut(t, log, n, chance)), t.TempDir()
	do(t, "mount", dev, dir)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the disk: %v", err)
		}
	})
	anotherBoot(t, dir)
	d := harness.Start(t, harness.Options{Dir: dir, NoPods: true})
	listed := map[string]bool{}
	resp, err := d.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range resp.Images {
		for _, tag := range i.RepoTags {
			listed[tag] = true
		}
	}
	for _, i := range images {
		if listed[i.ref] {
			there++
			if what := i.missing(d.Root); what != "" {
				t.Errorf("%s is listed, and not whole: %s", i.ref, what)
			}
		}
	}
	if said, stderr, code := d.Kuri(t, "check", "--images"); code != 0 {
		t.Errorf("kuri check --images exits %d: %s%s", code, said, stderr)
	}

	// A response means that the result is durable.
	one, two := images[0].ref, images[1].ref
	switch {
	case n > when["pulled-two"] && !listed[two]:
		t.Errorf("%s had been pulled, and is gone", two)
	case n > when["pulled-one"] && n <= when["pulled-two"] && !listed[one], n > when["pulled-one-again"] && !listed[one]:
		t.Errorf("%s had been pulled, and is gone", one)
	}
	// The next pull repairs incomplete images.
	for _, i := range images {
		d.Pull(t, i.ref)
		if what := i.missing(d.Root); what != "" {
			t.Errorf("%s was pulled, and is not whole: %s", i.ref, what)
		}
	}
	return there
}
