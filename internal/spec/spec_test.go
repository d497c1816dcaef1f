package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/kuri-cri/kuri/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files anew")

// testCase is an Input in the format of testdata/golden/*.yaml; pod and container are the JSON of
// their messages.
type testCase struct {
	Node             string // name for testNode
	Pod, Container   json.RawMessage
	Image            imagespec.ImageConfig
	Namespaces       map[string]string
	TargetPID        int32
	Shm              string
	Files            bool // bind the pod's resolv.conf, hosts and hostname
	User             ResolvedUser
	Sources          []string
	Devices          []ResolvedDevice
	Labels           Labels
	LocalhostSeccomp string
	PidsLimit        int64
}

// testNode returns one of four nodes: "v1" has everything that cgroup v1 offers, "v2" the same with
// the unified hierarchy, "selinux" is v1 with SELinux, "poor" lacks nearly everything.
func testNode(t testing.TB, name string) Node {
	t.Helper()
	all, _, unknown := capabilityNames([]string{
		"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE",
		"NET_ADMIN", "NET_RAW", "SYS_CHROOT", "SYS_ADMIN", "SYS_RESOURCE", "MKNOD", "AUDIT_WRITE", "SETFCAP",
	})
	if len(unknown) > 0 {
		t.Fatal(unknown)
	}
	n := Node{
		Hostname: "node", Capabilities: all, MinOOMScoreAdj: -1000, Swap: true, CPUQuota: true,
		HugepageSizes: []string{"2MB", "1GB"}, Seccomp: true, MountSetattr: true, KernelVersion: "6.18.0",
	}
	switch name {
	case "", "v1":
	case "selinux":
		n.SELinux = true
	case "v2":
		n.CgroupV2 = true
	case "poor":
		n = Node{Hostname: "poor", Capabilities: []string{"CAP_CHOWN", "CAP_NET_RAW"}}
	default:
		t.Fatalf("no node %q", name)
	}
	return n
}

func (c testCase) input(t testing.TB) Input {
	t.Helper()
	in := Input{
		Pod: &runtime.PodSandboxConfig{}, Container: &runtime.ContainerConfig{}, Image: c.Image,
		ImageName: "docker.io/library/busybox:1", Node: testNode(t, c.Node),
		PodID: strings.Repeat("a", 64), ContainerID: strings.Repeat("b", 64),
		Rootfs: "/run/kuri/mounts/b/rootfs", CgroupsPath: "/kuri-a/b",
		Namespaces: c.Namespaces, TargetPID: c.TargetPID, Shm: c.Shm, User: c.User, Devices: c.Devices,
		Labels: c.Labels, LocalhostSeccomp: []byte(c.LocalhostSeccomp), PidsLimit: c.PidsLimit,
	}
	if in.Namespaces == nil {
		in.Namespaces = map[string]string{"network": "/run/netns/kuri-a", "ipc": "/proc/7/fd/3", "uts": "/proc/7/fd/4",
			"pid": "/proc/7/fd/5"}
	}
	if c.Files {
		in.ResolvConf, in.Hosts, in.Hostname = "/run/kuri/pods/a/resolv.conf", "/run/kuri/pods/a/hosts",
			"/run/kuri/pods/a/hostname"
	}
	for _, s := range c.Sources {
		in.Mounts = append(in.Mounts, ResolvedMount{Source: s})
	}
	for _, m := range []struct {
		body json.RawMessage
		into proto.Message
	}{{c.Pod, in.Pod}, {c.Container, in.Container}} {
		if len(m.body) > 0 {
			if err := protojson.Unmarshal(m.body, m.into); err != nil {
				t.Fatal(err)
			}
		}
	}
	return in
}

func readCase(t testing.TB, file string) testCase {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c testCase
	if err := yaml.UnmarshalStrict(body, &c); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return c
}

