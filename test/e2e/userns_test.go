package e2e

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

const firstID = 1 << 20 // first host id for the ids of a pod

func idMap() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: firstID, ContainerId: 0, Length: 65536}}
}

func userNamespace() *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: idMap(), Gids: idMap()}
}

// usernsShell returns a shell whose pod has a user namespace. change is applied to the pod's configuration.
func usernsShell(t *testing.T, change func(*runtimeapi.PodSandboxConfig)) *shell {
	t.Helper()
	s := &shell{Daemon: harness.Start(t, harness.Options{}), podConfig: harness.Pod("userns")}
	resp, err := s.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.RuntimeHandlers[0].Features.UserNamespaces {
		t.Skip("SKIP: this node cannot run pods with user namespaces")
	}
	s.image = s.PullBusybox(t)
	s.podConfig.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNamespace()
	if change != nil {
		change(s.podConfig)
	}
	s.pod = s.RunPod(t, s.podConfig)
	return s
}

// inPod gives a container the user namespace of its pod, as a kubelet does.
func inPod(change func(*container, *security)) func(*container, *security) {
	return func(c *container, sc *security) {
		sc.NamespaceOptions.UsernsOptions = userNamespace()
		if change != nil {
			change(c, sc)
		}
	}
}

func TestUserNamespace(t *testing.T) {
	s := usernsShell(t, nil)
	id := s.run(t, inPod(nil), "sleep", "1000")

	t.Run("ids inside and outside", func(t *testing.T) {
		if out := s.Output(t, id, "cat", "/proc/self/uid_map", "/proc/self/gid_map"); strings.Join(strings.Fields(out),
			" ") != fmt.Sprintf("0 %[1]d 65536 0 %[1]d 65536", firstID) {
			t.Errorf("map: %q", out)
		}
		// The image's files belong to root in the pod, who can change them; so do the pod's own files.
		const look = "id -u; stat -c %u:%g / /bin/busybox /etc/passwd /etc/resolv.conf /dev/shm; touch /new /etc/passwd && chown 7 /new && stat -c %u /new; echo '#' >> /etc/resolv.conf; echo x > /dev/shm/x; echo out > /dev/stdout"
		if out := s.says(t, inPod(nil), "sh", "-c", look); out != "0\n0:0\n0:0\n0:0\n0:0\n0:0\n7\nout\n" {
			t.Errorf("inside: %q", out)
		}
		if out := s.says(t, inPod(func(_ *container, sc *security) { sc.RunAsUser = &runtimeapi.Int64Value{Value: 1234} }),
			"sh", "-c", "id -u; echo out > /dev/stdout"); out != "1234\nout\n" {
			t.Errorf("as another user: %q", out)
		}
		info, err := s.Runtime.ContainerStatus(t.Context(),
			&runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var record struct{ Pid int }
		if err := json.Unmarshal([]byte(info.Info["info"]), &record); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d", record.Pid), &st); err != nil || st.Uid != firstID {
			t.Errorf("process %d belongs to %d: %v", record.Pid, st.Uid, err)
		}
	})

	t.Run("the network is the pod's to rule", func(t *testing.T) {
		admin := inPod(func(_ *container, sc *security) {
			sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		})
		if out := s.says(t, admin, "sh", "-c",
			"ip link add dummy9 type dummy 2>&1 && echo made || ip link set lo mtu 1400 && echo set"); !strings.Contains(out,
			"made") && !strings.Contains(out, "set") {
			t.Errorf("%q", out)
		}
		// A file that only root of the user namespace which owns the network namespace may write.
		if out := s.says(t, inPod(nil), "sh", "-c", "ip addr show eth0 | grep -c 'inet '"); out != "1\n" {
			t.Errorf("addresses: %q", out)
		}
	})

	t.Run("volumes", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		plain := &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v"}
		if out := s.says(t, inPod(mounting(plain)), "sh", "-c",
			"stat -c %u /v/file; cat /v/file 2>/dev/null; true"); out != "65534\n" {
			t.Errorf("without a mapping: %q", out)
		}
		mapped := &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", UidMappings: idMap(), GidMappings: idMap()}
		if out := s.says(t, inPod(mounting(mapped)), "sh", "-c",
			"stat -c %u /v/file; cat /v/file; echo; touch /v/new"); out != "0\nx\n" {
			t.Errorf("with a mapping: %q", out)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "new"), &st); err != nil || st.Uid != 0 {
			t.Errorf("on the host the new file belongs to %d: %v", st.Uid, err)
		}
	})

	t.Run("an image volume", func(t *testing.T) {
		m := &runtimeapi.Mount{ContainerPath: "/v", Readonly: true, Image: &runtimeapi.ImageSpec{Image: s.image},
			ImageSubPath: "bin"}
		if out := s.says(t, inPod(mounting(m)), "stat", "-c", "%u:%g", "/v/busybox"); out != "0:0\n" {
			t.Errorf("%q", out)
		}
	})

	t.Run("devices and privilege", func(t *testing.T) {
		device := inPod(func(c *container, _ *security) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/nought", Permissions: "r"}}
		})
		if out := s.says(t, device, "sh", "-c",
			"head -c 2 /dev/nought | od -An -tx1; echo x > /dev/null"); out != " 00 00\n" {
			t.Errorf("a device by another name: %q", out)
		}
	})

	t.Run("exec, update, restart", func(t *testing.T) {
		if out := s.Output(t, id, "sh", "-c", "id -u; echo out > /dev/stdout"); out != "0\nout\n" {
			t.Errorf("exec: %q", out)
		}
		if err := s.update(t.Context(), id, &resources{OomScoreAdj: 99}); err != nil {
			t.Error(err)
		}
		s.Restart(t)
		if out := s.Output(t, id, "cat", "/proc/1/oom_score_adj"); out != "99\n" {
			t.Errorf("after a restart: %q", out)
		}
		if got := s.PodStatus(t, s.pod).Linux.Namespaces.Options.UsernsOptions; got.GetMode() != runtimeapi.NamespaceMode_POD || len(got.GetUids()) != 1 {
			t.Errorf("status: %v", got)
		}
	})

	t.Run("a container cannot leave", func(t *testing.T) {
		err := s.refuses(t, func(_ *container, sc *security) {
			sc.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
		}, "true")
		harness.WantError(t, err, codes.InvalidArgument, "userns_options")
	})
}

