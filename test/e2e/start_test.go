package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// fill uses up all bytes and inodes of a filesystem, and returns a function that frees them.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	if err := os.MkdirAll(ballast, 0o700); err != nil {
		t.Fatal(err)
	}
	block := noise(1 << 20)
	n := 0
	for size := len(block); size > 0; size /= 4 {
		for ; ; n++ {
			if err := os.WriteFile(filepath.Join(ballast, fmt.Sprint(n)), block[:size], 0o600); err != nil {
				break
			}
		}
	}
	if err := os.WriteFile(filepath.Join(ballast, "more"), block[:4096], 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	return func() {
		if err := os.RemoveAll(ballast); err != nil {
			t.Error(err)
		}
	}
}

// systemd restarts kurid almost at once. A kurid that cannot start exits after a second, so that the
// restarts do not use up a processor.
func TestFailedStartOfUnit(t *testing.T) {
	file := harness.Write(t, t.TempDir(), "file", "")
	for name, flags := range map[string][]string{
		"configuration": {"--config", file + "/config.toml"},
		"state":         {"--state", file + "/state", "--root", file + "/root"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", file)
			began := time.Now()
			said, code := harness.RunKurid(t, flags...)
			if took := time.Since(began); code == 0 || took < time.Second {
				t.Errorf("exit code %d after %v:\n%s", code, took, said)
			}
		})
	}
}

// A daemon starts although the disk of its root is full. Containers keep running and can be
// inspected, stopped and removed, and removing images frees space.
func TestStartWithFullRoot(t *testing.T) {
	for name, disk := range map[string]func(t *testing.T) string{"ext4": smallDisk, "tmpfs": smallTmpfs} {
		t.Run(name, func(t *testing.T) {
			root, dir := disk(t), t.TempDir()
			if err := os.Symlink(root, filepath.Join(dir, "root")); err != nil {
				t.Fatal(err)
			}
			d := harness.Start(t, harness.Options{Dir: dir})
			busybox := d.PullBusybox(t)
			large, err := image.New(v1.Config{}, image.File{Path: "/large", Data: noise(8 << 20)})
			if err != nil {
				t.Fatal(err)
			}
			ref := d.Registry.Push(t, "large:1", large)
			d.Pull(t, ref)
			pod, id := d.RunAlone(t, "full", busybox, "sleep", "4711")
			pid := harness.FindProcess(t, "sleep 4711")
			_, ended := d.RunAlone(t, "ended", busybox, "sleep", "4712")
			endedPid := harness.FindProcess(t, "sleep 4712")

			free := fill(t, root)
			d.Kill9(t)
			if err := syscall.Kill(endedPid, syscall.SIGKILL); err != nil { // kurid cannot record its exit
				t.Fatal(err)
			}
			d.Continue(t)
			if s := d.ContainerStatus(t, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
				harness.FindProcess(t, "sleep 4711") != pid {
				t.Errorf("what ran is %v", s.State)
			}
			if out := d.Output(t, id, "echo", "works"); out != "works\n" {
				t.Errorf("exec says %q", out)
			}
			if s := d.WaitExit(t, ended); s.ExitCode != 137 {
				t.Errorf("what ended meanwhile is told as %v", s)
			}
			d.StopContainer(t, id, 0)
			d.RemovePod(t, pod)

			// Removing images frees space, as a kubelet's garbage collection does.
			before := freeBytes(t, root)
			if out, errs, code := d.Kuri(t, "rmi", "--force", ref); code != 0 {
				t.Fatalf("kuri rmi exits %d: %s%s", code, out, errs)
			}
			if after := freeBytes(t, root); after < before+6<<20 {
				t.Errorf("%d bytes were free, and %d are after the removal of 8 MiB", before, after)
			}
			_, again := d.RunAlone(t, "again", busybox, "sleep", "1000")
			if out := d.Output(t, again, "echo", "works"); out != "works\n" {
				t.Errorf("exec says %q", out)
			}
			free()
		})
	}
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	syscall.Sync()
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Bavail) * s.Bsize
}

// smallTmpfs mounts a tmpfs of 32 MiB.
func smallTmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=32m,mode=711"); err != nil {
		t.Skipf("SKIP: no tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("something still uses the daemon's root: %v", err)
		}
	})
	return dir
}