// TestGolden translates each testdata/golden/*.yaml and compares the spec with the .json file
// beside it. The system calls of a seccomp profile are left out: hundreds, defined by a library,
// different for each architecture.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			spec, notes, err := Container(readCase(t, file).input(t))
			if err != nil {
				t.Fatal(err)
			}
			if s := spec.Linux.Seccomp; s != nil {
				spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: s.DefaultAction,
					DefaultErrnoRet: s.DefaultErrnoRet}
			}
			got, err := json.MarshalIndent(struct {
				Notes []string    `json:"notes"`
				Spec  *specs.Spec `json:"spec"`
			}{notes, spec}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			golden := strings.TrimSuffix(file, ".yaml") + ".json"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s (go test -update writes it anew):\n%s", golden, got)
			}
		})
	}
}

// refusal is a configuration that Container or CheckSandbox must reject with an error that names
// the field.
type refusal struct {
	field string // as in the error; also the name in testdata/fields.txt if that says "refused"
	kind  fault.Kind
	input func(*Input)
}

func container(f func(c *runtime.ContainerConfig, sc *runtime.LinuxContainerSecurityContext)) func(*Input) {
	return func(in *Input) { f(in.Container, in.Container.Linux.SecurityContext) }
}

func withMount(m *runtime.Mount) func(*Input) {
	return func(in *Input) {
		in.Container.Mounts = []*runtime.Mount{m}
		in.Mounts = []ResolvedMount{{Source: "/src"}}
	}
}

func withResources(r *runtime.LinuxContainerResources) func(*Input) {
	return func(in *Input) { in.Container.Linux.Resources = r }
}

// userNamespace gives the pod a user namespace of count ids.
func userNamespace(in *Input, count uint32) {
	ids := []*runtime.IDMapping{{HostId: 1 << 20, Length: count}}
	in.Pod.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Uids: ids, Gids: ids}},
	}}
	in.Namespaces["user"] = "/proc/7/fd/6"
}