func TestUserNamespaceSharesProcesses(t *testing.T) {
	s := usernsShell(t, func(p *runtimeapi.PodSandboxConfig) {
		p.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	shared := inPod(func(_ *container, sc *security) { sc.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD })
	s.run(t, shared, "sleep", "1000")
	if out := s.says(t, shared, "sh", "-c",
		"cat /proc/1/comm; ps -o args | grep -c '[s]leep 1000'; ls /sys/class/net"); out != "kuri-init\n1\neth0\nlo\n" {
		t.Errorf("%q", out)
	}
}

// Files copied into a container with a user namespace belong to its root, and files copied out have
// the ids that the container sees.
func TestUserNamespaceCopies(t *testing.T) {
	s := usernsShell(t, nil)
	id := s.run(t, inPod(nil), "sleep", "1000")
	src := harness.Write(t, t.TempDir(), "f", "chestnut\n")
	if _, errs, code := s.Kuri(t, "cp", src, id+":/tmp/f"); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	if got := s.Output(t, id, "sh", "-c",
		"stat -c %u:%g /tmp/f; chown 7:8 /tmp/f && cat /tmp/f"); got != "0:0\nchestnut\n" {
		t.Errorf("it has %q", got)
	}
	tarred, errs, code := s.Kuri(t, "cp", id+":/tmp/f", "-")
	if h, err := tar.NewReader(strings.NewReader(tarred)).Next(); code != 0 || err != nil || h.Uid != 7 || h.Gid != 8 ||
		h.Size != 9 {
		t.Errorf("exit code %d: %s: %+v, %v", code, errs, h, err)
	}
}

func TestUserNamespaceOnTheNodesNetwork(t *testing.T) {
	s := usernsShell(t, func(p *runtimeapi.PodSandboxConfig) { harness.HostNetwork(p) })
	onNode := inPod(func(_ *container, sc *security) { sc.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE })
	// Kurid's namespace: an earlier test may have left our first thread in a pod's.
	host, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if out := s.says(t, onNode, "sh", "-c",
		"readlink /proc/self/ns/net; id -u; ls /sys/class/net | grep -c lo; ip link set lo mtu 1400 2>/dev/null || echo refused"); out != host+"\n0\n1\nrefused\n" {
		t.Errorf("%q", out)
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	for name, change := range map[string]func(*runtimeapi.NamespaceOption){
		"uids":                func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids = nil },
		"gids":                func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids = append(idMap(), idMap()...) },
		"begins with 1":       func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].ContainerId = 1 },
		"has no ids":          func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 0 },
		"beyond":              func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 1<<32 - 2 },
		"userns_options":      func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = runtimeapi.NamespaceMode_CONTAINER },
		"namespace_options.p": func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE },
		"namespace_options.i": func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE },
	} {
		p := harness.Pod("refused")
		p.LogDirectory = t.TempDir()
		o := p.Linux.SecurityContext.NamespaceOptions
		o.UsernsOptions = userNamespace()
		change(o)
		_, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p})
		harness.WantError(t, err, codes.InvalidArgument, name)
	}
}

