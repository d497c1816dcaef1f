package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// tamperedPod is a running pod from which the test removes something by hand.
type tamperedPod struct {
	*shell
	pod, container string
	pid            int
	link           string // the node's end of its veth pair
	logs, volume   string // a directory, and one with a tmpfs mounted on it
}

// links lists the node's ends of the pods' veth pairs.
func links(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("/sys/class/net/kuri?*")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(path))
	}
	return names
}

func (s *shell) handled(t *testing.T, name string, ports ...*runtimeapi.PortMapping) *tamperedPod {
	t.Helper()
	h := &tamperedPod{shell: s, logs: filepath.Join(t.TempDir(), "logs"), volume: filepath.Join(t.TempDir(), "volume")}
	mkdirAll(t, h.logs)
	mkdirAll(t, h.volume)
	run(t, "mount", "-t", "tmpfs", "volume", h.volume)
	t.Cleanup(func() { exec.Command("umount", "-l", h.volume).Run() })
	config := harness.Pod(name)
	config.LogDirectory = h.logs
	config.PortMappings = ports
	before := links(t)
	h.pod = s.RunPod(t, config)
	for _, l := range links(t) {
		if !slices.Contains(before, l) {
			h.link = l
		}
	}
	c := harness.Container("main", s.image, "sh", "-c", "echo line; exec sleep 1000")
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: h.volume}}
	h.container = s.Run(t, h.pod, c, config)
	h.pid = firstPid(t, s.Daemon, h.container)
	return h
}

// another runs a script in another container of the pod, which must succeed.
func (h *tamperedPod) another(t *testing.T, script string) {
	t.Helper()
	config := harness.Pod("handled")
	config.LogDirectory = h.logs
	id := h.Run(t, h.pod, harness.Container("another", h.image, "sh", "-c", script), config)
	if st := h.WaitExit(t, id); st.ExitCode != 0 {
		t.Errorf("%q in another container ends with %d: %s", script, st.ExitCode, h.LogText(t, id, "stderr"))
	}
}

// unmountShm unmounts the pod's /dev/shm in the holder's mount namespace, which has no other mounts.
func (h *tamperedPod) unmountShm(t *testing.T) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", h.HolderPid()))
	err := errors.New("the holder has no mount namespace")
	for _, path := range files {
		if to, _ := os.Readlink(path); !strings.HasPrefix(to, "mnt:[") {
			continue
		}
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread exits with the goroutine
			f, err := os.Open(path)
			if err == nil {
				defer f.Close()
				err = unix.Unshare(unix.CLONE_FS)
			}
			if err == nil {
				err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNS)
			}
			if err == nil {
				err = unix.Unmount("/"+h.pod, unix.MNT_DETACH)
			}
			done <- err
		}()
		err = <-done
	}
	if err != nil {
		t.Fatal(err)
	}
}

// makeElsewhere creates the cgroups into which leave moves a process if the root cgroup refuses it.
func makeElsewhere(t *testing.T) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if exists(filepath.Join(root, "cgroup.controllers"))() {
			mkdirAll(t, filepath.Join(root, "elsewhere"))
			t.Cleanup(func() { os.Remove(filepath.Join(root, "elsewhere")) })
		}
	}
}