func refusals() []refusal {
	type (
		ctr = runtime.ContainerConfig
		sec = runtime.LinuxContainerSecurityContext
	)
	localhost := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/p"}
	id := []*runtime.IDMapping{{Length: 1}}
	return []refusal{
		{"metadata.name", fault.Invalid, container(func(c *ctr, _ *sec) { c.Metadata = nil })},
		{"command", fault.Invalid, func(in *Input) { in.Image.Cmd = nil }},
		{"envs", fault.Invalid, container(func(c *ctr, _ *sec) { c.Envs = []*runtime.KeyValue{{Key: "_KURI_RAW_7"}} })},
		{"envs", fault.Invalid, container(func(c *ctr, _ *sec) {
			c.Envs = []*runtime.KeyValue{{Key: "_KURI_RAW_7=A"}}
		})},
		{"working directory", fault.Invalid, func(in *Input) { in.Image.WorkingDir = "/a\x00b" }},
		{"log_path", fault.Invalid, func(in *Input) {
			in.Pod.LogDirectory,
				in.Container.LogPath = "/var/log/pods/a", "../b.log"
		}},
		{"stop_signal", fault.Invalid, container(func(c *ctr, _ *sec) { c.StopSignal = 99 })},
		{"CDI_devices", fault.Invalid,
			container(func(c *ctr, _ *sec) { c.CDIDevices = []*runtime.CDIDevice{{Name: "/dev/d"}} })},
		{"annotations", fault.Unimplemented,
			container(func(c *ctr, _ *sec) { c.Annotations = map[string]string{"io.kubernetes.cri.rdt-class": "x"} })},
		{"devices", fault.Invalid, func(in *Input) {
			in.Devices = []ResolvedDevice{{Path: "/dev/x",
				Permissions: "rx"}}
		}},

		{"mounts[0].container_path", fault.Invalid, withMount(&runtime.Mount{HostPath: "/a"})},
		{"mounts[0].container_path", fault.Invalid, withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/x/.."})},
		{"mounts[0].host_path", fault.Invalid, withMount(&runtime.Mount{ContainerPath: "/b"})},
		{"mounts[0].propagation", fault.Invalid,
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", Propagation: 7})},
		{"mounts[0].gidMappings", fault.Invalid,
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", UidMappings: id})},
		{"mounts[0].uidMappings", fault.Invalid,
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", GidMappings: id})},
		{"mounts[0].gidMappings", fault.Invalid, withMount(&runtime.Mount{
			HostPath: "/a", ContainerPath: "/b", UidMappings: id, GidMappings: []*runtime.IDMapping{{}},
		})},
		{"mounts[0].uidMappings", fault.Invalid, withMount(&runtime.Mount{
			Image: &runtime.ImageSpec{Image: "x"}, Readonly: true, ContainerPath: "/b", UidMappings: id,
			GidMappings: id,
		})},
		{"mounts[0].uidMappings", fault.Unimplemented, func(in *Input) {
			in.Node.MountSetattr = false
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", UidMappings: id, GidMappings: id})(in)
		}},
		{"mounts[0].recursive_read_only", fault.Invalid,
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", RecursiveReadOnly: true})},
		{"mounts[0].recursive_read_only", fault.Invalid, withMount(&runtime.Mount{
			HostPath: "/a", ContainerPath: "/b", Readonly: true, RecursiveReadOnly: true,
			Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		})},
		{"mounts[0].recursive_read_only", fault.Unimplemented, func(in *Input) {
			in.Node.MountSetattr = false
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", Readonly: true, RecursiveReadOnly: true})(in)
		}},
		{"mounts[0].image", fault.Invalid, withMount(&runtime.Mount{ContainerPath: "/b", Image: &runtime.ImageSpec{}})},
		{"mounts[0].image", fault.Invalid,
			withMount(&runtime.Mount{ContainerPath: "/b", HostPath: "/a", Image: &runtime.ImageSpec{Image: "x"}})},
		{"mounts[0].propagation", fault.Invalid, withMount(&runtime.Mount{
			ContainerPath: "/b", Image: &runtime.ImageSpec{Image: "x"},
			Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		})},
		{"mounts[0].image_sub_path", fault.Invalid,
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", ImageSubPath: "x"})},
		{"mounts[0].image_sub_path", fault.Invalid,
			withMount(&runtime.Mount{ContainerPath: "/b", Image: &runtime.ImageSpec{Image: "x"},
				ImageSubPath: "../x"})},
		{"mounts[0].image_sub_path", fault.Invalid,
			withMount(&runtime.Mount{ContainerPath: "/b", Image: &runtime.ImageSpec{Image: "x"}, ImageSubPath: "/x"})},
		{"mounts[0].readonly", fault.Invalid,
			withMount(&runtime.Mount{ContainerPath: "/b", Image: &runtime.ImageSpec{Image: "x"}})},
		{"mounts[0].readonly", fault.Invalid,
			withMount(&runtime.Mount{ContainerPath: "/b", Image: &runtime.ImageSpec{Image: "x"}, ImageSubPath: "x"})},
		{"mounts[0].mount_options", fault.Invalid,
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", MountOptions: []string{"suid"}})},
		{"mounts[0].selinux_relabel", fault.Invalid, func(in *Input) {
			in.Node.SELinux = true
			withMount(&runtime.Mount{HostPath: "/a", ContainerPath: "/b", SelinuxRelabel: true})(in)
			in.Mounts = []ResolvedMount{{Source: "/usr/share"}}
		}},

		{"privileged", fault.Invalid, container(func(_ *ctr, s *sec) { s.Privileged = true })},
		{"capabilities.drop_capabilities", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.Capabilities = &runtime.Capability{DropCapabilities: []string{"CAP_"}}
		})},
		{"masked_paths", fault.Invalid, container(func(_ *ctr, s *sec) { s.MaskedPaths = []string{"x"} })},
		{"readonly_paths", fault.Invalid, container(func(_ *ctr, s *sec) { s.ReadonlyPaths = []string{"x"} })},
		{"selinux_options.type", fault.Invalid, func(in *Input) {
			in.Node.SELinux = true
			in.Container.Linux.SecurityContext.SelinuxOptions = &runtime.SELinuxOption{Type: "a,b"}
		}},
		{"apparmor", fault.Unimplemented, container(func(_ *ctr, s *sec) { s.Apparmor = localhost })},
		{"apparmor_profile", fault.Unimplemented,
			container(func(_ *ctr, s *sec) { s.ApparmorProfile = "localhost/x" })},
		{"apparmor_profile", fault.Invalid, container(func(_ *ctr, s *sec) { s.ApparmorProfile = "x" })},
		{"seccomp", fault.Invalid, container(func(_ *ctr, s *sec) { s.Seccomp = localhost })}, // no content given
		{"seccomp_profile_path", fault.Invalid,
			container(func(_ *ctr, s *sec) { s.SeccompProfilePath = "localhost/relative" })},
		{"seccomp", fault.Invalid, container(func(_ *ctr,
			s *sec) {
			s.Seccomp = &runtime.SecurityProfile{LocalhostRef: "/p"}
		})},
		{"seccomp", fault.Invalid, container(func(_ *ctr,
			s *sec) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: 9}
		})},
		{"seccomp", fault.Unimplemented, func(in *Input) {
			in.Node.Seccomp = false
			in.Container.Linux.SecurityContext.Seccomp = &runtime.SecurityProfile{}
		}},

		{"user 70000", fault.Invalid, func(in *Input) { userNamespace(in, 65536); in.User.UID = 70000 }},
		{"user 65536", fault.Invalid, func(in *Input) { userNamespace(in, 65536); in.User.UID = 65536 }},
		{"group 70000", fault.Invalid, func(in *Input) { userNamespace(in, 65536); in.User.GID = 70000 }},
		{"supplemental group 4294967294", fault.Invalid,
			func(in *Input) { userNamespace(in, 65536); in.User.AdditionalGIDs = []uint32{5, 4294967294} }},

		{"namespace_options.network", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.NamespaceOptions = &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
		})},
		{"namespace_options.ipc", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.NamespaceOptions = &runtime.NamespaceOption{Ipc: runtime.NamespaceMode_TARGET}
		})},
		{"namespace_options.target_id", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.NamespaceOptions = &runtime.NamespaceOption{TargetId: "x"}
		})},
		{"namespace_options.target_id", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET}
		})},
		{"namespace_options.userns_options", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Uids: id, Gids: id}}
		})},
		{"namespace_options.userns_options", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_TARGET}}
		})},
		{"namespace_options.userns_options", fault.Invalid, container(func(_ *ctr, s *sec) {
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE,
				Uids: id}}
		})},

		{"cpu_shares", fault.Invalid, withResources(&runtime.LinuxContainerResources{CpuShares: -1})},
		{"cpu_period", fault.Invalid, withResources(&runtime.LinuxContainerResources{CpuPeriod: -1})},
		{"cpu_quota", fault.Invalid, withResources(&runtime.LinuxContainerResources{CpuQuota: -2})},
		{"cpu_quota", fault.Unimplemented, func(in *Input) {
			in.Node.CPUQuota = false
			withResources(&runtime.LinuxContainerResources{CpuQuota: 1000})(in)
		}},
		{"cpuset_cpus", fault.Invalid, withResources(&runtime.LinuxContainerResources{CpusetCpus: "a"})},
		{"cpuset_mems", fault.Invalid, withResources(&runtime.LinuxContainerResources{CpusetMems: "0\n"})},
		{"memory_limit_in_bytes", fault.Invalid,
			withResources(&runtime.LinuxContainerResources{MemoryLimitInBytes: -5})},
		{"memory_swap_limit_in_bytes", fault.Invalid,
			withResources(&runtime.LinuxContainerResources{MemorySwapLimitInBytes: 5})},
		{"memory_swap_limit_in_bytes", fault.Invalid,
			withResources(&runtime.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 5})},
		{"hugepage_limits", fault.Unimplemented, withResources(&runtime.LinuxContainerResources{
			HugepageLimits: []*runtime.HugepageLimit{{PageSize: "3MB", Limit: 1}},
		})},
		{"unified", fault.Unimplemented,
			withResources(&runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}})},
		{"unified", fault.Invalid, func(in *Input) {
			in.Node.CgroupV2 = true
			withResources(&runtime.LinuxContainerResources{Unified: map[string]string{"../x.y": "1"}})(in)
		}},
		{"oom_score_adj", fault.Invalid, withResources(&runtime.LinuxContainerResources{OomScoreAdj: 1001})},
	}
}