// An id outside the pod's user namespace is an error that says so, whether the image or the
// configuration names it.
func TestIDsOutsideAUserNamespace(t *testing.T) {
	s := usernsShell(t, nil)
	ref := s.pushes(t, "far:1", v1.Config{User: "70000:5"})
	for name, change := range map[string]func(*container, *security){
		"user 65536": func(_ *container, sc *security) { sc.RunAsUser = &runtimeapi.Int64Value{Value: 65536} },
		"group 100000": func(_ *container, sc *security) {
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1}, &runtimeapi.Int64Value{Value: 100000}
		},
		"supplemental group 65536": func(_ *container, sc *security) { sc.SupplementalGroups = []int64{65536} },
		"user 70000":               func(c *container, _ *security) { c.Image.Image = ref },
	} {
		harness.WantError(t, s.refuses(t, inPod(change), "true"), codes.InvalidArgument,
			name+" is outside the pod's user namespace", "65536 ids")
	}
	last := inPod(func(_ *container, sc *security) {
		sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 65535}, &runtimeapi.Int64Value{Value: 65535}
	})
	if out := s.says(t, last, "sh", "-c", "id -u; id -g"); out != "65535\n65535\n" {
		t.Errorf("the last of them: %q", out)
	}
}

// In a pod with a user namespace, two empty lists of paths mean procMount Unmasked: nothing is
// mounted below /proc, and parameters of the pod's own namespaces can be written.
func TestUnmaskedProc(t *testing.T) {
	s := usernsShell(t, nil)
	const look = "grep -c ' /proc/' /proc/mounts; echo 77 > /proc/sys/kernel/msgmax && cat /proc/sys/kernel/msgmax"
	if out := s.says(t, inPod(nil), "sh", "-c", look); out != "0\n77\n" {
		t.Errorf("unmasked: %q", out)
	}
	masked := inPod(func(_ *container, sc *security) {
		sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore", "/proc/timer_list", "/proc/keys"}, []string{"/proc/sys",
			"/proc/irq"}
	})
	if out := s.says(t, masked, "sh", "-c",
		"(echo 78 > /proc/sys/kernel/msgmax) 2>/dev/null || echo read-only; grep -q ' /proc/sys proc ro' /proc/mounts && echo mounted"); out != "read-only\nmounted\n" {
		t.Errorf("as a kubelet asks for by default: %q", out)
	}
}
