package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// quotaDisk mounts an ext4 filesystem with project quotas. It skips the test if the kernel does not
// support them.
func quotaDisk(t *testing.T) string {
	t.Helper()
	exec.Command("modprobe", "quota_v2").Run() // the format of ext4's quotas; built in, a module, or missing
	return quotaDiskOf(t, "256M", "CONFIG_QFMT_V2", "mkfs.ext4", "-q", "-O", "project,quota", "-E",
		"lazy_itable_init=1,lazy_journal_init=1")
}

// quotaDiskOf mounts a filesystem with project quotas, of the given size and made by the command
// mkfs. It skips the test if that is not installed or the kernel cannot mount the result.
func quotaDiskOf(t *testing.T, size, needs string, mkfs ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a filesystem")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("SKIP: no %s", mkfs[0])
	}
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, command := range [][]string{{"truncate", "-s", size, image}, append(mkfs, image)} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
	if out, err := exec.Command("mount", "-o", "loop,prjquota", image, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIP: this kernel does not mount what %s makes with project quotas (%s); make test-vm has it: %s", mkfs[0],
			needs, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the disk: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// projects lists the projects of a filesystem that have a limit or use space, except project 0, the default.
func projects(t *testing.T, dir string) []uint32 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []uint32
	const getNextQuota, projectQuota = 0x800009, 2
	for next := uint32(1); ; next++ {
		var q struct { // struct if_nextdqblk
			blocksHard, blocksSoft, space, inodesHard, inodesSoft, inodes, blocksTime, inodesTime uint64
			valid, id                                                                             uint32
		}
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), getNextQuota<<8|projectQuota, uintptr(next),
			uintptr(unsafe.Pointer(&q)), 0, 0)
		if errno == unix.ENOENT || errno == unix.ESRCH {
			return out
		}
		if errno != 0 {
			t.Fatalf("list the projects: %v", errno)
		}
		if q.blocksHard|q.inodesHard|q.space|q.inodes != 0 {
			out = append(out, q.id)
		}
		next = q.id
	}
}

// wantProjects waits until a filesystem has n projects: xfs counts removed files for a moment longer.
func wantProjects(t *testing.T, dir, when string, n int) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, fmt.Sprintf("%d projects %s", n, when), func() error {
		if there := projects(t, dir); len(there) != n {
			return fmt.Errorf("there are %v", there)
		}
		return nil
	})
}

func TestWritableLayerQuota(t *testing.T) { limitsWritableLayers(t, quotaDisk(t)) }

func TestWritableLayerQuotaOnXFS(t *testing.T) {
	exec.Command("modprobe", "xfs").Run() // a mount inside a cell does not load the module
	limitsWritableLayers(t, quotaDiskOf(t, "320M", "CONFIG_XFS_QUOTA", "mkfs.xfs", "-q"))
}

// limitsWritableLayers is the story of containers whose writable layers have limits, on a
// filesystem with project quotas.
func limitsWritableLayers(t *testing.T, disk string) {
	s := &shell{Daemon: harness.Start(t, harness.Options{Dir: disk, Config: "[pod]\nwritable_layer_bytes = 16777216\n"}),
		podConfig: harness.Pod("quota")}
	s.image = s.PullBusybox(t)
	s.podConfig.Annotations = map[string]string{
		"kuri-cri.io/writable-layer":    "inodes=300",
		"writable-layer.kuri-cri.io/c1": "bytes=4Mi",
		"writable-layer.kuri-cri.io/c9": "bytes=17Mi",
	}
	s.pod = s.RunPod(t, s.podConfig)
	small := s.run(t, nil, "sleep", "1000") // c1
	large := s.run(t, nil, "sleep", "1000") // c2: as configured

	write := func(id, path string, mib int) (ok bool, said string) {
		_, stderr, code := s.Exec(t, id, "dd", "if=/dev/zero", "of="+path, "bs=1M", fmt.Sprint("count=", mib), "conv=fsync")
		return code == 0, stderr
	}
	if ok, said := write(small, "/big", 8); ok || !strings.Contains(said, "quota exceeded") && !strings.Contains(said,
		"No space") {
		t.Errorf("8 MiB within 4: %v %s", ok, said)
	}
	if ok, said := write(large, "/big", 8); !ok {
		t.Errorf("another container cannot write 8 MiB within 16: %s", said)
	}
	if ok, _ := write(large, "/more", 12); ok {
		t.Error("8 and 12 MiB within 16")
	}
	// Space freed by a removal can be used again. /dev/shm and volumes do not count.
	s.Output(t, small, "rm", "/big")
	if ok, said := write(small, "/big", 3); !ok {
		t.Errorf("3 MiB within 4, after 8 failed and were removed: %s", said)
	}
	if ok, said := write(small, "/dev/shm/big", 8); !ok {
		t.Errorf("8 MiB of /dev/shm: %s", said)
	}
	// Files copied up from the image count too, and can be moved between directories of both.
	s.Output(t, large, "sh", "-c",
		"rm /big /more; mkdir /d && touch /etc/passwd && mv /etc/passwd /d/ && mv /d /var/www/ && cat /var/www/d/passwd >/dev/null")
	if out := s.Output(t, small, "sh", "-c",
		"mkdir /many; i=0; while [ $i -lt 400 ] && true 2>/dev/null >/many/$i; do i=$((i+1)); done; echo $i"); strings.TrimSpace(out) == "400" {
		t.Error("400 files within 300 inodes")
	}

	t.Run("stats", func(t *testing.T) {
		resp, err := s.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: small})
		if err != nil {
			t.Fatal(err)
		}
		if u := resp.Stats.WritableLayer; u.UsedBytes.Value < 3<<20 || u.UsedBytes.Value > 4<<20 ||
			u.InodesUsed.Value < 250 || u.InodesUsed.Value > 300 {
			t.Errorf("the writable layer has %d bytes and %d inodes", u.UsedBytes.Value, u.InodesUsed.Value)
		}
	})
	t.Run("across a restart", func(t *testing.T) {
		s.Kill9(t)
		s.Continue(t)
		if ok, _ := write(small, "/dev/../big2", 8); ok {
			t.Error("8 MiB within 4")
		}
		wantProjects(t, disk, "for 2 containers", 2)
	})
	t.Run("given back", func(t *testing.T) {
		for _, id := range []string{small, large} {
			if _, err := s.Runtime.RemoveContainer(t.Context(),
				&runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
		}
		wantProjects(t, disk, "when the containers are gone", 0)
	})
	t.Run("refused", func(t *testing.T) {
		s.count = 8
		harness.WantError(t, s.refuses(t, nil, "true"), codes.InvalidArgument, "writable-layer.kuri-cri.io/c9",
			"16777216 at most")
		wantProjects(t, disk, "of a container that was refused", 0)
	})
	t.Run("given back after a crash", func(t *testing.T) {
		created := make(chan struct{})
		for i := range 20 {
			c := s.config(nil, "sleep", "1000")
			go func() {
				s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod, Config: c,
					SandboxConfig: s.podConfig})
				created <- struct{}{}
			}()
			if i == 10 {
				time.Sleep(100 * time.Millisecond) // while containers are being created
			}
		}
		s.Kill9(t)
		for range 20 {
			<-created
		}
		s.Continue(t)
		list, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		wantProjects(t, disk, "of the containers that are listed", len(list.Containers))
		s.RemovePod(t, s.pod)
		wantProjects(t, disk, "of a pod that is gone", 0)
	})
}