func TestContainerRejects(t *testing.T) {
	for i, r := range refusals() {
		in := testCase{}.input(t)
		in.Image.Cmd = []string{"sh"}
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{}}
		if _, _, err := Container(in); err != nil {
			t.Fatalf("the configuration to be changed is refused already: %v", err)
		}
		r.input(&in)
		_, _, err := Container(in)
		if err == nil || fault.Of(err) != r.kind || !strings.Contains(err.Error(), r.field) {
			t.Errorf("%d: %s: %v (kind %q), want kind %q", i, r.field, err, fault.Of(err), r.kind)
		}
	}
}

func TestSeccompFollowsCapabilities(t *testing.T) {
	allows := func(s *specs.LinuxSeccomp, call string) bool {
		for _, r := range s.Syscalls {
			for _, n := range r.Names {
				if n == call && r.Action == specs.ActAllow && len(r.Args) == 0 {
					return true
				}
			}
		}
		return false
	}
	for _, c := range []struct {
		add   []string
		mount bool
	}{{nil, false}, {[]string{"SYS_ADMIN"}, true}} {
		in := testCase{Image: imagespec.ImageConfig{Cmd: []string{"sh"}}}.input(t)
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			Seccomp: &runtime.SecurityProfile{}, Capabilities: &runtime.Capability{AddCapabilities: c.add},
		}}
		spec, _, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		if s := spec.Linux.Seccomp; s == nil || !allows(s, "read") || allows(s, "mount") != c.mount {
			t.Errorf("with %v the default profile does not fit", c.add)
		}
	}
}