// Whichever record is damaged, the daemon starts, containers keep running and can be removed, and
// other pods are not affected.
func TestDamagedRecordsKillNothing(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	busybox := d.PullBusybox(t)
	good, goodID := d.RunAlone(t, "good", busybox, "sleep", "5000")
	goodPid := harness.FindProcess(t, "sleep 5000")
	damages := map[string]func(path string) error{
		"empty":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"truncated": func(path string) error { return os.Truncate(path, 60) },
		"zeros":     func(path string) error { return os.WriteFile(path, make([]byte, 500), 0o600) },
		"other":     func(path string) error { return os.WriteFile(path, []byte(`{"version":1,"data":[1]}`), 0o600) },
		"gone":      os.Remove,
		"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	}
	for name, files := range map[string]func(pod, id string) []string{
		"pod": func(pod, _ string) []string { return []string{filepath.Join(d.Root, "pods", pod, "pod.json")} },
		"container": func(pod, id string) []string {
			return []string{filepath.Join(d.Root, "pods", pod, "containers", id, "container.json")}
		},
		"pod and container, with their copies": func(pod, id string) []string {
			return []string{
				filepath.Join(d.Root, "pods", pod, "pod.json"), filepath.Join(d.Root, "pods", pod, "containers", id,
					"container.json"),
				filepath.Join(d.State, "pods", pod, "pod.json"), filepath.Join(d.State, "pods", pod, "containers", id,
					"container.json"),
			}
		},
		"pod alone, with its copy": func(pod, _ string) []string {
			return []string{filepath.Join(d.Root, "pods", pod, "pod.json"), filepath.Join(d.State, "pods", pod, "pod.json")}
		},
		"container, with its copy": func(pod, id string) []string {
			return []string{
				filepath.Join(d.Root, "pods", pod, "containers", id, "container.json"), filepath.Join(d.State, "pods", pod,
					"containers", id, "container.json"),
			}
		},
		"lease": func(pod, _ string) []string {
			return []string{filepath.Join(d.State, "network", "leases", pod+".json")}
		},
		"layer": func(string, string) []string { return glob(t, d.Root, "layers/*/layer.json") },
		"image": func(string, string) []string { return glob(t, d.Root, "images/*.json") },
		"image and layer": func(string, string) []string {
			return append(glob(t, d.Root, "layers/*/layer.json"), glob(t, d.Root, "images/*.json")...)
		},
	} {
		for how, damage := range damages {
			t.Run(name+" "+how, func(t *testing.T) {
				busybox := d.PullBusybox(t)
				config := harness.Pod("bad")
				pod := d.RunPod(t, config)
				id := d.Run(t, pod, harness.Container("bad", busybox, "sleep", "6000"), config)
				pid := harness.FindProcess(t, "sleep 6000")
				ip := d.PodStatus(t, pod).Network.Ip
				d.Stop(t)
				for _, path := range files(pod, id) {
					if err := damage(path); err != nil {
						t.Fatal(err)
					}
				}
				d.Continue(t)
				if now := harness.FindProcess(t, "sleep 6000"); now != pid {
					t.Errorf("process %d is %d now", pid, now)
				}
				if harness.FindProcess(t, "sleep 5000") != goodPid || d.PodStatus(t,
					good).State != runtimeapi.PodSandboxState_SANDBOX_READY || d.Output(t, goodID, "echo", "works") != "works\n" {
					t.Error("another pod was touched")
				}
				s := d.ContainerStatus(t, id)
				wantState := runtimeapi.ContainerState_CONTAINER_RUNNING
				if strings.Contains(name, "cop") && strings.Contains(name, "container") {
					wantState = runtimeapi.ContainerState_CONTAINER_UNKNOWN
					if s.Reason == "" || !strings.Contains(s.Message, "record") {
						t.Errorf("it does not say why: %v", s)
					}
				}
				if s.State != wantState || s.Metadata.Name == "" || s.Labels["io.kubernetes.container.name"] == "" &&
					wantState == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
					t.Errorf("it is told as %v, want %v", s, wantState)
				}
				if out := d.Output(t, id, "sh", "-c", "ls /bin/busybox && ping -c 1 -w 5 "+gatewayOf(ip)+
					" >/dev/null && echo reached"); !strings.Contains(out, "/bin/busybox\nreached") {
					t.Errorf("exec says %q", out)
				}
				d.PullBusybox(t)
				other := d.RunPod(t, harness.Pod("other"))
				if d.PodStatus(t, other).Network.Ip == ip {
					t.Errorf("another pod has the address %s, too", ip)
				}
				d.RemovePod(t, other)
				d.StopContainer(t, id, 0)
				d.RemovePod(t, pod)
				if left := harness.Processes(t, "sleep 6000"); len(left) > 0 {
					t.Errorf("after the removal there are %v", left)
				}
				if _, err := os.Stat(filepath.Join(d.Root, "pods", pod)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the pod's directory is left: %v", err)
				}
			})
		}
	}
}

// gatewayOf returns the first address of the /24 of a pod's address.
func gatewayOf(ip string) string { return ip[:strings.LastIndex(ip, ".")] + ".1" }

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	found = slices.DeleteFunc(found, func(path string) bool { return strings.Contains(path, ".damaged") })
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found
}

// A missing root directory, unmounted or removed, does not affect running containers.
func TestRootVanishes(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	pod, id := d.RunAlone(t, "app", d.PullBusybox(t), "sleep", "7000")
	pid := harness.FindProcess(t, "sleep 7000")
	d.Stop(t)
	aside := d.Root + ".aside"
	if err := os.Rename(d.Root, aside); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(aside) })
	d.Continue(t)
	if s := d.ContainerStatus(t, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
		harness.FindProcess(t, "sleep 7000") != pid || s.Metadata.Name == "" {
		t.Errorf("what ran is told as %v", s)
	}
	if out := d.Output(t, id, "echo", "works"); out != "works\n" {
		t.Errorf("exec says %q", out)
	}
	d.Restart(t)
	d.StopContainer(t, id, 0)
	d.RemovePod(t, pod)
	_, again := d.RunAlone(t, "again", d.PullBusybox(t), "sleep", "1000")
	if out := d.Output(t, again, "echo", "works"); out != "works\n" {
		t.Errorf("exec says %q", out)
	}
}