// The quotas of the container_root's filesystem apply. That of the root needs none.
func TestWritableLayerQuotaOfContainerRoot(t *testing.T) {
	disk := quotaDisk(t)
	s := newShell(t, harness.Options{Config: fmt.Sprintf("container_root = %q\n[pod]\nwritable_layer_bytes = 4194304\n",
		disk)})
	id := s.run(t, nil, "sleep", "1000")
	write := func() bool {
		_, _, code := s.Exec(t, id, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=8", "conv=fsync")
		return code == 0
	}
	if write() {
		t.Error("8 MiB within 4")
	}
	s.Kill9(t)
	s.Continue(t)
	if write() {
		t.Error("8 MiB within 4, after a restart")
	}
	wantProjects(t, disk, "for 1 container", 1)

	// The project of an orphan is released with it: a container that has exited and whose record
	// and its copy are lost.
	s.StopContainer(t, id, 0)
	s.Stop(t)
	pod := filepath.Join(s.Root, "pods", s.pod)
	if err := os.Rename(filepath.Join(pod, "containers", id), filepath.Join(s.Dir, "away")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.State, "pods", s.pod, "containers", id)); err != nil {
		t.Fatal(err)
	}
	s.Continue(t)
	wantProjects(t, disk, "of an orphan that was swept", 0)
	s.RemovePod(t, s.pod)
	if entries, err := os.ReadDir(filepath.Join(disk, "containers")); err != nil || len(entries) > 0 {
		t.Errorf("writable layers that are left: %v, %v", entries, err)
	}
}

// On a filesystem without quotas, a request with a quota is an error that says what to do, and
// nothing is left behind.
func TestWritableLayerQuotaIsMissing(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Skipf("SKIP: needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	s := &shell{Daemon: harness.Start(t, harness.Options{Dir: dir}), podConfig: harness.Pod("no-quota")}
	s.image = s.PullBusybox(t)
	s.podConfig.Annotations = map[string]string{"writable-layer.kuri-cri.io/c1": "bytes=4Mi"}
	s.pod = s.RunPod(t, s.podConfig)
	harness.WantError(t, s.refuses(t, nil, "true"), codes.Unimplemented, "writable layer", "tmpfs", "prjquota")
	if out := s.says(t, nil, "echo", "unlimited"); out != "unlimited\n" {
		t.Errorf("a container that asks for no limit says %q", out)
	}
	list, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 1 {
		t.Errorf("containers after a refusal: %v, %v", list, err)
	}

	config := harness.Write(t, dir, "limited.toml",
		fmt.Sprintf("root = %q\nstate = %q\n[pod]\nwritable_layer_inodes = 1000\n", filepath.Join(dir, "r"),
			filepath.Join(dir, "s")))
	said, code := harness.RunKurid(t, "--config", config)
	if code == 0 || !strings.Contains(said, "pod.writable_layer_inodes") || !strings.Contains(said, "prjquota") {
		t.Errorf("kurid with a limit by configuration exits %d and says %s", code, said)
	}
}