// Something of a running pod is removed by hand: the status agrees with the kernel, kuri doctor
// names the damage, and the pod can be stopped and removed without leaving anything behind.
func TestRemovedByHand(t *testing.T) {
	s := newShell(t)
	s.Exec(t, s.run(t, nil, "sleep", "1000"), "true") // so that the keeper has its fork server
	harness.Eventually(t, 30*time.Second, "the pod's link has its address", func() error {
		if text := run(t, "ip", "-o", "-6", "address", "show", "scope", "link"); strings.Contains(text, "tentative") ||
			!strings.Contains(text, links(t)[len(links(t))-1]) {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	for _, c := range []struct {
		name     string
		remove   func(*testing.T, *tamperedPod)
		notReady string                         // the pod's reason; "" if it stays ready
		doctor   string                         // part of the report
		fixed    func(*testing.T, *tamperedPod) // --fix mends all that is fixable, and this holds then
		mend     func(*testing.T, *tamperedPod)
	}{
		{name: "network namespace", notReady: "its network namespace is gone", doctor: "its network namespace is gone",
			remove: func(t *testing.T, h *tamperedPod) {
				unpinNetns(t, "/run/netns/kuri-"+h.pod)
			}},
		{name: "cgroup", notReady: "its cgroup is gone", doctor: "its cgroup is gone",
			remove: func(t *testing.T, h *tamperedPod) {
				for _, dir := range cgroupsOf(t, h.pid) {
					leave(t, filepath.Dir(filepath.Dir(dir)), h.pid)
				}
				harness.RemoveCgroup(t, "/kuri-"+h.pod)
			}},
		{name: "link", doctor: "is gone: it reaches nobody", remove: func(t *testing.T, h *tamperedPod) {
			run(t, "ip", "link", "delete", h.link)
		}},
		{name: "rules", doctor: "entries too many", remove: func(t *testing.T, h *tamperedPod) {
			run(t, "nft", "flush", "map", "inet", kuriTable(t), "any4")
		}},
		{name: "table", doctor: "table of the built-in network is gone", remove: func(t *testing.T, h *tamperedPod) {
			run(t, "nft", "delete", "table", "inet", kuriTable(t))
		}, mend: func(t *testing.T, h *tamperedPod) { doctor(t, h.Daemon, "--fix") }},
		{name: "forwarding", doctor: "net.ipv4.ip_forward", remove: func(t *testing.T, h *tamperedPod) {
			harness.Write(t, "/proc/sys/net/ipv4", "ip_forward", "0") // of the cell's network namespace
		}, fixed: func(t *testing.T, h *tamperedPod) {
			if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || string(text) != "1\n" {
				t.Errorf("forwarding is %q: %v", text, err)
			}
		}},
		{name: "directory in the state directory", doctor: "were removed: pod.json, resolv.conf, hosts, hostname",
			remove: func(t *testing.T, h *tamperedPod) {
				removeTree(t, filepath.Join(h.State, "pods", h.pod))
			}, fixed: func(t *testing.T, h *tamperedPod) {
				h.another(t, "grep -q handled /etc/hosts && cat /etc/resolv.conf")
			}},
		{name: "resolv.conf", doctor: "were removed: resolv.conf;", remove: func(t *testing.T, h *tamperedPod) {
			removeTree(t, filepath.Join(h.State, "pods", h.pod, "resolv.conf"))
		}, fixed: func(t *testing.T, h *tamperedPod) { h.another(t, "cat /etc/resolv.conf") }},
		{name: "directory in the root", doctor: "its writable layer was removed", remove: func(t *testing.T, h *tamperedPod) {
			removeTree(t, filepath.Join(h.Root, "pods", h.pod))
		}, fixed: func(t *testing.T, h *tamperedPod) {
			for _, path := range []string{"pod.json", "containers/" + h.container + "/container.json"} {
				if _, err := os.Stat(filepath.Join(h.Root, "pods", h.pod, path)); err != nil {
					t.Error(err)
				}
			}
		}},
		{name: "bundle", doctor: "its OCI configuration was removed", remove: func(t *testing.T, h *tamperedPod) {
			removeTree(t, filepath.Join(h.State, "pods", h.pod, "containers", h.container, "config.json"))
		}},
		{name: "log directory", doctor: "its log was removed",
			remove: func(t *testing.T, h *tamperedPod) { removeTree(t, h.logs) },
			fixed: func(t *testing.T, h *tamperedPod) {
				if _, err := os.Stat(filepath.Join(h.logs, "main.log")); err != nil {
					t.Error(err)
				}
			}},
		{name: "mounted volume", doctor: "the source of its volume at /volume was removed",
			remove: func(t *testing.T, h *tamperedPod) {
				run(t, "umount", "-l", h.volume)
				removeTree(t, h.volume)
			}},
		{name: "shm", doctor: "its /dev/shm was unmounted", remove: func(t *testing.T, h *tamperedPod) { h.unmountShm(t) },
			fixed: func(t *testing.T, h *tamperedPod) {
				h.Exec(t, h.container, "sh", "-c", "echo shared >/dev/shm/file")
				h.another(t, "grep -q shared /dev/shm/file")
			}},
		{name: "layer", doctor: "below it is missing", remove: func(t *testing.T, h *tamperedPod) {
			for _, layer := range globbed(t, h.Root, "layers", "*") {
				if err := os.Rename(layer, filepath.Join(h.Dir, "away-"+filepath.Base(layer))); err != nil {
					t.Fatal(err)
				}
			}
		}, mend: func(t *testing.T, h *tamperedPod) {
			for _, away := range globbed(t, h.Dir, "away-*") {
				if err := os.Rename(away,
					filepath.Join(h.Root, "layers", strings.TrimPrefix(filepath.Base(away), "away-"))); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "cgroup" {
				makeElsewhere(t)
			}
			before, err := harness.Observe(s.Leaky()...)
			if err != nil {
				t.Fatal(err)
			}
			h := s.handled(t, "handled", &runtimeapi.PortMapping{ContainerPort: 80, HostPort: 18080})
			c.remove(t, h)

			// 1. The status. The process keeps running.
			want := runtimeapi.PodSandboxState_SANDBOX_READY
			if c.notReady != "" {
				want = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
			}
			if st := s.PodStatus(t, h.pod); st.State != want {
				t.Errorf("the pod is %v, want %v", st.State, want)
			}
			if st := s.ContainerStatus(t, h.container); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
				firstPid(t, s.Daemon, h.container) != h.pid {
				t.Errorf("the container is %v, process %d of %d", st.State, firstPid(t, s.Daemon, h.container), h.pid)
			}
			if c.notReady != "" {
				_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
					PodSandboxId: h.pod, Config: harness.Container("more", s.image, "true"), SandboxConfig: harness.Pod("handled"),
				})
				if err == nil || !strings.Contains(err.Error(), c.notReady) {
					t.Errorf("another container in it: %v", err)
				}
			}

			// 2. The report of kuri doctor.
			var flags []string
			if c.fixed != nil {
				flags = []string{"--fix"}
			}
			r, _ := doctor(t, s.Daemon, flags...)
			said := fmt.Sprintf("%+v", r.Damages)
			if c.doctor != "" && !strings.Contains(said, c.doctor) || c.doctor == "" && len(r.Damages) > 0 {
				t.Errorf("kuri doctor, which was to say %q: %s", c.doctor, said)
			}

			if c.fixed != nil {
				for _, dm := range r.Damages {
					if dm.Fixable != dm.Fixed {
						t.Errorf("--fix: %+v", dm)
					}
				}
				c.fixed(t, h)
				after, _ := doctor(t, s.Daemon)
				for _, dm := range after.Damages {
					if dm.Fixable {
						t.Errorf("after --fix this is found: %+v", dm)
					}
				}
			}

			// 3. The removal.
			s.RemovePod(t, h.pod)
			if c.mend != nil {
				c.mend(t, h)
			}
			if exec.Command("umount", "-l", h.volume).Run() != nil && c.name != "mounted volume" {
				t.Error("the volume is not mounted any more")
			}
			if exists(fmt.Sprintf("/proc/%d", h.pid))() {
				t.Errorf("process %d goes on", h.pid)
			}
			harness.CheckLeaks(t, "after the pod was removed", before, s.Leaky()...)
			if r, code := doctor(t, s.Daemon); code != 0 {
				t.Errorf("kuri doctor after that: exit code %d, %+v", code, r)
			}
		})
	}
}

// A volume and a masked path are unmounted inside a running container, and in one that may do so
// itself; a third one loses its root filesystem. All run on, and Status, exec, stop and removal behave
// as before. kuri doctor names what the first and the third have lost; the mounts of the second are
// its own.
func TestUnmountedInside(t *testing.T) {
	s := newShell(t)
	volume := t.TempDir()
	harness.Write(t, volume, "file", "of the volume")
	config := harness.Pod("inside")
	pod := s.RunPod(t, config)
	c := harness.Container("main", s.image, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: volume}}
	c.Linux.SecurityContext.MaskedPaths = []string{"/proc/timer_list"}
	id := s.Run(t, pod, c, config)
	pid := firstPid(t, s.Daemon, id)
	mounter := proto.CloneOf(c)
	mounter.Metadata.Name = "mounter"
	mounter.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	may := s.Run(t, pod, mounter, config)
	look := "cat /volume/file 2>/dev/null; grep -c /proc/timer_list /proc/self/mountinfo; true"
	if out := s.Output(t, id, "sh", "-c", look); out != "of the volume1\n" {
		t.Fatalf("before: %q", out)
	}

	unmountInside(t, pid, "/volume", "/proc/timer_list")
	unmountInside(t, firstPid(t, s.Daemon, may), "/volume", "/proc/timer_list")
	bare := s.Run(t, pod, harness.Container("bare", s.image, "sleep", "1000"), config)
	unmountInside(t, firstPid(t, s.Daemon, bare), "/")

	for _, killed := range []bool{false, true} { // the next keeper adopts it as it is
		if killed {
			killKeeper(t, s.Daemon, false)
		}
		if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			firstPid(t, s.Daemon, id) != pid || st.Message != "" {
			t.Errorf("the container is %v, process %d of %d: %q", st.State, firstPid(t, s.Daemon, id), pid, st.Message)
		}
		if st := s.PodStatus(t, pod); st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %v", st.State)
		}
		if out := s.Output(t, id, "sh", "-c", look); out != "0\n" {
			t.Errorf("an exec says %q", out)
		}
		r, code := doctor(t, s.Daemon)
		said := fmt.Sprintf("%+v", r.Damages)
		for _, want := range []string{"was mounted in it: the volume at /volume, the mask of /proc/timer_list Advice",
			"was mounted in it: its root filesystem Advice"} {
			if code != 1 || len(r.Damages) != 2 || !strings.Contains(said, want) || strings.Contains(said, "Fixable:true") {
				t.Errorf("kuri doctor, exit code %d, which was to say %q: %s", code, want, said)
			}
		}
	}
	s.StopContainer(t, id, 30)
	if st := s.ContainerStatus(t, id); st.ExitCode != 7 || st.Reason != "Error" {
		t.Errorf("stopped, it has exit code %d, %s: %s", st.ExitCode, st.Reason, st.Message)
	}
	s.RemovePod(t, pod)
	if body, err := os.ReadFile(filepath.Join(volume, "file")); err != nil || string(body) != "of the volume" {
		t.Errorf("the volume has %q: %v", body, err)
	}
}

// unmountInside unmounts paths in the mount namespace of a process.
func unmountInside(t *testing.T, pid int, paths ...string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread exits with the goroutine
		done <- func() error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNS); err != nil {
				return err
			}
			var errs []error
			for _, path := range paths {
				errs = append(errs, unix.Unmount(path, unix.MNT_DETACH))
			}
			return errors.Join(errs...)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func removeTree(t *testing.T, dir string) {
	t.Helper()
	if !exists(dir)() {
		t.Fatalf("%s is not there", dir)
	}
	run(t, "rm", "-rf", dir)
}

func globbed(t *testing.T, parts ...string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(parts...))
	if err != nil || len(found) == 0 {
		t.Fatal(found, err)
	}
	return found
}