func FuzzContainer(f *testing.F) {
	files, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		c := readCase(f, file)
		f.Add(string(c.Container), string(c.Pod), c.LocalhostSeccomp)
	}
	node := testNode(f, "v2")
	f.Fuzz(func(t *testing.T, container, pod, seccomp string) {
		in := Input{
			Pod: &runtime.PodSandboxConfig{}, Container: &runtime.ContainerConfig{}, Node: node,
			Image: imagespec.ImageConfig{Cmd: []string{"sh"}}, LocalhostSeccomp: []byte(seccomp),
			Namespaces: map[string]string{"network": "/n", "ipc": "/i", "uts": "/u", "pid": "/p"},
		}
		if protojson.Unmarshal([]byte(container), in.Container) != nil ||
			protojson.Unmarshal([]byte(pod), in.Pod) != nil {
			return
		}
		in.Mounts = make([]ResolvedMount, len(in.Container.GetMounts()))
		spec, _, err := Container(in)
		if err != nil {
			return
		}
		if _, err := json.Marshal(spec); err != nil {
			t.Fatalf("the spec cannot be written: %v", err)
		}
		if len(spec.Process.Args) == 0 || !filepath.IsAbs(spec.Process.Cwd) {
			t.Fatalf("args %q, cwd %q", spec.Process.Args, spec.Process.Cwd)
		}
		for _, c := range spec.Process.Capabilities.Bounding {
			if !strings.HasPrefix(c, "CAP_") {
				t.Fatalf("capability %q", c)
			}
		}
		CheckSandbox(in.Pod, node)
		StopSignal(in.Container, in.Image)
		SeccompFile(in.Container)
	})
}

// Values that JSON cannot represent are encoded in the spec, at their place; the rest is unchanged.
func TestEnvironmentOfBytes(t *testing.T) {
	in := testCase{}.input(t)
	in.Image.Cmd = []string{"sh"}
	in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
	in.Container.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("b")}, {Key: "BIN", Value: []byte{0xff, 'x'}}}
	s, _, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	n := len(s.Process.Env)
	if want := fmt.Sprintf("_KURI_RAW_%d=42494e3dff78", n-1); s.Process.Env[n-2] != "A=b" ||
		s.Process.Env[n-1] != want {
		t.Errorf("%q, want %q at the end", s.Process.Env, want)
	}
}