// With a read-only root directory, as after an error of its filesystem, the daemon serves the calls
// that it can.
func TestRootIsReadOnly(t *testing.T) {
	for _, part := range []string{"", "pods", "images", "layers", "tmp"} {
		t.Run("part "+part, func(t *testing.T) {
			d := harness.Start(t, harness.Options{})
			pod, id := d.RunAlone(t, "app", d.PullBusybox(t), "sleep", "8000")
			pid := harness.FindProcess(t, "sleep 8000")
			d.Stop(t)
			at := filepath.Join(d.Root, part)
			if err := syscall.Mount(at, at, "", syscall.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			writable := func() {
				if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
					t.Error(err)
				}
			}
			t.Cleanup(writable)
			if err := syscall.Mount("", at, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			d.Continue(t)
			if s := d.ContainerStatus(t, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
				harness.FindProcess(t, "sleep 8000") != pid {
				t.Errorf("what ran is told as %v", s)
			}
			if out := d.Output(t, id, "echo", "works"); out != "works\n" {
				t.Errorf("exec says %q", out)
			}
			if part == "" || part == "tmp" {
				other := d.Registry.Push(t, "other:1", withFile(t, "other", types.OCILayer, compression.GZip))
				_, err := pull(t, d, other, nil)
				harness.WantError(t, err, codes.FailedPrecondition, "read-only file system", "mount it writable", d.Root)
			}
			d.StopContainer(t, id, 0)
			if said, code := harness.RunKurid(t, "--root", d.Root, "--state", t.TempDir(), "--listen", t.TempDir()+
				"/s"); code == 0 || !strings.Contains(said, strconv.Itoa(d.Pid())) {
				t.Errorf("a second daemon exits %d and says %s", code, said)
			}
			d.Stop(t)
			writable()
			d.Continue(t)
			d.RemovePod(t, pod)
		})
	}
}

// If the disk of the state directory is full, new pods fail with an error that names the directory,
// and running pods are not affected.
func TestStateIsFull(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=8m,mode=711"); err != nil {
		t.Skipf("SKIP: no tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := harness.Start(t, harness.Options{Dir: dir})
	busybox := d.PullBusybox(t)
	pod, id := d.RunAlone(t, "app", busybox, "sleep", "9000")
	pid := harness.FindProcess(t, "sleep 9000")
	free := fill(t, state)
	d.Kill9(t)
	d.Continue(t)
	if s := d.ContainerStatus(t, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
		harness.FindProcess(t, "sleep 9000") != pid {
		t.Errorf("what ran is told as %v", s)
	}
	if out := d.Output(t, id, "echo", "works"); out != "works\n" {
		t.Errorf("exec says %q", out)
	}
	_, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("more")})
	harness.WantError(t, err, codes.ResourceExhausted, "no space left", state)
	_, err = d.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod, Config: harness.Container("more", busybox, "true"),
		SandboxConfig: harness.HostNetwork(harness.Pod("app")),
	})
	harness.WantError(t, err, codes.ResourceExhausted, "no space left", state)
	d.StopContainer(t, id, 0)
	if s := d.WaitExit(t, id); s.ExitCode != 137 {
		t.Errorf("its end is told as %v", s)
	}
	d.RemovePod(t, pod)
	free()
	_, again := d.RunAlone(t, "again", busybox, "sleep", "1000")
	if out := d.Output(t, again, "echo", "works"); out != "works\n" {
		t.Errorf("exec says %q", out)
	}
}

// Locks and sockets left by a dead daemon, or foreign files in their place, do not prevent a start.
// Of two daemons on one directory the second names the first, whatever the lock file contains.
func TestStaleLocksAndSockets(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	lock := filepath.Join(d.Root, "kurid.lock")
	for name, text := range map[string]string{"another's": "4194303\n", "empty": "", "nonsense": "\x00\x00not a number",
		"long": strings.Repeat("9", 5000)} {
		if err := os.WriteFile(lock, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		said, code := harness.RunKurid(t, "--root", d.Root, "--state", t.TempDir(), "--listen", t.TempDir()+"/s")
		if code == 0 || !strings.Contains(said, fmt.Sprintf("process %d;", d.Pid())) {
			t.Errorf("%s: a second daemon exits %d and does not name %d: %s", name, code, d.Pid(), said)
		}
		d.Kill9(t)
		d.Continue(t)
	}
	for name, leave := range map[string]func() error{
		"a dead socket": func() error {
			os.Remove(d.Socket)
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.Socket, Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return l.Close()
		},
		"no socket":       func() error { return os.Remove(d.Socket) },
		"a half-made one": func() error { return os.WriteFile(d.Socket+".new", nil, 0o600) },
	} {
		d.Kill9(t)
		if err := leave(); err != nil {
			t.Fatal(err)
		}
		d.Continue(t)
		if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
